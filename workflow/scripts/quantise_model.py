"""Quantise the merged judge with GPTQ to 8 or 4 bits, keeping its score head.

GPTQModel is the successor of AutoGPTQ, whose last release does not import beside a
current transformers, and writes the same checkpoint format.
"""

from pathlib import Path

from prefdistill.models.quick_imports import import_quantiser
from prefdistill.running.job import run_job
from prefdistill.settings import GptqSettings, TextSettings


def main(
    merged: Path,
    fold: Path,
    bits: int,
    settings: GptqSettings,
    text: TextSettings,
    token_budget: int,
    model: Path,
) -> None:
    """Write the quantised model's folder, with ``quantisation.json``."""
    from prefdistill.export.gptq import export_quantised

    export_quantised(
        merged.parent, model.parent, fold, bits, settings, text, token_budget
    )


if __name__ == "__main__":
    run_job(
        snakemake,
        main,
        libraries=import_quantiser,
        token_budget=snakemake.config["predict"]["token_budget"],
    )

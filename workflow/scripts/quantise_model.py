"""Quantise the merged judge with GPTQ to 8 or 4 bits, keeping its score head.

GPTQModel is the successor of AutoGPTQ, whose last release does not import beside a
current transformers, and writes the same checkpoint format.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(
    model: Path,
    fold_path: Path,
    bits: int,
    settings: dict[str, Any],
    text: dict[str, Any],
    token_budget: int,
    model_out: Path,
) -> None:
    """Write the quantised model's folder, with ``quantisation.json``."""
    from prefdistill.export.gptq import export_quantised

    export_quantised(
        model.parent, model_out.parent, fold_path, bits, settings, text, token_budget
    )


if __name__ == "__main__":
    with run_job(snakemake):
        from prefdistill.models.quick_imports import import_quantiser

        import_quantiser()
        main(
            model=Path(snakemake.input.model),
            fold_path=Path(snakemake.input.fold),
            bits=int(snakemake.wildcards.bits),
            settings=snakemake.params.settings,
            text=snakemake.params.text,
            token_budget=snakemake.config["predict"]["token_budget"],
            model_out=Path(snakemake.output.model),
        )

"""Quantise the student's base, without any adapter, for fold adapters to run on.

A fold's adapter belongs on the base that it was trained on: on the merged model it
would count twice. The folder is a classifier with a seeded head, which each adapter
replaces with its own.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.models.manifests import base_folder
from prefdistill.running.job import run_job
from prefdistill.storage.tables import read_json
from prefdistill.storage.whole_files import temporary_folder

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(
    manifest: Path,
    fold_path: Path,
    bits: int,
    settings: dict[str, Any],
    text: dict[str, Any],
    token_budget: int,
    scratch: Path,
    model_out: Path,
) -> None:
    """Write the quantised base's folder, with ``quantisation.json``."""
    from prefdistill.export.gptq import export_quantised
    from prefdistill.export.merging import write_classifier
    from prefdistill.models.loading import seeded_head

    base = base_folder(manifest)
    head = seeded_head(read_json(base / "config.json")["hidden_size"], settings["seed"])
    with temporary_folder(scratch) as source:
        write_classifier(base, source, head)
        export_quantised(
            source, model_out.parent, fold_path, bits, settings, text, token_budget
        )


if __name__ == "__main__":
    with run_job(snakemake):
        from prefdistill.models.quick_imports import import_quantiser

        import_quantiser()
        main(
            manifest=Path(snakemake.input.base),
            fold_path=Path(snakemake.input.fold),
            bits=int(snakemake.wildcards.bits),
            settings=snakemake.params.settings,
            text=snakemake.params.text,
            token_budget=snakemake.config["predict"]["token_budget"],
            scratch=Path(snakemake.config["scratch"]),
            model_out=Path(snakemake.output.model),
        )

"""Quantise the student's base, without any adapter, for fold adapters to run on.

A fold's adapter belongs on the base that it was trained on: on the merged model it
would count twice. The folder is a classifier with a seeded head, which each adapter
replaces with its own.
"""

from pathlib import Path

from prefdistill.models.manifests import base_folder
from prefdistill.models.quick_imports import import_quantiser
from prefdistill.running.job import run_job
from prefdistill.settings import GptqSettings, TextSettings
from prefdistill.storage.records import read_json
from prefdistill.storage.whole_files import temporary_folder


def main(
    base: Path,
    fold: Path,
    bits: int,
    settings: GptqSettings,
    text: TextSettings,
    token_budget: int,
    scratch: Path,
    model: Path,
) -> None:
    """Write the quantised base's folder, with ``quantisation.json``."""
    from prefdistill.export.gptq import export_quantised
    from prefdistill.export.merging import write_classifier
    from prefdistill.models.head import seeded_head

    source = base_folder(base)
    head = seeded_head(read_json(source / "config.json")["hidden_size"], settings.seed)
    with temporary_folder(scratch) as classifier:
        write_classifier(source, classifier, head)
        export_quantised(
            classifier, model.parent, fold, bits, settings, text, token_budget
        )


if __name__ == "__main__":
    run_job(
        snakemake,
        main,
        libraries=import_quantiser,
        token_budget=snakemake.config["predict"]["token_budget"],
    )

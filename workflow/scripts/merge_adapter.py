"""Merge the averaged adapter into the student's base: one plain 16-bit classifier."""

import logging
from dataclasses import asdict
from pathlib import Path

from prefdistill.models.manifests import base_folder, read_manifest
from prefdistill.running.job import run_job
from prefdistill.storage.digests import file_digest
from prefdistill.storage.records import write_json

logger = logging.getLogger(__name__)


def main(base: Path, adapter: Path, dtype: str, model: Path) -> None:
    """Write the merged model, its configuration, tokenizer and ``merge.json``."""
    from prefdistill.export.merging import write_classifier
    from prefdistill.models.adapter_files import read_adapter

    added, folder = read_adapter(adapter.parent), model.parent
    error = write_classifier(base_folder(base), folder, added.head, added, dtype)
    logger.info("largest rounding error of a weight: %.2e", error.max_abs)
    record = read_manifest(base)
    write_json(
        folder / "merge.json",
        {
            "dtype": dtype,
            "n_merged_modules": len(added.layers),
            "cast_error": asdict(error),
            "base": {key: record[key] for key in ("architecture", "revision")},
            "base_sha256": {
                name: entry["sha256"]
                for name, entry in record["files"].items()
                if name.endswith(".safetensors")
            },
            "adapter_sha256": file_digest(adapter),
            "model_sha256": file_digest(model),
        },
    )


if __name__ == "__main__":
    run_job(snakemake, main)

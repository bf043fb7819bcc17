"""Merge the averaged adapter into the student's base: one plain 16-bit classifier."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.models.manifests import base_folder, read_manifest
from prefdistill.running.job import run_job
from prefdistill.storage.tables import file_digest, write_json

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(manifest: Path, adapter_path: Path, dtype: str, model_out: Path) -> None:
    """Write the merged model, its configuration, tokenizer and ``merge.json``."""
    from prefdistill.export.merging import write_classifier
    from prefdistill.models.adapter_files import read_adapter

    adapter = read_adapter(adapter_path.parent)
    folder = model_out.parent
    error = write_classifier(
        base_folder(manifest), folder, adapter.score, adapter, dtype
    )
    logger.info("largest rounding error of a weight: %.2e", error.max_abs)
    base = read_manifest(manifest)
    write_json(
        folder / "merge.json",
        {
            "dtype": dtype,
            "n_merged_modules": len(adapter.layers),
            "cast_error": asdict(error),
            "base": {key: base[key] for key in ("architecture", "revision")},
            "base_sha256": {
                name: entry["sha256"]
                for name, entry in base["files"].items()
                if name.endswith(".safetensors")
            },
            "adapter_sha256": file_digest(adapter_path),
            "model_sha256": file_digest(model_out),
        },
    )


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            manifest=Path(snakemake.input.base),
            adapter_path=Path(snakemake.input.adapter),
            dtype=snakemake.params.dtype,
            model_out=Path(snakemake.output.model),
        )

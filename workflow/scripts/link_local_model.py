"""Use a model folder that is already on this machine; nothing is copied."""

from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.errors import UserError
from prefdistill.models.manifests import write_manifest
from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(folder: Path, manifest_path: Path) -> None:
    """Check the folder and write a manifest with its absolute path."""
    if not folder.is_dir():
        raise UserError(f"base model path {folder}: no such folder")
    write_manifest(folder, None, manifest_path)


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            folder=Path(snakemake.params.path),
            manifest_path=Path(snakemake.output.manifest),
        )

"""Use a model folder that is already on this machine; nothing is copied."""

from pathlib import Path

from prefdistill.errors import UserError
from prefdistill.models.manifests import write_manifest
from prefdistill.running.job import run_job


def main(path: Path, manifest: Path) -> None:
    """Check the folder and write a manifest with its absolute path."""
    if not path.is_dir():
        raise UserError(f"base model path {path}: no such folder")
    write_manifest(path, None, manifest)


if __name__ == "__main__":
    run_job(snakemake, main)

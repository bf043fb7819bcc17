"""Fetch a model from the Hugging Face hub at a fixed revision.

The download goes straight into the folder of the manifest, which the hub client
resumes after an interruption; only the manifest, written last, is a declared output.
"""

from pathlib import Path

from prefdistill.running.job import run_job


def main(repo: str, revision: str | None, manifest: Path) -> None:
    """Download the revision's commit, then write the manifest."""
    from prefdistill.models.hub_models import download_model
    from prefdistill.models.manifests import write_manifest

    commit = download_model(repo, revision, manifest.parent)
    write_manifest(manifest.parent, commit, manifest)


if __name__ == "__main__":
    run_job(snakemake, main, online=True)

"""Fetch a model from the Hugging Face hub at a fixed revision.

The download goes straight into the folder of the manifest, which the hub client
resumes after an interruption; only the manifest, written last, is a declared output.
A gated model needs a token in the environment variable ``HF_TOKEN``.
"""

import io
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from prefdistill.errors import UserError, disk_fault
from prefdistill.models.manifests import TOKENIZER_FILES, write_manifest
from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)

ALLOWED_FILES = [
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
]
LINE_EVERY_S = 10.0


class Lines(tqdm):
    """A progress bar of whole lines, as other jobs' lines come between its own.

    One every ten seconds, and a last one when it closes.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._due = time.monotonic() + LINE_EVERY_S
        super().__init__(*args, **settings | {"file": io.StringIO()})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Log where the bar stands; ``close`` disables it before it shows it last."""
        if self.disable or time.monotonic() >= self._due:
            self._due = time.monotonic() + LINE_EVERY_S
            logger.info("%s", msg or str(self).strip())
        return True


def main(repo: str, revision: str | None, manifest_path: Path) -> None:
    """Resolve the revision to a commit, download that commit, write the manifest."""
    import huggingface_hub

    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs signed addresses
    token = os.environ.get("HF_TOKEN") or False
    folder = manifest_path.parent
    try:
        commit = huggingface_hub.model_info(repo, revision=revision, token=token).sha
        logger.info("%s at commit %s", repo, commit)
        huggingface_hub.snapshot_download(
            repo,
            revision=commit,
            local_dir=folder,
            allow_patterns=ALLOWED_FILES,
            token=token,
            tqdm_class=Lines,
        )
    except Exception as error:  # the client has a dozen kinds, with no common base
        if disk_fault(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model {repo} at revision {revision}: {reason} (a gated model needs its "
            "licence accepted and HF_TOKEN set)"
        ) from error
    write_manifest(folder, commit, manifest_path)


if __name__ == "__main__":
    with run_job(snakemake, online=True):
        main(
            repo=snakemake.params.repo,
            revision=snakemake.params.revision,
            manifest_path=Path(snakemake.output.manifest),
        )

"""Download a model from the Hugging Face hub at a fixed commit."""

import io
import logging
import os
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prefdistill.errors import UserError, disk_fault
from prefdistill.models.manifests import TOKENIZER_FILES

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
    """A progress bar that logs a line every ten seconds, and one when it closes.

    Jobs share the terminal, where lines of other jobs would break a redrawn bar.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._due = time.monotonic() + LINE_EVERY_S
        super().__init__(*args, **settings | {"file": io.StringIO()})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Log the bar's state, if a line is due."""
        # `close` disables the bar before it shows its last line.
        if self.disable or time.monotonic() >= self._due:
            self._due = time.monotonic() + LINE_EVERY_S
            logger.info("%s", msg or str(self).strip())
        return True


def download_model(repo: str, revision: str | None, folder: Path) -> str:
    """Resolve a revision to a commit, and download the files of that commit.

    An interrupted download resumes. A gated model needs a token in the environment
    variable ``HF_TOKEN``.

    Args:
        repo: ``owner/name``.
        revision: A branch, tag or commit; the default branch if not given.
        folder: Where the files go.

    Returns:
        The commit's hash.

    Raises:
        UserError: If the hub refuses or cannot be reached.
    """
    import huggingface_hub

    # At level INFO it logs signed addresses.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    token = os.environ.get("HF_TOKEN") or False
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
    except Exception as error:  # the client's exceptions have no common base class
        if disk_fault(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model {repo} at revision {revision}: {reason} (a gated model needs its "
            "licence accepted and HF_TOKEN set)"
        ) from error
    return commit

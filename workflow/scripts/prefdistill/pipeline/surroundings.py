"""Give Snakemake and its jobs what they look up in the environment.

That is a user's name and a folder for caches, where none is there, and the project's
folder.
A container may run as a user without an entry in passwd, or with a read-only home.
Imported by the Snakefile, so it stays light: the standard library.
"""

import getpass
import os
import tempfile
from pathlib import Path

from prefdistill.storage.digests import SNAKEMAKE_FOLDER


def name_user() -> None:
    """Name the user: Snakemake and torch fail for one without an entry in passwd."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def name_root(root: Path) -> None:
    """Name the project's folder: a cluster's jobs find profiles/slurm by it.

    Args:
        root: The folder that holds `workflow` and `profiles`.
    """
    os.environ["PREFDISTILL_ROOT"] = str(root)


def find_caches(folder: Path) -> None:
    """Put caches into a folder of the run if the home folder cannot be written to.

    Models that were downloaded before stay where they are found.

    Args:
        folder: The folder that Snakemake works in.
    """
    home = os.environ.get("HOME") or "/dev/null"
    usual = Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache")
    try:
        usual.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=usual):
            return
    except OSError:
        pass
    caches = (folder / SNAKEMAKE_FOLDER / "caches").absolute()
    if (usual / "huggingface").is_dir():
        os.environ.setdefault("HF_HOME", str(usual / "huggingface"))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        os.environ[name] = str(caches)
    for name in ("TRITON_HOME", "MPLCONFIGDIR"):
        os.environ.setdefault(name, str(caches))

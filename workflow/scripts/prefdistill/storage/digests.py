"""Hash files, each large one once as long as nobody touches it; tell a change.

Imported by the Snakefile, so it stays light: the standard library.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prefdistill.errors import UserError

# Snakemake's folder where it works. Where there is none, nothing is kept.
SNAKEMAKE_FOLDER = Path(".snakemake")
KEPT = SNAKEMAKE_FOLDER / "prefdistill.digests"
# A smaller file is hashed faster than its kept digest is read.
LEAST_KEPT_BYTES = 1 << 20
# A file system's clock may tick once a second. A file that was written in the same tick
# in which it was hashed may have been written after that.
TICK_S = 2.0


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hex digits.

    The digest of a large file is kept with the file's inode, size and times of change.
    It holds as long as these do. The time of change of the inode (ctime) is among them,
    so a file that was replaced or edited is hashed again, whatever mtime it was given.
    """
    with open(path, "rb") as handle:
        before = _stamp(os.fstat(handle.fileno()))
        store = _store(path) if before["size"] >= LEAST_KEPT_BYTES else None
        if store is not None and (known := _kept(store, before)):
            return known
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        after = _stamp(os.fstat(handle.fileno()))
    changed_ns = max(after["mtime_ns"], after["ctime_ns"])
    settled = before == after and abs(time.time() - changed_ns / 1e9) > TICK_S
    if store is not None and settled:
        _keep(store, after, digest)
    return digest


def _stamp(found: os.stat_result) -> dict[str, int]:
    """Identify a file's content without reading it, the same on every host."""
    return {
        "inode": found.st_ino,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        # Tools can set a file's time of modification, but not that of its last change.
        "ctime_ns": found.st_ctime_ns,
    }


@contextmanager
def unchanged(*paths: Path) -> Iterator[None]:
    """Refuse files that were changed or replaced while the body read them.

    Raises:
        UserError: If a file is another one after the body than before it, even if the
            body failed: a half-written file is often no valid one.
    """

    def stamps() -> list[dict[str, int] | None]:
        return [_stamp(os.stat(path)) if path.exists() else None for path in paths]

    before = stamps()
    try:
        yield
    finally:
        for path, one, other in zip(paths, before, stamps(), strict=True):
            if one != other:
                raise UserError(
                    f"{path}: changed while it was read; repeat the command once "
                    "nothing writes to it"
                )


def _store(path: str | Path) -> Path | None:
    """Name the file that keeps a path's digest; None where none is kept."""
    if not SNAKEMAKE_FOLDER.is_dir():
        return None
    name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:32]
    return KEPT / f"{name}.json"


def _kept(store: Path, stamp: dict[str, int]) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(store.read_text(encoding="utf-8"))
        if kept["stamp"] == stamp and len(kept["sha256"]) == 64:
            return kept["sha256"]
    return None


def _keep(store: Path, stamp: dict[str, int], digest: str) -> None:
    """Keep a digest; it only saves time, so it is not flushed and a fault is let go."""
    temporary = store.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
    with suppress(OSError):
        store.parent.mkdir(exist_ok=True)
        temporary.write_text(json.dumps({"stamp": stamp, "sha256": digest}))
        os.replace(temporary, store)

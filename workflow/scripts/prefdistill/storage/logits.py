"""Read and write logits of rows, in one or both orders of the two answers."""

import json
import math
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.classes import CLASSES
from prefdistill.errors import UserError
from prefdistill.storage.joining import find_rows
from prefdistill.storage.whole_files import (
    atomic_path,
    check_unpacked,
    not_finite,
    reading,
)

# Orders in which a row can show its two answers.
VIEWS = ("AB", "BA")
LOGITS_MEMBERS = ("ids", "split", "logits", "meta")


@dataclass(frozen=True)
class Logits:
    """Three-class logits of rows, in one or both orders of the answers.

    Attributes:
        ids: ``(n,)`` unicode row ids, unique.
        split: ``(n,)`` unicode: train, dev, select, test or unlabelled.
        logits: ``(n, n_views, 3)`` float32, classes as shown: (first answer, second
            answer, tie).
        meta: What the logits were made with; values that JSON can hold. ``views`` names
            the order that each view shows, AB or BA. A file from ``infer_logits`` also
            has fingerprints of adapter, base and template.

    Raises:
        UserError: If the arrays do not fit each other or the views.
    """

    ids: np.ndarray
    split: np.ndarray
    logits: np.ndarray
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        n_rows = len(self.ids)
        if self.ids.dtype.kind != "U" or self.split.dtype.kind != "U":
            raise UserError("ids or split are not texts")
        if self.logits.dtype.kind != "f":
            raise UserError(f"logits are {self.logits.dtype}, not floating")
        if self.logits.ndim != 3 or self.logits.shape[2] != 3:
            raise UserError(f"logits have shape {self.logits.shape}, not (n, views, 3)")
        if self.logits.shape[0] != n_rows or self.split.shape != (n_rows,):
            raise UserError("ids, split and logits differ in their number of rows")
        views = self.meta.get("views", ())
        n_views = len(set(views) & set(VIEWS))  # equals len(views) if known and unique
        if not len(views) == n_views == self.logits.shape[1]:
            raise UserError(
                f"logits have {self.logits.shape[1]} views, meta names {list(views)}"
            )
        if len(np.unique(self.ids)) != n_rows:
            raise UserError("a row id occurs twice")
        if not np.isfinite(self.logits).all():
            raise UserError("a logit is not finite")

    @property
    def views(self) -> list[str]:
        """Return the order that each view shows, ``AB`` or ``BA``."""
        return list(self.meta["views"])

    def replace_logits(self, logits: np.ndarray) -> "Logits":
        """Return the same rows with other logits, of the same shape."""
        return replace(self, logits=logits.astype(np.float32))

    def select(self, rows: np.ndarray) -> "Logits":
        """Return the rows that a boolean mask or an index array selects."""
        return replace(
            self, ids=self.ids[rows], split=self.split[rows], logits=self.logits[rows]
        )

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Find the row of each given id.

        Args:
            ids: ``(n_wanted,)`` unicode ids.

        Returns:
            ``(n_wanted,)`` int64 rows.

        Raises:
            UserError: If an id is missing.
        """
        rows = find_rows(self.ids, ids)
        missing = ids[rows < 0]
        if len(missing):
            raise UserError(f"{len(missing)} ids have no logits, such as {missing[0]}")
        return rows


def _check_archive(path: str | Path) -> None:
    """Check the members of an npz by their headers, before any is unpacked.

    Raises:
        ValueError: If a member is not as ``write_logits`` writes it, or would fill the
            memory.
    """
    with zipfile.ZipFile(path) as archive:
        members = {each.filename: each for each in archive.infolist()}
        if set(members) != {f"{name}.npy" for name in LOGITS_MEMBERS}:
            raise ValueError(f"members are {', '.join(sorted(members))[:200]}")
        n_unpacked = sum(each.file_size for each in members.values())
        check_unpacked(n_unpacked, Path(path).stat().st_size)
        for name, member in members.items():
            with archive.open(member) as handle:
                version = np.lib.format.read_magic(handle)
                if version != (1, 0):
                    raise ValueError(f"{name} has npy version {version}")
                shape, _, dtype = np.lib.format.read_array_header_1_0(handle)
                n_bytes = math.prod(shape) * dtype.itemsize
                if dtype.hasobject or n_bytes + handle.tell() != member.file_size:
                    raise ValueError(f"{name} is not an array of {shape} {dtype}")


def write_logits(path: str | Path, scores: Logits) -> None:
    """Write logits as a compressed npz without pickle.

    Raises:
        UserError: If a logit is NaN or infinite; nothing is written then.
    """
    if not np.isfinite(scores.logits.astype(np.float32)).all():
        raise not_finite(path, "a logit")
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(
            handle,
            ids=scores.ids.astype(np.str_),
            split=scores.split.astype(np.str_),
            logits=scores.logits.astype(np.float32),
            meta=np.array(
                json.dumps({"classes": CLASSES, **scores.meta}, sort_keys=True)
            ),
        )


def read_logits(path: str | Path) -> Logits:
    """Read a file that ``write_logits`` wrote; pickled content is refused.

    Raises:
        UserError: If the file is not such an npz, or its content is inconsistent.
    """
    with reading(path, "a whole logits file"):
        _check_archive(path)
        with np.load(path, allow_pickle=False) as archive:
            return Logits(
                ids=archive["ids"],
                split=archive["split"],
                logits=archive["logits"],
                meta=json.loads(str(archive["meta"])),
            )

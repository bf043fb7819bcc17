"""Files between stages: every writer is atomic, every reader checks what it reads.

Nothing here imports torch; ``tensors`` has the files of torch tensors.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefdistill.classes import CLASSES
from prefdistill.errors import UserError
from prefdistill.storage.joining import find_rows
from prefdistill.storage.whole_files import (
    atomic_path,
    check_unpacked,
    reading,
    write_text,
)

VIEWS = ("AB", "BA")
TARGET_COLUMNS = ("winner_model_a", "winner_model_b", "winner_tie")

TEXT_FIELDS = [
    pa.field("prompt", pa.list_(pa.string())),
    pa.field("response_a", pa.list_(pa.string())),
    pa.field("response_b", pa.list_(pa.string())),
]
TARGET_FIELDS = [pa.field(name, pa.int8()) for name in TARGET_COLUMNS]
PAIRS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("source", pa.string()),
        *TEXT_FIELDS,
        *TARGET_FIELDS,
        pa.field("model_a", pa.string()),
        pa.field("model_b", pa.string()),
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),
    ]
)
CLEAN_SCHEMA = PAIRS_SCHEMA.append(pa.field("group", pa.string()))
FOLD_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("split", pa.string()),
        pa.field("group", pa.string()),
        *TEXT_FIELDS,
        *TARGET_FIELDS,
    ]
)


LOGITS_MEMBERS = ("ids", "split", "logits", "meta")
N_PROBED_ROWS = 16  # of a parquet file, to learn what a row takes


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_json(path: str | Path, value: Any) -> None:
    """Write a value (dataclasses and numpy included) as strict, indented JSON.

    Raises:
        UserError: If a number is NaN or infinite; nothing is written then.
    """
    try:
        text = json.dumps(
            value, indent=2, default=_plain, allow_nan=False, ensure_ascii=False
        )
    except ValueError as error:
        raise _not_finite(path, "a value") from error
    write_text(path, text + "\n")


def read_json(path: str | Path, keys: Sequence[str] = ()) -> Any:
    """Read a JSON file, which is an object if it must have keys.

    Raises:
        UserError: If the file is not whole JSON, lacks a key, or holds NaN or infinity.
    """
    with reading(path, "whole JSON"):
        text = Path(path).read_text(encoding="utf-8")
        value = json.loads(text, parse_constant=_refuse_constant)
        if keys and not isinstance(value, dict):
            raise ValueError("is no object")
        missing = [key for key in keys if key not in value]
        if missing:
            raise ValueError(f"key {missing[0]} is missing")
        return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"a value is {name}")


def _not_finite(path: str | Path, what: str) -> UserError:
    return UserError(f"{path}: not written, as {what} is NaN or infinite")


def write_table(path: str | Path, table: pa.Table, schema: pa.Schema) -> None:
    """Write a parquet file whose columns are exactly those of ``schema``.

    Raises:
        UserError: If a number is NaN or infinite; nothing is written then.
    """
    table = table.select(schema.names).cast(schema)
    for field in schema:
        if pa.types.is_floating(field.type):
            finite = pc.is_finite(table.column(field.name))
            if pc.any(pc.invert(finite)).as_py():
                raise _not_finite(path, f"a value of column {field.name}")
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def open_table(path: str | Path) -> pq.ParquetFile:
    """Open a parquet file for reading in parts.

    Raises:
        UserError: If the file is not whole.
    """
    with reading(path, "a whole parquet file"):
        file = pq.ParquetFile(path)
        rows = file.metadata.num_rows
        first = next(file.iter_batches(N_PROBED_ROWS), None)
        if first is not None:
            each = first.nbytes / max(first.num_rows, 1)
            check_unpacked(int(rows * max(each, 1)), Path(path).stat().st_size)
        return file


def read_table(
    path: str | Path,
    schema: pa.Schema | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read a parquet file, and check its columns if a schema is given.

    Args:
        path: The file.
        schema: What its columns must be.
        columns: Without a schema, the columns to read.

    Raises:
        UserError: If the file is not parquet, its columns differ, or an id is null.
    """
    with open_table(path) as file, reading(path, "a whole parquet file"):
        names = schema.names if schema else columns
        found = file.schema_arrow.names
        if schema and found != names:
            raise ValueError(f"columns are {found}, expected {names}")
        missing = [name for name in names or () if name not in found]
        if missing:
            raise ValueError(f"column {missing[0]} is missing")
        for field in schema or ():
            kind = file.schema_arrow.field(field.name).type
            if kind != field.type:
                raise ValueError(
                    f"column {field.name} is {kind}, expected {field.type}"
                )
        table = file.read(names)
        if "id" in table.column_names and table.column("id").null_count:
            raise ValueError("an id is null")
        return table.cast(schema) if schema else table


def table_targets(table: pa.Table) -> np.ndarray:
    """Target distributions of labelled rows: ``(n, 3)`` float32 (A, B, tie).

    Raises:
        UserError: If a row is unlabelled or does not sum to one.
    """
    targets = np.stack(
        [
            table.column(name).to_numpy(zero_copy_only=False).astype(np.float32)
            for name in TARGET_COLUMNS
        ],
        axis=1,
    )
    if len(targets) and not (targets.sum(axis=1) == 1).all():
        row = int(np.flatnonzero(targets.sum(axis=1) != 1)[0])
        raise UserError(
            f"row id {table.column('id')[row].as_py()}: the target columns "
            f"{', '.join(TARGET_COLUMNS)} are {targets[row].tolist()}, not one-hot"
        )
    return targets


@dataclass(frozen=True)
class Logits:
    """Three-class logits of rows in one or both orders.

    Attributes:
        ids: ``(n,)`` unicode row ids, unique.
        split: ``(n,)`` unicode: train, dev, select, test or unlabelled.
        logits: ``(n, n_views, 3)`` float32, classes as shown: (first answer, second
            answer, tie).
        meta: JSON-able provenance. ``views`` names the order that each view shows, AB
            or BA; a file from ``infer_logits`` has fingerprints of adapter, base and
            template as well.

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
            raise UserError("ids or split are no texts")
        if self.logits.dtype.kind != "f":
            raise UserError(f"logits are {self.logits.dtype}, not floating")
        if self.logits.ndim != 3 or self.logits.shape[2] != 3:
            raise UserError(f"logits have shape {self.logits.shape}, not (n, views, 3)")
        if self.logits.shape[0] != n_rows or self.split.shape != (n_rows,):
            raise UserError("ids, split and logits differ in their number of rows")
        views = self.meta.get("views", ())
        n_views = len(set(views) & set(VIEWS))  # each known, and none twice
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
        """The order that each view shows, ``AB`` or ``BA``."""
        return list(self.meta["views"])

    def replace_logits(self, logits: np.ndarray) -> "Logits":
        """The same rows with other logits."""
        return replace(self, logits=logits.astype(np.float32))

    def select(self, rows: np.ndarray) -> "Logits":
        """The rows of a boolean mask or an index array."""
        return replace(
            self, ids=self.ids[rows], split=self.split[rows], logits=self.logits[rows]
        )

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Positions of the given ids.

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
        ValueError: If one is not what ``write_logits`` writes, or unpacks to too much.
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
        raise _not_finite(path, "a logit")
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
    """Read what ``write_logits`` wrote; pickled content is refused.

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


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

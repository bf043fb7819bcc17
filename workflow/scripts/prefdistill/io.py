"""Files between stages: every writer is atomic, every reader checks what it reads.

Nothing here imports torch; ``tensors`` has the files of torch tensors.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefdistill.files import atomic_path, reading, write_text
from prefdistill.job import UserError

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


LOGIT_COLUMNS = ("logit_first", "logit_second", "logit_tie")
PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("split", pa.string()),
        *[pa.field(name, pa.float32()) for name in LOGIT_COLUMNS],
    ]
)


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


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: If the file is not whole JSON.
    """
    with reading(path, "whole JSON"):
        return json.loads(Path(path).read_text(encoding="utf-8"))


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
        return pq.ParquetFile(path)


def read_table(path: str | Path, schema: pa.Schema | None = None) -> pa.Table:
    """Read a parquet file, and check its columns if a schema is given.

    Raises:
        UserError: If the file is not parquet, or its columns differ.
    """
    with reading(path, "a whole parquet file"):
        table = pq.read_table(path)
    if schema is None:
        return table
    if table.schema.names != schema.names:
        raise UserError(
            f"{path}: columns are {table.schema.names}, expected {schema.names}"
        )
    return table.cast(schema)


def write_predictions(
    path: Path, ids: np.ndarray, split: np.ndarray, logits: np.ndarray
) -> None:
    """Write one view's logits, ``(n, 3)`` as shown, with ids and splits."""
    arrays = [
        pa.array(column, field.type)
        for column, field in zip(
            [ids, split, *logits.T], PREDICTION_SCHEMA, strict=True
        )
    ]
    table = pa.Table.from_arrays(arrays, schema=PREDICTION_SCHEMA)
    write_table(path, table, PREDICTION_SCHEMA)


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
    """Cached three-class logits of rows in both orders.

    Attributes:
        ids: ``(n,)`` unicode row ids, unique.
        split: ``(n,)`` unicode: train, dev, select, test or unlabelled.
        logits: ``(n, n_views, 3)`` float32, classes as shown: (first answer, second
            answer, tie). View 0 shows (A, B), view 1 shows (B, A).
        meta: JSON-able provenance: fingerprints of adapter, base, template, length.
    """

    ids: np.ndarray
    split: np.ndarray
    logits: np.ndarray
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        n_rows = len(self.ids)
        if self.logits.ndim != 3 or self.logits.shape[2] != 3:
            raise UserError(f"logits have shape {self.logits.shape}, not (n, views, 3)")
        if self.logits.shape[0] != n_rows or self.split.shape != (n_rows,):
            raise UserError("ids, split and logits differ in their number of rows")
        if len(np.unique(self.ids)) != n_rows:
            raise UserError("a row id occurs twice")
        if not np.isfinite(self.logits).all():
            raise UserError("a logit is not finite")

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
        position = {name: row for row, name in enumerate(self.ids.tolist())}
        missing = [name for name in ids if name not in position]
        if missing:
            raise UserError(f"{len(missing)} ids have no logits, such as {missing[0]}")
        return np.array([position[name] for name in ids], dtype=np.int64)


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
            meta=np.array(json.dumps(scores.meta, sort_keys=True)),
        )


def read_logits(path: str | Path) -> Logits:
    """Read what ``write_logits`` wrote; pickled content is refused.

    Raises:
        UserError: If the file is not such an npz, or its content is inconsistent.
    """
    with (
        reading(path, "a whole logits file"),
        np.load(path, allow_pickle=False) as archive,
    ):
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

"""Rows packed end to end into bins of a token budget, instead of padded batches."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PackedBatch:
    """Rows laid end to end.

    Attributes:
        input_ids: ``(1, n_tokens)`` int64.
        position_ids: ``(1, n_tokens)`` int64, starting again at 0 with every row.
        cu_lengths: ``(n_rows + 1,)`` int64: row i is ``[cu[i], cu[i + 1])``.
        last: ``(n_rows,)`` int64 indices of the rows' last tokens.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    cu_lengths: np.ndarray
    last: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, ``(n_rows,)`` int64."""
        return np.diff(self.cu_lengths)


def pack(lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Put rows into bins by best-fit decreasing.

    The longest rows come first, each into the fullest bin that still has room; this
    uses at most 11/9 of the fewest possible bins. A row longer than the budget gets a
    bin of its own. Deterministic.

    Args:
        lengths: ``(n,)`` integer tokens of each row.
        token_budget: Most tokens a bin may hold.

    Returns:
        One int64 array of row indices a bin; together every row once.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    bins: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (room left, bin), sorted
    for row in order.tolist():
        length = int(lengths[row])
        place = bisect_left(space, (length, -1))
        if place < len(space):
            room, target = space.pop(place)
        else:
            room, target = max(token_budget, length), len(bins)
            bins.append([])
        bins[target].append(row)
        left = (room - length, target)
        space.insert(bisect_left(space, left), left)
    return [np.array(rows, dtype=np.int64) for rows in bins]


def collate(rows: Sequence[np.ndarray]) -> PackedBatch:
    """Lay token arrays end to end, in the order given."""
    cu_lengths = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return PackedBatch(
        input_ids=np.concatenate(rows).astype(np.int64)[None],
        position_ids=np.concatenate([np.arange(len(row)) for row in rows])[None],
        cu_lengths=cu_lengths.astype(np.int64),
        last=cu_lengths[1:].astype(np.int64) - 1,
    )


def pad_batch(batch: PackedBatch, n_tokens: int) -> PackedBatch:
    """Append one dummy row, so that the batch has ``n_tokens``; nobody scores it."""
    missing = n_tokens - batch.input_ids.shape[1]
    if missing <= 0:
        return batch
    zeros = np.zeros((1, missing), dtype=np.int64)
    return PackedBatch(
        input_ids=np.concatenate([batch.input_ids, zeros], axis=1),
        position_ids=np.concatenate([batch.position_ids, zeros], axis=1),
        cu_lengths=np.append(batch.cu_lengths, n_tokens),
        last=batch.last,
    )


def next_shape(n_tokens: int) -> int:
    """The smallest of 256, 384, 512, 768, 1024, 1536, ... that is not below a length.

    Compiled attention is built once a shape; with these there are few, and a bin that
    nearly fills its budget wastes nearly nothing.
    """
    shape = 256
    while shape < n_tokens:
        shape = shape * 3 // 2 if shape & (shape - 1) == 0 else shape * 4 // 3
    return shape

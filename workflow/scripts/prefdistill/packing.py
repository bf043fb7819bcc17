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
        cu_lengths: ``(n_rows + 1,)`` int64: row i is ``[cu[i], cu[i + 1])``; one more
            where a dummy row follows.
        last: ``(n_rows,)`` int64 indices of the rows' last tokens, dummy left out.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    cu_lengths: np.ndarray
    last: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, the dummy's last, ``(n_rows,)`` int64."""
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


def collate(rows: Sequence[np.ndarray], step: int = 1) -> PackedBatch:
    """Lay token arrays end to end, in the order given.

    Args:
        rows: Tokens of each row.
        step: A dummy row, which nobody scores, fills the batch up to a multiple of it.
    """
    ends = np.cumsum([len(row) for row in rows])
    last = ends - 1
    missing = -int(ends[-1]) % step
    if missing:
        rows = [*rows, np.zeros(missing, dtype=np.int64)]
        ends = np.append(ends, ends[-1] + missing)
    return PackedBatch(
        input_ids=np.concatenate(rows).astype(np.int64)[None],
        position_ids=np.concatenate([np.arange(len(row)) for row in rows])[None],
        cu_lengths=np.concatenate([[0], ends]).astype(np.int64),
        last=last.astype(np.int64),
    )


def shape_step(token_budget: int, device_type: str) -> int:
    """What batches' lengths are rounded up to: on a GPU a quarter of the budget.

    Compiled layers are built once a shape. Of a step's bins only the last is much
    emptier than the budget, so little is lost, and four shapes are all there are (more
    below 2048 tokens, as a block of attention has 128).
    """
    if device_type != "cuda":
        return 1
    return -(-token_budget // (4 * 128)) * 128

"""Pack rows end to end into bins of a token budget, instead of padded batches.

The two orders of a pair begin with the same tokens, up to the first answer. A bin that
holds both orders computes these tokens once: they attend to the same tokens in either
row, so their states are the same.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Tokens of a pass on a CPU: more are not faster, and slower once they leave its caches.
CPU_TOKENS = 2048


@dataclass(frozen=True)
class PackedBatch:
    """Hold rows laid end to end; see ``sight`` for two that share their beginning.

    A dummy row may follow the others, to fill the batch up; nobody scores it.

    Attributes:
        input_ids: ``(1, n_tokens)`` int64.
        position_ids: ``(1, n_tokens)`` int64 positions of tokens in their rows, from 0.
        cu_lengths: Borders of the rows, the dummy row included, int64: row i lies in
            ``[cu[i], cu[i + 1])``.
        last: ``(n_rows,)`` int64 places of the rows' last tokens, without the dummy's.
        shared: For each row, the dummy row included, int64: how many tokens of the row
            before it begins with. They are not laid out again.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    cu_lengths: np.ndarray
    last: np.ndarray
    shared: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens laid out for each row, the dummy row included, int64."""
        return np.diff(self.cu_lengths)


class Sight(NamedTuple):
    """Hold what each token of a batch may see: three ``(n_tokens,)`` int32 arrays.

    A token sees the places from ``first`` to ``last``, its own included. ``position``
    is its number in its row.
    """

    position: np.ndarray
    first: np.ndarray
    last: np.ndarray


def sight(lengths: np.ndarray, shared: np.ndarray) -> Sight:
    """Find where tokens stand in their rows, and what they may see.

    A row lies forwards. If the next row shares its beginning, its own tokens lie
    backwards before the common ones: rows ``p q a b`` and ``p q c d`` are laid out as

        b a p q c d

    So the tokens that precede a token in its row always fill one stretch of places, as
    in a batch without common tokens.

    Args:
        lengths: ``(n_rows,)`` integer tokens laid out for each row.
        shared: ``(n_rows,)`` integer tokens of the row before it that a row begins
            with, never all of it. The row before such a row shares none itself.
    """
    ends = np.cumsum(lengths, dtype=np.int32)
    next_shared = np.append(shared, 0)[1:].astype(np.int32)
    starts = ends - lengths
    origins = np.where(next_shared > 0, ends - next_shared, starts - shared)
    place = np.arange(ends[-1], dtype=np.int32)
    origin = np.repeat(origins.astype(np.int32), lengths)
    end = np.repeat(ends, lengths)
    backwards = place < origin
    return Sight(
        position=np.where(backwards, end - 1 - place, place - origin),
        first=np.minimum(place, origin),
        last=np.where(backwards, end - 1, place),
    )


def _units(
    lengths: np.ndarray, common: np.ndarray, most: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Join two rows with a common beginning if they have at most ``most`` tokens.

    Returns:
        Row indices of each unit of one or two rows; and the units' tokens, common ones
        counted once, ``(n_units,)`` int64.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    with_next = np.append(common, 0)[1:]
    of_both = lengths + np.append(lengths, 0)[1:] - with_next
    takes_next = (with_next > 0) & (of_both <= most)
    heads = np.flatnonzero(~np.append(False, takes_next)[:-1])
    units = np.split(np.arange(len(lengths)), heads[1:])
    return units, np.where(takes_next, of_both, lengths)[heads]


def pack(
    lengths: np.ndarray, token_budget: int, common: np.ndarray | None = None
) -> list[np.ndarray]:
    """Put rows into bins by best-fit decreasing.

    The longest rows come first, each into the fullest bin that still has room. This
    takes at most 11/9 of the smallest possible number of bins. Two rows with a common
    beginning go together if a bin can hold them. A row longer than the budget gets a
    bin of its own. The result is deterministic.

    Args:
        lengths: ``(n,)`` integer tokens of each row.
        token_budget: Most tokens a bin may hold, common ones counted once.
        common: ``(n,)`` integer tokens that a row may share with the row before it; see
            ``sight``. None for none.

    Returns:
        One int64 array of row indices per bin, for ``collate`` and ``shared_tokens``;
        every row is in one of them.
    """
    common = np.zeros_like(lengths) if common is None else common
    units, sizes = _units(lengths, common, token_budget)
    bins: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (room left, bin), sorted
    for index in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[index])
        place = bisect_left(space, (size, -1))
        if place < len(space):
            room, target = space.pop(place)
        else:
            room, target = max(token_budget, size), len(bins)
            bins.append([])
        bins[target] += units[index].tolist()
        left = (room - size, target)
        space.insert(bisect_left(space, left), left)
    return [np.array(rows, dtype=np.int64) for rows in bins]


def pack_shares(
    lengths: np.ndarray, token_budget: int, common: np.ndarray, n_shares: int
) -> list[list[np.ndarray]]:
    """Share out rows to processes by tokens, then ``pack`` each share.

    The longest rows come first, each to the share with the fewest tokens. Two rows with
    a common beginning go together unless they exceed the budget or an even share. Whole
    bins could not be shared out as evenly, as a step has few of them. The result is
    deterministic.

    Args:
        lengths: ``(n,)`` integer tokens of each row.
        token_budget: Most tokens a bin may hold, as for ``pack``.
        common: ``(n,)`` integer tokens shared with the row before, as for ``pack``.
        n_shares: Number of processes; with one, the bins are those of ``pack``.

    Returns:
        Bins of each share; every row is in one bin. A share has no bin where there are
        too few rows.
    """
    even = int(lengths.sum() - common.sum()) // n_shares
    units, sizes = _units(lengths, common, min(token_budget, even))
    shares: list[list[int]] = [[] for _ in range(n_shares)]
    loads = [0] * n_shares
    for index in np.argsort(-sizes, kind="stable").tolist():
        least = loads.index(min(loads))
        shares[least] += units[index].tolist()
        loads[least] += int(sizes[index])
    packed = []
    for share in shares:
        rows = np.array(sorted(share), dtype=np.int64)
        bins = pack(lengths[rows], token_budget, shared_tokens(rows, common))
        packed.append([rows[members] for members in bins])
    return packed


def shared_tokens(rows: np.ndarray, common: np.ndarray) -> np.ndarray:
    """Count the tokens that each row of a bin shares with the row before it.

    Args:
        rows: ``(n,)`` row indices in the order of the bin.
        common: Those of all rows, as ``pack`` takes it.

    Returns:
        ``(n,)`` int64.
    """
    follows = np.diff(rows, prepend=-2) == 1
    return np.where(follows, common[rows], 0).astype(np.int64)


def collate(
    rows: Sequence[np.ndarray], step: int = 1, shared: np.ndarray | None = None
) -> PackedBatch:
    """Lay token arrays end to end, in the order given.

    Args:
        rows: Tokens of each row, whole.
        step: A dummy row fills the batch up to a multiple of this many tokens.
        shared: ``(n_rows,)`` from ``shared_tokens``; None for none.
    """
    shared = np.zeros(len(rows), np.int64) if shared is None else shared
    pieces = []
    for row, n_before, n_after in zip(rows, shared, [*shared[1:], 0], strict=True):
        if n_after:
            pieces += [row[n_after:][::-1], row[:n_after]]
        else:
            pieces.append(row[n_before:])
    lengths = np.array([len(row) for row in rows]) - shared
    missing = -int(lengths.sum()) % step
    if missing:
        pieces.append(np.zeros(missing, dtype=np.int64))
        lengths, shared = np.append(lengths, missing), np.append(shared, 0)
    ends = np.cumsum(lengths)
    last = np.where(np.append(shared, 0)[1:] > 0, ends - lengths, ends - 1)
    return PackedBatch(
        input_ids=np.concatenate(pieces).astype(np.int64)[None],
        position_ids=sight(lengths, shared).position[None].astype(np.int64),
        cu_lengths=np.concatenate([[0], ends]).astype(np.int64),
        last=last[: len(rows)].astype(np.int64),
        shared=shared,
    )


def shape_step(token_budget: int, device_type: str, n_shapes: int = 4) -> int:
    """Return what batches' lengths are rounded up to; on a GPU a part of the budget.

    Compiled layers are built once for each shape, which takes seconds. Only the last of
    a step's bins has much less than the budget, so four shapes cost little padding. (A
    budget that is not a multiple of 128, attention's block size, needs more shapes.)
    """
    if device_type != "cuda":
        return 1
    return -(-token_budget // (n_shapes * 128)) * 128

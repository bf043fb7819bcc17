"""Rows packed end to end into bins of a token budget, instead of padded batches.

The two orders of a pair begin with the same tokens, up to the first answer. A bin that
holds both has them once: what these tokens attend to is the same in either row, and so
is all that is computed of them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Tokens of a pass on a CPU: more are no faster, and slower once they leave its caches.
CPU_TOKENS = 2048


@dataclass(frozen=True)
class PackedBatch:
    """Rows laid end to end; see ``sight`` for two that share their beginning.

    Attributes:
        input_ids: ``(1, n_tokens)`` int64.
        position_ids: ``(1, n_tokens)`` int64, of the tokens in their rows, from 0.
        cu_lengths: ``(n_rows + 1,)`` int64: what is laid out for row i is
            ``[cu[i], cu[i + 1])``; one more where a dummy row follows.
        last: ``(n_rows,)`` int64 indices of the rows' last tokens, dummy left out.
        shared: Of each row, the dummy's last, int64: how many tokens of the row before
            it begins with, which are not laid out again.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    cu_lengths: np.ndarray
    last: np.ndarray
    shared: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens laid out for each row, the dummy's last, ``(n_rows,)`` int64."""
        return np.diff(self.cu_lengths)


class Sight(NamedTuple):
    """What tokens may see, by their place in a batch: three ``(n_tokens,)`` int32.

    A token sees the places from ``first`` to ``last``, itself included; ``position`` is
    its number in its row.
    """

    position: np.ndarray
    first: np.ndarray
    last: np.ndarray


def sight(lengths: np.ndarray, shared: np.ndarray) -> Sight:
    """Where tokens stand in their rows, and what they see.

    A row lies forwards. Where the next one shares its beginning, its own tokens lie
    backwards before the common ones: rows ``p q a b`` and ``p q c d`` are laid out as

        b a p q c d

    So what a token may see, all that precedes it in its row, is always one stretch of
    places, as in a batch without common tokens.

    Args:
        lengths: ``(n_rows,)`` integer tokens laid out for each row.
        shared: ``(n_rows,)`` integer tokens of the row before it that a row begins
            with, never all of them; a row before such a one shares none itself.
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
    """Rows, two with a common beginning as one if together at most ``most`` tokens.

    Returns:
        Row indices of each unit; ``(n_units,)`` int64 tokens, common ones counted once.
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

    The longest come first, each into the fullest bin that still has room; this uses at
    most 11/9 of the fewest possible bins. Two rows with a common beginning go together
    if a bin can hold them. A row longer than the budget gets a bin of its own.
    Deterministic.

    Args:
        lengths: ``(n,)`` integer tokens of each row.
        token_budget: Most tokens a bin may hold, common ones counted once.
        common: ``(n,)`` integer tokens that a row may share with the row before it; see
            ``sight``. None for none.

    Returns:
        One int64 array of row indices a bin, such as ``collate`` takes with
        ``shared_tokens``; together every row once.
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

    The longest come first, each to the share with the fewest tokens. Two rows with a
    common beginning go together unless they exceed the budget or an even share. (Whole
    bins cannot be shared out as evenly: a step has few.) Deterministic.

    Args:
        lengths: ``(n,)`` integer tokens of each row.
        token_budget: Most tokens a bin may hold, as for ``pack``.
        common: ``(n,)`` integer tokens shared with the row before, as for ``pack``.
        n_shares: Number of processes; of one, the bins are those of ``pack``.

    Returns:
        Bins of each share, together every row once; none where rows are too few.
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
    """How many tokens each row of a bin shares with the row before it, ``(n,)`` int64.

    Args:
        rows: ``(n,)`` row indices in the order of the bin.
        common: Of all rows, as ``pack`` takes it.
    """
    follows = np.diff(rows, prepend=-2) == 1
    return np.where(follows, common[rows], 0).astype(np.int64)


def collate(
    rows: Sequence[np.ndarray], step: int = 1, shared: np.ndarray | None = None
) -> PackedBatch:
    """Lay token arrays end to end, in the order given.

    Args:
        rows: Tokens of each row, whole.
        step: A dummy row, which nobody scores, fills the batch up to a multiple of it.
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
    """What batches' lengths are rounded up to: on a GPU a part of the budget.

    Compiled layers are built once a shape, some seconds each. Of a step's bins only the
    last is much emptier than the budget, so with four shapes little is lost. (There are
    more of a budget that so many blocks of attention, of 128 tokens, do not divide.)
    """
    if device_type != "cuda":
        return 1
    return -(-token_budget // (n_shapes * 128)) * 128

"""Pack rows end to end into bins of a token budget, instead of padded batches.

The two orders of a pair begin with the same tokens, up to the first answer. Causal
attention gives these tokens the same states in both rows, so a bin that holds both
orders computes them once.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Tokens in a pass on a CPU: longer passes are not faster, and become slower once they
# exceed its caches.
CPU_TOKENS = 2048


@dataclass(frozen=True)
class PackedBatch:
    """Rows laid end to end; ``sight`` describes the layout of two that share tokens.

    A dummy row may follow the others to fill the batch up. It is never scored.

    Attributes:
        input_ids: ``(1, n_tokens)`` int64.
        position_ids: ``(1, n_tokens)`` int64 positions of tokens in their rows, from 0.
        cu_lengths: ``(n + 1,)`` int64 borders of the rows, with the dummy row: row i
            takes the places from ``cu[i]`` to ``cu[i + 1]``, exclusive.
        last: ``(n_rows,)`` int64 places of the rows' last tokens, without the dummy's.
        shared: ``(n,)`` int64 tokens that a row shares with the previous one, with the
            dummy row. They are laid out once, in the previous row.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    cu_lengths: np.ndarray
    last: np.ndarray
    shared: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Count the tokens of each row, the dummy row included, ``(n,)`` int64."""
        return np.diff(self.cu_lengths)


class Sight(NamedTuple):
    """The places that each token of a batch may see, as ``(n_tokens,)`` int32 arrays.

    A token sees the places from ``first`` to ``last``, its own included. ``position``
    is its number in its row.
    """

    position: np.ndarray
    first: np.ndarray
    last: np.ndarray


def sight(lengths: np.ndarray, shared: np.ndarray) -> Sight:
    """Find each token's position in its row, and the places that it may see.

    A row is laid out forwards. If the next row shares its beginning, the tokens that it
    does not share are laid out backwards, before the common ones: rows ``p q a b`` and
    ``p q c d`` become

        b a p q c d

    So the tokens that precede a token in its row always fill one contiguous range of
    places, as in a batch without common tokens.

    Args:
        lengths: ``(n_rows,)`` integer tokens laid out for each row.
        shared: ``(n_rows,)`` integer tokens that a row shares with the previous one,
            fewer than its own. A row that shares its beginning with the next one shares
            none with the previous one.
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
        token_budget: Most tokens in a bin, with common tokens counted once.
        common: ``(n,)`` integer tokens that a row may share with the previous one; see
            ``sight``. None for none.

    Returns:
        One int64 array of row indices per bin, for ``collate`` and ``shared_tokens``;
        every row is in one bin.
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
    a common beginning go together unless they exceed the budget or an even share. The
    result is deterministic.

    Args:
        lengths: ``(n,)`` integer tokens of each row.
        token_budget: Most tokens in a bin, as for ``pack``.
        common: ``(n,)`` integer tokens shared with the previous row, as for ``pack``.
        n_shares: Number of processes; with one, the bins are those of ``pack``.

    Returns:
        The bins of each share; every row is in one bin. If there are too few rows, some
        shares have no bin.
    """
    # Rows are shared out, and not bins: a step has too few bins for even shares.
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
    """Count the tokens that each row of a bin shares with the previous row of the bin.

    Args:
        rows: ``(n,)`` row indices in the order of the bin.
        common: Common tokens of all rows, as ``pack`` takes them.

    Returns:
        ``(n,)`` int64.
    """
    follows = np.diff(rows, prepend=-2) == 1
    return np.where(follows, common[rows], 0).astype(np.int64)


def collate(
    rows: Sequence[np.ndarray], step: int = 1, shared: np.ndarray | None = None
) -> PackedBatch:
    """Lay token arrays end to end, in the given order.

    Args:
        rows: All tokens of each row, ``(length,)`` integer.
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
    """Return the step that lengths of batches are rounded up to.

    Args:
        token_budget: Most tokens in a batch.
        device_type: On a GPU, the step is a fraction of the budget; elsewhere it is 1.
        n_shapes: Number of lengths that batches may have on a GPU. A budget that is not
            a multiple of 128, attention's block size, may need more.
    """
    if device_type != "cuda":
        return 1
    # Compiled layers are built once per shape, which takes seconds. Only the last of a
    # step's bins has far fewer tokens than the budget, so four shapes add little
    # padding.
    return -(-token_budget // (n_shapes * 128)) * 128

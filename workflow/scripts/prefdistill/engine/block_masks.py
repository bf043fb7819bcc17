"""Build the masks that tell FlexAttention which blocks of attention to compute.

torch would build such a mask on the GPU, by evaluating every pair of query and key.
Here the host derives it from the rows' lengths, as a token sees one contiguous range of
places (see ``packing.sight``). A single copy moves it to the GPU.
"""

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

from prefdistill.engine.device import to_device
from prefdistill.engine.packing import Sight, sight

BLOCK = 128  # queries in a block; also keys, unless a caller says otherwise


def block_mask(
    lengths: np.ndarray,
    shared: np.ndarray,
    window: int | None,
    block: int,
    device: torch.device,
) -> BlockMask:
    """Build FlexAttention's block-sparse mask of a whole batch.

    Args:
        lengths: ``(n_rows,)`` integer tokens laid out for each row.
        shared: ``(n_rows,)`` integer tokens that a row shares with the previous one.
        window: Size of a sliding window, or None.
        block: Keys in a block.
        device: Where the mask is needed.
    """
    seen = windowed(sight(lengths, shared), window)
    n_tokens = len(seen.first)
    partial, full = visible_blocks(seen, window, block)
    arrays = [seen.first, seen.last, seen.position]
    for blocks in (partial, full, partial.T, full.T):
        arrays.append(blocks.sum(axis=1))
        arrays.append(np.argsort(~blocks, axis=1, kind="stable").astype(np.int32))
    first, last, position, *tables = _copy_together(arrays, device)
    names = [
        f"{kind}{part}"
        for kind in ("kv_", "full_kv_", "q_", "full_q_")
        for part in ("num_blocks", "indices")
    ]

    def visible(_batch, _head, query, key):
        return (key >= first[query]) & (key <= last[query])

    def visible_in_window(batch, head, query, key):
        near = position[query] - position[key] < window
        return visible(batch, head, query, key) & near

    # In a batch without backward tokens, a window only narrows the ranges: `windowed`
    # has done so already.
    is_plain = window is None or not shared.any()
    return BlockMask(
        seq_lengths=(n_tokens, n_tokens),
        BLOCK_SIZE=(BLOCK, block),
        mask_mod=visible if is_plain else visible_in_window,
        **{k: t[None, None] for k, t in zip(names, tables, strict=True)},
    )


def _copy_together(
    arrays: list[np.ndarray], device: torch.device
) -> list[torch.Tensor]:
    """Copy int32 arrays to a device in a single copy."""
    # Each array starts at a multiple of 64 values, as compiled kernels assume aligned
    # inputs.
    sizes = [-(-array.size // 64) * 64 for array in arrays]
    flat = np.zeros(sum(sizes), dtype=np.int32)
    for start, array in zip(np.cumsum(sizes) - sizes, arrays, strict=True):
        flat[start : start + array.size] = array.ravel()
    parts = to_device(flat, device).split(sizes)
    return [
        part[: array.size].view(array.shape)
        for part, array in zip(parts, arrays, strict=True)
    ]


def windowed(seen: Sight, window: int | None) -> Sight:
    """Narrow the ranges that tokens see to a sliding window.

    The ranges of backward tokens stay as they are. Through a window, such a token may
    see the end of the common tokens without their beginning, so what it sees is not one
    range.

    Args:
        seen: From ``packing.sight``.
        window: Size of the window, or None.
    """
    if window is None:
        return seen
    place = np.arange(len(seen.first), dtype=np.int32)
    return seen._replace(first=np.maximum(seen.first, place - window + 1))


def visible_blocks(
    seen: Sight, window: int | None, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """Find the blocks of keys that a block of 128 queries sees in part, and whole.

    With a window, a backward token sees less than its range. A block of keys that it
    does not see may then count as seen in part, which costs time and changes nothing.

    Args:
        seen: From ``windowed``.
        window: Size of a sliding window, or None.
        block: Keys in a block.

    Returns:
        Two ``(n_query_blocks, n_key_blocks)`` bool arrays: seen in part, seen whole.
    """
    # Each token sees a range that contains it. So the places that any token of a block
    # sees form one range, and the places that all of them see form another.
    n_tokens = len(seen.first)
    queries, keys = np.arange(0, n_tokens, BLOCK), np.arange(0, n_tokens, block)
    key_last = np.minimum(keys + block, n_tokens) - 1

    def least(values: np.ndarray, blocks: np.ndarray = queries) -> np.ndarray:
        return np.minimum.reduceat(values, blocks)

    def most(values: np.ndarray, blocks: np.ndarray = queries) -> np.ndarray:
        return np.maximum.reduceat(values, blocks)

    some = key_last >= least(seen.first)[:, None]
    some &= keys <= most(seen.last)[:, None]
    whole = keys >= most(seen.first)[:, None]
    whole &= key_last <= least(seen.last)[:, None]
    if window is not None:
        position = seen.position
        some &= least(position)[:, None] - most(position, keys) < window
        whole &= most(position)[:, None] - least(position, keys) < window
    return some & ~whole, whole

"""Tell FlexAttention which blocks of a packed batch's attention to compute.

torch builds such a mask on the GPU, by asking for every query and key. Here the host
derives it from the rows' lengths, as a token sees one stretch of places (see
``packing.sight``). One copy brings it to the GPU.
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
        shared: ``(n_rows,)`` tokens of the row before it that a row begins with.
        window: A sliding window.
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
    # One copy brings all arrays. Each starts at a multiple of 64 values, as compiled
    # kernels assume aligned inputs.
    sizes = [-(-array.size // 64) * 64 for array in arrays]
    flat = np.zeros(sum(sizes), dtype=np.int32)
    for start, array in zip(np.cumsum(sizes) - sizes, arrays, strict=True):
        flat[start : start + array.size] = array.ravel()
    parts = [
        part[: array.size].view(array.shape)
        for part, array in zip(
            to_device(flat, device).split(sizes), arrays, strict=True
        )
    ]
    first, last, position, *tables = parts
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

    # Tokens that lie forwards see one stretch through a window, too.
    is_plain = window is None or not shared.any()
    return BlockMask(
        seq_lengths=(n_tokens, n_tokens),
        BLOCK_SIZE=(BLOCK, block),
        mask_mod=visible if is_plain else visible_in_window,
        **{k: t[None, None] for k, t in zip(names, tables, strict=True)},
    )


def windowed(seen: Sight, window: int | None) -> Sight:
    """Narrow what tokens see to a sliding window, where they lie forwards.

    A token that lies backwards may see the end of the common tokens but not their
    beginning, which is not one stretch. What it sees is left as it is.
    """
    if window is None:
        return seen
    place = np.arange(len(seen.first), dtype=np.int32)
    return seen._replace(first=np.maximum(seen.first, place - window + 1))


def visible_blocks(
    seen: Sight, window: int | None, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """Find the blocks of keys that a block of 128 queries sees in part, and whole.

    Each token sees a stretch that contains it. So what any of neighbouring tokens sees
    is one stretch, and what all of them see is another. With a window, a token that
    lies backwards sees less than its stretch; a block of which it sees nothing may then
    count as seen in part.

    Args:
        seen: From ``windowed``.
        window: A sliding window.
        block: Keys in a block.

    Returns:
        Two ``(n_query_blocks, n_key_blocks)`` bool arrays.
    """
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

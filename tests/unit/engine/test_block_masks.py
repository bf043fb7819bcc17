"""Block masks against dense masks, and against those that torch builds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_samples import CPU, places_of
from torch.nn.attention.flex_attention import (
    create_block_mask,
)

from prefdistill.engine.block_masks import BLOCK, block_mask, visible_blocks, windowed
from prefdistill.engine.packing import sight


def dense_mask(lengths, window, shared=None):
    """Which key (column) each query (row) of a packed batch sees."""
    shared = shared or [0] * len(lengths)
    mask = np.zeros((sum(lengths), sum(lengths)), dtype=bool)
    for places in places_of(lengths, shared):
        for n, query in enumerate(places, start=1):
            mask[query, places[max(0, n - (window or n)) : n]] = True
    return mask


SINGLES = st.integers(1, 420).map(lambda length: [(length, 0)])
PAIRS = st.tuples(*[st.integers(1, 300)] * 3).map(
    lambda sizes: [(sizes[0] + sizes[1], 0), (sizes[2], sizes[0])]
)


@given(
    units=st.lists(SINGLES | PAIRS, min_size=1, max_size=6),
    window=st.none() | st.integers(1, 450),
    step=st.sampled_from([BLOCK, 64]),
)
def test_visible_blocks_are_those_of_the_dense_mask(units, window, step):
    """All that are seen, and whole where they are; through a window, others may count.

    But only in batches with shared tokens.
    """
    lengths, shared = zip(*(row for unit in units for row in unit), strict=True)
    seen = windowed(sight(np.array(lengths), np.array(shared)), window)
    partial, whole = visible_blocks(seen, window, step)
    mask = dense_mask(lengths, window, shared)
    queries, keys = (range(0, len(mask), n) for n in (BLOCK, step))
    blocks = [[mask[i : i + BLOCK, k : k + step] for k in keys] for i in queries]
    assert whole.tolist() == [[bool(b.all()) for b in row] for row in blocks]
    some = np.array([[bool(b.any() and not b.all()) for b in row] for row in blocks])
    if window is None or not any(shared):
        assert partial.tolist() == some.tolist()
    assert (partial >= some).all()


@pytest.mark.parametrize("step", [BLOCK, 64])
@pytest.mark.parametrize("window", [None, 1, 100, 128, 200])
@pytest.mark.parametrize("shared", [[0] * 8, [0, 0, 300, 0, 0, 99, 0, 1]])
def test_the_block_mask_is_the_one_that_torch_makes(shared, window, step):
    lengths = np.array([5, 700, 1, 1, 130, 512, 57, 130])
    assert lengths.sum() % BLOCK == 0
    n_tokens = int(lengths.sum())
    mask = block_mask(lengths, np.array(shared), window, step, CPU)
    dense = torch.from_numpy(dense_mask(lengths, window, shared))
    expected = create_block_mask(
        lambda batch, head, query, key: dense[query, key],
        None, None, n_tokens, n_tokens,
        device="cpu", BLOCK_SIZE=(BLOCK, step),
    )  # fmt: skip
    is_exact = window is None or not any(shared)
    for kind in ("kv", "full_kv", "q", "full_q") if is_exact else ():
        numbers = getattr(mask, f"{kind}_num_blocks")
        assert torch.equal(numbers, getattr(expected, f"{kind}_num_blocks"))
        indices, other = (getattr(m, f"{kind}_indices") for m in (mask, expected))
        assert indices.shape == other.shape
        used = torch.arange(indices.shape[-1]) < numbers[..., None]
        assert torch.equal(indices[used], other[used])
    query, key = torch.meshgrid(*[torch.arange(n_tokens)] * 2, indexing="ij")
    assert torch.equal(mask.mask_mod(0, 0, query, key), dense)

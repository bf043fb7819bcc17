"""Test the layout of packed batches; ``test_attention`` uses it for attention."""

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

from prefdistill.engine.layout import GROUP_FILL, PackedLayout

CPU = torch.device("cpu")
LENGTHS = (5, 30, 11, 17, 29, 1, 30)


def test_rows_of_a_group_have_similar_lengths_and_every_token_comes_back():
    layout = PackedLayout(np.array(LENGTHS), CPU)
    assert [tuple(group.shape) for group in layout.groups] == [
        (3, 30),
        (1, 17),
        (1, 11),
        (1, 5),
        (1, 1),
    ]
    assert 29 >= GROUP_FILL * 30 > 17
    places = torch.cat([group.flatten() for group in layout.groups])
    assert torch.equal(places[layout.scatter], torch.arange(sum(LENGTHS)))


def test_a_causal_mask_is_cut_to_the_window():
    layout = PackedLayout(np.array(LENGTHS), CPU)
    mask = layout.causal_mask(4, 2)
    assert mask.int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]
    assert torch.equal(layout.causal_mask(4, None), torch.ones(4, 4).tril().bool())
    assert layout.causal_mask(4, 2) is mask


def test_kept_tokens_see_their_row_up_to_themselves():
    keep = torch.tensor([2, 6])
    layout = PackedLayout(np.array([3, 4]), CPU, keep=keep)
    seen = layout.seen_by_kept(None).int().tolist()
    assert seen == [[1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert layout.seen_by_kept(2).int().tolist()[1] == [0, 0, 0, 0, 0, 1, 1]


def test_a_window_that_no_row_exceeds_is_none():
    layout = PackedLayout(np.array(LENGTHS), CPU)
    assert layout.attention(max(LENGTHS)).window is None
    assert layout.attention(max(LENGTHS) - 1).window == max(LENGTHS) - 1


def test_a_batch_makes_one_mask_for_each_window():
    """Without a GPU, on the device that holds no values."""
    layout = PackedLayout(np.array([200, 300, 12]), torch.device("meta"))
    whole, cut = layout.attention(None), layout.attention(100)
    assert isinstance(whole, BlockMask)
    assert layout.attention(None) is whole is layout.attention(300)
    assert layout.attention(100) is cut is not whole

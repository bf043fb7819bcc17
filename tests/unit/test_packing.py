import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prefdistill.packing import collate, next_shape, pack, pad_batch


def slow_pack(lengths, budget):
    """Best-fit decreasing as a textbook says it."""
    bins = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        fits = [b for b in bins if sum(lengths[r] for r in b) + lengths[row] <= budget]
        if fits:
            fullest = max(fits, key=lambda b: sum(lengths[r] for r in b))
            fullest.append(row)
        else:
            bins.append([row])
    return bins


@given(lengths=st.lists(st.integers(1, 120), max_size=40), budget=st.integers(1, 100))
def test_pack_agrees_with_its_slow_twin(lengths, budget):
    bins = pack(np.array(lengths, dtype=np.int32), budget)
    assert sorted(r for b in bins for r in b.tolist()) == list(range(len(lengths)))
    for rows in bins:
        assert len(rows) == 1 or sum(lengths[r] for r in rows) <= budget
    slow = slow_pack(lengths, budget)
    assert len(bins) == len(slow)
    fill = [sum(lengths[r] for r in rows) for rows in bins]
    assert sorted(fill) == sorted(sum(lengths[r] for r in rows) for rows in slow)


def test_real_lengths_fill_the_bins():
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(650), 0.75, 5000)).astype(int).clip(48, 2048)
    bins = pack(lengths, 8192)
    assert lengths.sum() / (8192 * len(bins)) > 0.99


def test_collate():
    batch = collate([np.array([5, 6, 7]), np.array([8]), np.array([9, 1])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch.cu_lengths.tolist() == [0, 3, 4, 6]
    assert batch.last.tolist() == [2, 3, 5]
    assert batch.lengths.tolist() == [3, 1, 2]


def test_a_padded_batch_only_gains_a_row_that_nobody_scores():
    batch = collate([np.arange(5), np.arange(7)])
    padded = pad_batch(batch, next_shape(12))
    assert padded.input_ids.shape == (1, 256)
    assert padded.lengths.tolist() == [5, 7, 244]
    assert padded.last.tolist() == batch.last.tolist()
    assert (padded.input_ids[:, :12] == batch.input_ids).all()


def test_shapes_are_few_and_never_too_small():
    shapes = {next_shape(n) for n in range(1, 16385)}
    assert sorted(shapes)[:5] == [256, 384, 512, 768, 1024]
    assert len(shapes) == 13
    assert all(next_shape(n) >= n for n in range(1, 16385))

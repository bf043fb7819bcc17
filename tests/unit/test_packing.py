import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdistill.packing import collate, pack, shape_step


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


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=9),
    step=st.integers(1, 512),
)
def test_a_padded_batch_only_gains_a_row_that_nobody_scores(lengths, step):
    rows = [np.arange(length) + 3 for length in lengths]
    batch, padded = collate(rows), collate(rows, step)
    n_tokens, n_padded = batch.input_ids.size, padded.input_ids.size
    assert n_padded % step == 0
    assert n_padded - n_tokens < step
    dummy = [n_padded - n_tokens] if n_padded > n_tokens else []
    assert padded.lengths.tolist() == lengths + dummy
    assert padded.last.tolist() == batch.last.tolist()
    assert padded.last.dtype == padded.cu_lengths.dtype == np.int64
    assert (padded.input_ids[:, :n_tokens] == batch.input_ids).all()
    assert (padded.position_ids[:, :n_tokens] == batch.position_ids).all()
    assert padded.position_ids[0, n_tokens:].tolist() == list(range(sum(dummy)))
    assert not padded.input_ids[:, n_tokens:].any()


@pytest.mark.parametrize(
    "budget", [100, 1024, 2048, 3000, 6144, 8192, 10000, 16384, 65536]
)
def test_compiled_shapes_are_few_for_a_budget(budget):
    step = shape_step(budget, "cuda")
    assert step % 128 == 0
    shapes = {-(-n // step) * step for n in range(1, budget + 1)}
    assert len(shapes) <= 8
    assert max(shapes) < budget + step
    assert shape_step(budget, "cpu") == 1


def test_real_lengths_fill_the_shapes_of_a_gpu():
    """Steps of 64 pairs in both orders; what padding adds counts as computed."""
    rng = np.random.default_rng(0)
    budget = 8192
    step = shape_step(budget, "cuda")
    fill = []
    for _ in range(200):
        lengths = np.exp(rng.normal(np.log(650), 0.75, 64)).clip(48, 2048).astype(int)
        sizes = [
            np.repeat(lengths, 2)[rows].sum()
            for rows in pack(np.repeat(lengths, 2), budget)
        ]
        computed = sum(-(-size // step) * step for size in sizes)
        fill.append(2 * lengths.sum() / computed)
    assert np.mean(fill) >= 0.97

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdistill.engine.packing import (
    collate,
    pack,
    pack_shares,
    shape_step,
    shared_tokens,
    sight,
)


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


PAIRS = st.lists(
    st.integers(1, 70).flatmap(
        lambda length: st.tuples(st.just(length), st.integers(0, length - 1))
    ),
    max_size=20,
)


def rows_of(pairs):
    """Lengths of both rows of pairs, and tokens shared with the row before."""
    lengths = np.repeat(np.array([length for length, _ in pairs], dtype=int), 2)
    common = np.array([n for _, n_common in pairs for n in (0, n_common)], dtype=int)
    return lengths, common


def bin_size(rows, lengths, common):
    return int((lengths[rows] - shared_tokens(rows, common)).sum())


@given(pairs=PAIRS, budget=st.integers(1, 100))
def test_pairs_that_fit_a_bin_go_together(pairs, budget):
    lengths, common = rows_of(pairs)
    bins = pack(lengths, budget, common)
    assert sorted(r for b in bins for r in b.tolist()) == list(range(len(lengths)))
    n_shared = np.zeros_like(lengths)
    for rows in bins:
        n_shared[rows] = shared_tokens(rows, common)
        size = lengths[rows].sum() - n_shared[rows].sum()
        assert len(rows) == 1 or size <= budget
        # A bin of a bin, at the same budget, is the bin.
        again = pack(lengths[rows], budget, n_shared[rows])
        assert len(again) == 1
        part = shared_tokens(again[0], n_shared[rows])
        assert sorted(part.tolist()) == sorted(n_shared[rows].tolist())
    fits = 2 * lengths[1::2] - common[1::2] <= budget
    assert (n_shared[1::2] == common[1::2] * fits).all()
    assert not n_shared[::2].any()


@given(pairs=PAIRS, budget=st.integers(1, 100), n_shares=st.integers(1, 5))
def test_shares_are_even_and_packed(pairs, budget, n_shares):
    lengths, common = rows_of(pairs)
    shares = pack_shares(lengths, budget, common, n_shares)
    assert len(shares) == n_shares
    bins = [rows for share in shares for rows in share]
    assert sorted(r for b in bins for r in b.tolist()) == list(range(len(lengths)))
    loads = [sum(bin_size(b, lengths, common) for b in share) for share in shares]
    for rows in bins:
        assert len(rows) == 1 or bin_size(rows, lengths, common) <= budget
    if len(lengths):
        both = 2 * lengths - common
        assert max(loads) - min(loads) <= max(both)
    (alone,) = pack_shares(lengths, budget, common, 1)
    packed = pack(lengths, budget, common)
    assert [b.tolist() for b in alone] == [b.tolist() for b in packed]


def test_shares_of_a_step():
    """Of pairs of 7, 7, 3 and 3 tokens 10 and 10, where whole bins leave 13 and 7."""
    lengths, common = np.repeat([4, 4, 2, 2], 2), np.tile([0, 1], 4)
    first, second = pack_shares(lengths, 8, common, 2)
    assert [rows.tolist() for rows in first] == [[0, 1], [4, 5]]
    assert [rows.tolist() for rows in second] == [[2, 3], [6, 7]]
    # A pair of more than an even share is two rows.
    (first,), (second,) = pack_shares(np.array([5, 5]), 16, np.array([0, 2]), 2)
    assert (first.tolist(), second.tolist()) == ([0], [1])
    # Fewer rows than processes.
    assert [len(share) for share in pack_shares(lengths[:1], 8, common[:1], 2)] == [
        1,
        0,
    ]


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
    assert batch.shared.tolist() == [0, 0, 0]


def test_collate_lays_out_common_tokens_once():
    p, q, a, b, c, d = range(11, 17)
    rows = [np.array(row) for row in ([7, 8], [p, q, a, b], [p, q, c, d], [9])]
    batch = collate(rows, 5, np.array([0, 0, 2, 0]))
    assert batch.input_ids.tolist() == [[7, 8, b, a, p, q, c, d, 9, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 3, 2, 0, 1, 2, 3, 0, 0]]
    assert batch.cu_lengths.tolist() == [0, 2, 6, 8, 9, 10]
    assert batch.lengths.tolist() == [2, 4, 2, 1, 1]
    assert batch.shared.tolist() == [0, 0, 2, 0, 0]
    assert batch.last.tolist() == [1, 2, 7, 8]
    seen = sight(batch.lengths, batch.shared)
    assert seen.first.tolist() == [0, 0, 2, 3, 4, 4, 4, 4, 8, 9]
    assert seen.last.tolist() == [0, 1, 5, 5, 4, 5, 6, 7, 8, 9]


@given(units=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3), min_size=1))
def test_tokens_see_what_precedes_them_in_their_rows(units):
    """Of tokens that all differ; a unit of three has the first part in two rows."""
    ids = iter(range(10**6))
    rows, shared = [], []
    for unit in units:
        first, *others = ([next(ids) for _ in range(n)] for n in unit)
        rows += [first + other for other in others] or [first]
        shared += [0, len(first)][: max(1, len(others))]
    batch = collate([np.array(row) for row in rows], 1, np.array(shared))
    tokens = batch.input_ids[0].tolist()
    assert sorted(tokens) == list(range(len(tokens)))
    position, first, last = sight(batch.lengths, batch.shared)
    assert (batch.position_ids[0] == position).all()
    assert [tokens[place] for place in batch.last] == [row[-1] for row in rows]
    for row in rows:
        for n, token in enumerate(row):
            place = tokens.index(token)
            assert position[place] == n
            seen = tokens[first[place] : last[place] + 1]
            assert sorted(seen) == sorted(row[: n + 1])


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
@pytest.mark.parametrize("n_shapes", [4, 8])
def test_compiled_shapes_are_few_for_a_budget(budget, n_shapes):
    step = shape_step(budget, "cuda", n_shapes)
    assert step % 128 == 0
    shapes = {-(-n // step) * step for n in range(1, budget + 1)}
    assert len(shapes) <= 2 * n_shapes
    assert max(shapes) < budget + step
    assert shape_step(budget, "cpu") == 1


@pytest.mark.parametrize(
    ("n_pairs", "n_shapes", "n_gpus", "least"),
    [(64, 4, 1, 0.97), (32, 16, 1, 0.98), (32, 4, 2, 0.93), (32, 16, 4, 0.94)],
)
@pytest.mark.parametrize("share", [0.0, 0.13])
def test_real_lengths_fill_the_shapes_of_gpus(share, n_pairs, n_shapes, n_gpus, least):
    """Steps of pairs in both orders; what padding adds counts as computed.

    Of several GPUs, what the slowest computes, as if all did.
    """
    rng = np.random.default_rng(0)
    budget = 8192
    step = shape_step(budget, "cuda", n_shapes)
    fill = []
    for _ in range(200):
        lengths = (
            np.exp(rng.normal(np.log(650), 0.75, n_pairs)).clip(48, 2048).astype(int)
        )
        common = np.repeat((share * lengths).astype(int), 2) * np.tile([0, 1], n_pairs)
        lengths = np.repeat(lengths, 2)
        sizes = [
            np.array([bin_size(rows, lengths, common) for rows in bins])
            for bins in pack_shares(lengths, budget, common, n_gpus)
        ]
        n_tokens = lengths.sum() - common.sum()
        assert sum(size.sum() for size in sizes) == n_tokens
        slowest = max(int((-(-size // step) * step).sum()) for size in sizes)
        fill.append(n_tokens / (n_gpus * slowest))
    assert np.mean(fill) >= least

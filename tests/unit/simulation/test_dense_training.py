import numpy as np
import pytest
import torch

from prefdistill.simulation import dense_training
from prefdistill.simulation.dense_training import (
    BATCH_PAIRS,
    DenseHeads,
    batch_loss,
    draw_batches,
    pad_right,
    pretrain,
)
from prefdistill.simulation.tiny_models import build_model


@pytest.fixture
def model(base_settings, dense, architecture):
    return build_model(base_settings(architecture), dense[0])


def test_batches_cover_every_row_once_an_epoch():
    lengths = np.random.default_rng(0).integers(20, 90, size=100)
    rows = np.concatenate(list(draw_batches(lengths, 0, 7)))
    assert sorted(rows) == list(range(100))
    assert len(list(draw_batches(lengths, 0, 19))) == 19
    assert list(draw_batches(lengths, 0, 0)) == []


def test_rows_of_a_batch_have_similar_lengths():
    lengths = np.random.default_rng(0).permutation(256)
    for rows in draw_batches(lengths, 0, 16):
        assert np.ptp(lengths[rows]) == BATCH_PAIRS - 1


def test_arrays_are_padded_on_the_right():
    stacked = pad_right([np.array([1, 2, 3]), np.array([4])], -100)
    assert stacked.tolist() == [[1, 2, 3], [4, -100, -100]]
    assert stacked.dtype == torch.int64


def test_padding_does_not_change_the_loss(model, dense, monkeypatch):
    _, encoded, labels = dense
    heads = DenseHeads(model.config.hidden_size)
    rows = np.arange(4)
    with torch.no_grad():
        loss = batch_loss(model, heads, encoded, labels, rows)

        def pad_more(arrays, fill):
            columns = torch.nn.functional.pad(
                pad_right(arrays, fill), (0, 7), value=fill
            )
            return columns

        monkeypatch.setattr(dense_training, "pad_right", pad_more)
        padded = batch_loss(model, heads, encoded, labels, rows)
    torch.testing.assert_close(padded, loss)


def test_perfect_ratings_cost_nothing_and_the_last_token_counts():
    heads = DenseHeads(4)
    for head in (heads.first, heads.both):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    top = torch.randn(2, 5, 4)
    answer_at = torch.tensor([[0, 1, 1, 2, 2], [0, 1, 2, 2, 2]])
    last = torch.tensor([4, 4])
    zero = heads.rating_loss(top, answer_at, torch.zeros(2, 2, 6), last)
    assert zero == 0
    ones = heads.rating_loss(top, answer_at, torch.ones(2, 2, 6), last)
    # The weights of ratings have mean 1: half for A, 1 and a half for both, 2 at last.
    torch.testing.assert_close(ones, torch.tensor(0.5 + 1 + 0.5 + 2))


def test_pretraining_reduces_the_dense_loss(dense, model):
    _, encoded, labels = dense
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    losses = pretrain(model, encoded, labels, n_steps=50, learning_rate=5e-3, seed=0)
    assert len(losses) == 50
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert not torch.equal(before, model.model.layers[0].mlp.up_proj.weight)
    assert not model.training

"""Broken quantised models are noticed when they are reloaded."""

import numpy as np
import pytest
import torch
from gptq_samples import ROWS

from prefdistill.errors import UserError
from prefdistill.export.gptq_check import (
    compare,
    dequantise,
    load_plain,
    logit_gap,
)


def test_dequantising_undoes_a_known_packing():
    values = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 15]])  # one out, eight in, 4 bits
    word = sum(int(value) << (4 * place) for place, value in enumerate(values[0]))
    packed = {
        "qweight": torch.tensor([[word]]).to(torch.int32).expand(1, 8),
        "qzeros": torch.full((2, 1), 0x77777777, dtype=torch.int32),  # 8, less one
        "scales": torch.tensor([[0.5], [2.0]]).expand(2, 8),
        "g_idx": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.int32),
    }
    expected = (values - 8) * torch.tensor([0.5] * 4 + [2.0] * 4)
    assert dequantise(packed, 4).shape == (8, 8)
    torch.testing.assert_close(dequantise(packed, 4)[:1], expected)


def test_misread_zero_points_are_noticed(quantised, merged, monkeypatch):
    """The known fault of a GPTQ checkpoint loaded and saved again."""
    damaged = load_plain(quantised / "8bit")
    for module in damaged.modules():
        if hasattr(module, "qzeros"):
            module.qzeros += 0x01010101
    monkeypatch.setattr("prefdistill.export.gptq_check.load_plain", lambda _: damaged)
    with pytest.raises(UserError, match="dequantised weights"):
        compare(merged, quantised / "8bit", ROWS, 8)


def test_one_misread_layer_is_named(quantised, merged, monkeypatch):
    damaged = load_plain(quantised / "8bit")
    damaged.model.layers[1].mlp.up_proj.qzeros += 0x01010101
    monkeypatch.setattr("prefdistill.export.gptq_check.load_plain", lambda _: damaged)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj of the reloaded"):
        compare(merged, quantised / "8bit", ROWS, 8)


def test_a_lost_head_is_noticed(quantised, merged, monkeypatch):
    damaged = load_plain(quantised / "8bit")
    damaged.score.weight.data.zero_()
    loaders = {merged: load_plain, quantised / "8bit": lambda _: damaged}
    monkeypatch.setattr(
        "prefdistill.export.gptq_check.load_plain",
        lambda folder: loaders[folder](folder),
    )
    with pytest.raises(UserError, match=r"score\.weight of the reloaded model is not"):
        compare(merged, quantised / "8bit", ROWS, 8)


def test_a_layer_that_gives_no_numbers_is_named(quantised, merged, monkeypatch):
    damaged = load_plain(quantised / "8bit")
    damaged.model.layers[0].mlp.down_proj.scales[:] = torch.nan
    monkeypatch.setattr("prefdistill.export.gptq_check.load_plain", lambda _: damaged)
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.down_proj of .* is nan off"):
        compare(merged, quantised / "8bit", ROWS, 8)


def test_a_lost_setting_is_noticed(quantised, merged, monkeypatch):
    changed = load_plain(quantised / "8bit")
    changed.config.attn_logit_softcapping = 7.0
    loaders = {merged: load_plain, quantised / "8bit": lambda _: changed}
    monkeypatch.setattr(
        "prefdistill.export.gptq_check.load_plain",
        lambda folder: loaders[folder](folder),
    )
    with pytest.raises(UserError, match="attn_logit_softcapping in config"):
        compare(merged, quantised / "8bit", ROWS, 8)


def test_a_model_without_gptq_layers_is_refused(quantised, merged, monkeypatch):
    monkeypatch.setattr("prefdistill.export.gptq_check.kernel_errors", lambda *_: {})
    with pytest.raises(UserError, match="no layer of the reloaded model is a GPTQ one"):
        compare(merged, quantised / "8bit", ROWS, 8)


def test_the_gap_of_equal_logits_is_zero():
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    gap = logit_gap(logits, logits)
    assert (gap.mean_abs, gap.max_abs, gap.mean_kl, gap.agreement) == (0, 0, 0, 1)
    shifted = logit_gap(logits, logits + 1)
    assert shifted.mean_abs == pytest.approx(1)
    assert shifted.mean_kl == pytest.approx(0, abs=1e-6)

"""Compare tiny models on the CPU, and engines with a fault built in."""

from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from benchmarks import gpu_sameness, sameness_models
from prefdistill.engine import fp8, packing
from prefdistill.training import trainer as training


@pytest.mark.parametrize("base", ["bf16", "fp8"])
def test_sameness_of_tiny_models(base):
    options = gpu_sameness.parse(["--tiny"])
    lines = list(gpu_sameness.compare(options, "llama", base))
    assert len(lines) == 9
    lines.append(gpu_sameness.compare_steps(options, "llama", base))
    assert all(line["ok"] for line in lines)
    assert lines[-1]["fall_of_loss"] > 0.2


@pytest.mark.parametrize("base", ["bf16", "fp8"])
def test_sameness_finds_rows_that_see_a_token_of_the_row_before(monkeypatch, base):
    def leaky(rows, step=1, shared=None):
        seen = [rows[0], *(np.append(a[-1:], b) for a, b in pairwise(rows))]
        return collate(rows if shared is not None else seen, step, shared)

    collate = packing.collate
    monkeypatch.setattr(packing, "collate", leaky)
    monkeypatch.setattr(gpu_sameness, "EXACT", gpu_sameness.TOLERANCES[base]["itself"])
    options = gpu_sameness.parse(["--tiny"])
    twice, alone = islice(gpu_sameness.compare(options, "llama", base), 2)
    assert twice["ok"]
    assert not alone["ok"]
    assert alone["errors"]["logits"] > 0.2


def test_sameness_of_steps_finds_an_engine_that_keeps_b(monkeypatch):
    monkeypatch.setattr(training, "increment_version", lambda _: None)
    line = gpu_sameness.compare_steps(gpu_sameness.parse(["--tiny"]), "llama", "bf16")
    assert not line["ok"]
    assert line["errors"]["logits"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("architecture", ["gemma2", "qwen2"])
def test_steps_on_fp8_are_exact_but_for_its_rounding(monkeypatch, architecture):
    monkeypatch.setattr(fp8, "FP8", torch.float32)
    monkeypatch.setattr(sameness_models, "rounded", lambda values: values)
    options = gpu_sameness.parse(["--tiny"])
    line = gpu_sameness.compare_steps(options, architecture, "fp8")
    assert max(line["errors"].values()) < 1e-4
    assert line["fall_of_loss"] > 0.05


def test_curves_are_compared_in_pairs():
    steps = np.linspace(1.1, 0.9, 100)
    noise = np.random.default_rng(0).normal(0, 0.01, 100)
    curves = {"bf16": steps, "nf4": steps + noise, "fp8": steps + 0.05}
    curves = {base: list(losses) for base, losses in curves.items()}
    curves["fp16"] = [*curves["bf16"][:-1], None]
    lines = {line["base"]: line for line in gpu_sameness.compare_curves(curves)}
    assert [lines[base]["ok"] for base in curves] == [True, True, False, False]
    assert lines["fp8"]["difference"] == pytest.approx(0.05)
    assert lines["nf4"]["standard_error"] == pytest.approx(0.01 / 30**0.5, rel=0.3)

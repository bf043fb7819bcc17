"""Logits of packed batches, and what is told of a loaded model."""

import numpy as np
import pytest
import torch
from engine_samples import ROWS
from model_samples import LORA

from prefdistill.engine.device import SHARDED
from prefdistill.engine.packing import collate
from prefdistill.models.forward import (
    classify,
    core_model,
    device_of,
    engine_of,
    is_sharded,
    shares_prompts,
)
from prefdistill.models.loading import load_classifier, load_language_model
from prefdistill.models.lora import add_adapter
from prefdistill.settings import LoraSettings, read


@pytest.fixture
def model(tiny_model_folder):
    return load_classifier(tiny_model_folder("gemma2"), "fp32", head_seed=3)


@pytest.mark.parametrize("n_rows", [1, 63, 64, 65])
def test_any_number_of_rows_scores_as_single_rows(model, n_rows):
    """Up to 64 rows count as 64; the rows that fill up are not returned."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, 400, 1 + n % 9) for n in range(n_rows)]
    with torch.no_grad():
        logits = classify(model, collate(rows))
        single = torch.cat([classify(model, collate([row])) for row in rows])
    assert (logits.shape, logits.dtype) == ((n_rows, 3), torch.float32)
    torch.testing.assert_close(logits, single, atol=1e-5, rtol=1e-5)


def test_the_last_token_is_the_one_scored(model):
    """What comes after a row's last token, in the next row, changes nothing."""
    with torch.no_grad():
        first = classify(model, collate([ROWS[1], ROWS[2]]))
        other = classify(model, collate([ROWS[1], ROWS[3], ROWS[2]]))
        cut = classify(model, collate([ROWS[1][:-1], ROWS[2]]))
    torch.testing.assert_close(first, other[[0, 2]], atol=1e-5, rtol=1e-5)
    assert (first[0] - cut[0]).abs().max() > 1e-3


def test_an_adapter_changes_neither_the_core_nor_its_engine(model):
    engine = engine_of(model)
    assert core_model(model) is model
    adapted = add_adapter(model, read(LoraSettings, LORA), seed=1)
    assert core_model(adapted) is model is not adapted
    assert engine_of(adapted) is engine
    assert engine_of(adapted.unload()) is engine


def test_a_sharded_model_is_known_with_its_adapter(model):
    assert not is_sharded(model)
    setattr(model, SHARDED, True)
    assert is_sharded(model)
    adapted = add_adapter(model, read(LoraSettings, LORA), seed=1)
    assert is_sharded(adapted)
    setattr(model, SHARDED, False)
    assert not is_sharded(adapted)


def test_only_a_classifier_may_share_prompts(model, tiny_model_folder):
    language = load_language_model(tiny_model_folder("gemma2"), "fp32")
    assert shares_prompts(model)
    assert shares_prompts(add_adapter(model, read(LoraSettings, LORA), seed=1))
    assert not shares_prompts(language)


def test_the_device_is_that_of_the_weights():
    for device in ("cpu", "meta"):
        assert device_of(torch.nn.Linear(2, 2, device=device)).type == device

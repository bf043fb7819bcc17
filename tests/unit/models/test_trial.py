"""Trials of a configured model on a few pairs."""

from dataclasses import replace

import numpy as np
import pytest
import script_samples
from scipy.special import softmax
from two_processes import LORA, TEXT

from prefdistill.data.prompts import encode_pairs
from prefdistill.engine.engine import RECOMPUTE
from prefdistill.models.loading import load_classifier, load_tokenizer
from prefdistill.models.scoring import score_pairs
from prefdistill.models.trial import pairs_to_try, try_model
from prefdistill.settings import ModelSettings, TextSettings, read

PAIRS = [
    {"prompt": "Which?", "response_a": "yes", "response_b": "no"},
    {"prompt": "Name a river", "response_a": "", "response_b": "river " * 9},
]
SETTINGS = read(
    ModelSettings,
    script_samples.MODEL
    | {"precision": "fp32", "lora": LORA}
    | {"post_pretrain": script_samples.POST | {"seed": 7}},
)


def test_pairs_to_try_have_one_turn_and_a_number():
    table = pairs_to_try(PAIRS)
    assert table.column("id").to_pylist() == ["check:1", "check:2"]
    for field in ("prompt", "response_a", "response_b"):
        turns = table.column(field).to_pylist()
        assert turns == [[pair[field]] for pair in PAIRS]


@pytest.fixture
def try_it(tiny_model_folder):
    def run(**changes):
        folder, text = tiny_model_folder("gemma2"), read(TextSettings, TEXT)
        return try_model(
            folder, replace(SETTINGS, **changes), text, pairs_to_try(PAIRS)
        )

    return run


def test_a_fresh_adapter_leaves_the_scores_of_the_seeded_head(
    try_it, tiny_model_folder
):
    """LoRA's B is zero before training."""
    folder = tiny_model_folder("gemma2")
    model = load_classifier(folder, "fp32", head_seed=7)
    text = read(TextSettings, TEXT)
    encoded = encode_pairs(pairs_to_try(PAIRS), load_tokenizer(folder), text)
    expected = softmax(score_pairs(model, encoded), axis=-1)
    row = try_it()
    for pair, by_view in enumerate(expected, start=1):
        for view, probs in zip(("AB", "BA"), by_view, strict=True):
            cell = np.array(row[f"pair{pair}_{view}"].split(), dtype=float)
            np.testing.assert_allclose(cell, probs, atol=6e-5)
    other = try_it(post_pretrain=replace(SETTINGS.post_pretrain, seed=8))
    assert other["pair1_AB"] != row["pair1_AB"]


def test_a_trial_describes_the_model(try_it):
    row = try_it()
    n_linear = 2 * (2 * 32 * 64 + 2 * 32 * 32 + 3 * 32 * 48)
    n_lora = 2 * 2 * ((32 + 64) + (32 + 48))
    n_base = 400 * 32 + n_linear + 9 * 32
    assert row["architecture"] == "Gemma2ForSequenceClassification"
    assert row["precision"] == "fp32"
    assert row["n_linear_parameters"] == n_linear
    assert row["n_lora_parameters"] == n_lora
    assert row["n_base_parameters"] == n_base
    assert row["lora_share"] == f"{n_lora / n_base:.6f}"
    assert row["head_shape"] == "3x32"


def test_less_memory_is_estimated_for_more_recomputation(try_it):
    row = try_it(training=replace(SETTINGS.training, token_budget=100_000))
    gib = [float(row[f"training_gib_recompute_{how}"]) for how in RECOMPUTE]
    assert RECOMPUTE == ("none", "selective", "full")
    assert gib[0] > gib[1] > gib[2] > 0

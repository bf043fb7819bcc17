"""Score toy files with an adapter, its merged weights and a whole model."""

import infer_logits
import numpy as np
import pytest
from script_samples import run_infer_logits
from two_processes import TEXT

from prefdistill.errors import UserError
from prefdistill.settings import ScoringSettings, TextSettings, read
from prefdistill.storage.digests import file_digest
from prefdistill.storage.logits import read_logits


def test_teacher_and_logits(world, teacher):
    scores = run_infer_logits(world, teacher)
    assert scores.logits.shape == (13, 2, 3)
    assert scores.meta["max_length"] == 80
    assert len(scores.meta["adapter"]) == 64
    some = run_infer_logits(world, teacher, rows=[2, 4])
    assert some.ids.tolist() == [f"train:{n}" for n in (2, 3, *range(8, 13))]
    np.testing.assert_allclose(
        some.logits, scores.select(scores.rows_of(some.ids)).logits, atol=1e-5
    )
    merged = run_infer_logits(world, teacher, weights="merged")
    np.testing.assert_allclose(merged.logits, scores.logits, atol=1e-5)


def test_predicting_with_a_whole_model(world, tmp_path):
    from prefdistill.models.loading import load_classifier, load_tokenizer

    model = load_classifier(world["gemma2"].parent, "fp32", head_seed=1)
    model.save_pretrained(tmp_path)
    load_tokenizer(world["gemma2"].parent).save_pretrained(tmp_path)
    weights, logits = tmp_path / "model.safetensors", tmp_path / "logits.npz"
    arguments = {
        "pairs": [world["folder"] / "fold0.parquet"],
        "weights": weights,
        "base": None,
        "logits": logits,
        "text": read(TextSettings, TEXT),
        "scratch": tmp_path / "scratch",
        "code": "c",
    }
    options = {"splits": ["test"], "token_budget": 512}
    one_view = ScoringSettings("auto", views=["BA"], **options)
    infer_logits.main(**arguments, scoring=one_view)
    scores = read_logits(logits)
    assert (scores.logits.shape, scores.views) == ((1, 1, 3), ["BA"])
    assert scores.meta["adapter"] is None
    assert scores.meta["base"] == file_digest(weights)
    infer_logits.main(**arguments, scoring=ScoringSettings("auto", **options))
    both = read_logits(logits).logits
    np.testing.assert_allclose(both[:, 1:], scores.logits, atol=1e-5)
    arguments["pairs"] *= 2
    with pytest.raises(UserError, match="a row id occurs twice"):
        infer_logits.main(**arguments, scoring=one_view)

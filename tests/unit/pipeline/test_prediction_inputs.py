"""Weights, rows, precision and calibration of each model, by its name."""

from types import SimpleNamespace

import pytest

from prefdistill.pipeline.prediction_inputs import (
    judge_calibration,
    prediction_precision,
    prediction_splits,
    prediction_tables,
    prediction_weights,
)


@pytest.mark.parametrize(
    ("model", "weights", "fold", "has_dev", "precision"),
    [
        ("merged", "merged/model", 0, False, "auto"),
        ("gptq4", "gptq/4bit/model", 0, False, "auto"),
        ("fold1_bf16", "student/fold1/adapter_model", 1, True, "auto"),
        ("fold12_nf4", "student/fold12/adapter_model", 12, True, "nf4"),
        ("fold0_gptq4", "student/fold0/adapter_model", 0, True, "auto"),
    ],
)
def test_inputs_follow_from_a_models_name(model, weights, fold, has_dev, precision):
    wildcards = SimpleNamespace(model=model)
    assert prediction_weights(wildcards) == f"results/{weights}.safetensors"
    assert prediction_tables(wildcards) == [
        f"results/folds/fold{fold}.parquet",
        "results/folds/unlabelled.parquet",
    ]
    held_out = ["select", "test", "unlabelled"]
    assert prediction_splits(wildcards) == ["dev"] * has_dev + held_out
    assert prediction_precision(wildcards) == precision


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("merged", "merged"),
        ("gptq8", "gptq/8bit"),
        ("adapters_nf4", "predictions/adapters_nf4"),
        ("fold2_gptq4", "predictions/fold2_gptq4"),
    ],
)
def test_a_judges_calibration_lies_beside_it(model, folder):
    found = judge_calibration(SimpleNamespace(model=model))
    assert found == f"results/{folder}/calibration.json"

import numpy as np
import pytest
from toy_stages import N_FOLDS, VIEWS, find, read_csv

from prefdistill.scores.metrics import log_loss
from prefdistill.storage.records import read_json
from prefdistill.storage.tables import read_table


def test_final_is_one_row_of_what_is_submitted(toy):
    rows = read_csv(toy.path("scores.csv"))
    (final,) = find(rows, stage="final")
    assert (final["model"], final["split"], final["views"], final["fold"]) == (
        "gptq8",
        "test",
        "AB+BA",
        "",
    )
    table = read_table(toy.path("gptq8.parquet")).to_pandas().set_index("id")
    test = toy.common == "test"
    probs = table.loc[toy.ids[test], ["p_a", "p_b", "p_tie"]].to_numpy()
    expected = log_loss(probs, toy.label[test])
    assert float(final["log_loss"]) == pytest.approx(expected, abs=1e-6)
    (same,) = find(rows, stage="gptq8_calibrated", split="test", views="AB+BA")
    assert same["log_loss"] == final["log_loss"]
    assert same["swap_agreement"] == final["swap_agreement"]
    raw = table.loc[toy.ids[test], ["raw_a", "raw_b", "raw_tie"]].to_numpy()
    (stage,) = find(rows, stage="gptq8", split="test", views="AB+BA")
    assert float(stage["log_loss"]) == pytest.approx(
        log_loss(raw, toy.label[test]), abs=1e-6
    )


def test_calibrated_dev_rows_are_cross_fitted(toy):
    """Check the scores against the cross-fitted figures of calibration.json."""
    rows = read_csv(toy.path("scores.csv"))
    for fold in range(N_FOLDS):
        record = read_json(toy.path(f"llama{fold}.json"))
        stage = {"stage": "teacher_calibrated", "model": "llama", "split": "dev"}
        single = [
            float(find(rows, **stage, fold=str(fold), views=view)[0]["log_loss"])
            for view in VIEWS
        ]
        assert np.mean(single) == pytest.approx(record["nll_after"], abs=1e-6)
    record = read_json(toy.path("merged.json"))
    (row,) = find(rows, stage="merged_calibrated", split="select", views="AB+BA")
    assert float(row["log_loss"]) == pytest.approx(record["nll_after"], abs=1e-6)

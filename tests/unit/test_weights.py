import numpy as np
import pytest
from weigh_folds import main as weigh_folds

from prefdistill.io import Logits, read_json
from prefdistill.job import UserError
from prefdistill.metrics import Labels
from prefdistill.weights import best_fold, fold_weights


def test_weights_are_normalised():
    assert fold_weights("equal", 4).tolist() == [0.25] * 4
    assert fold_weights([1, 3], 2).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("given", [[1, 1], [1, 0, 1], [1, -1, 1], [1, float("nan"), 1]])
def test_unusable_weights_are_refused(given):
    with pytest.raises(UserError, match=r"ensemble\.fold_weights"):
        fold_weights(given, 3)


def test_best_fold_is_chosen_on_select_only():
    ids = np.array([f"train:{i}" for i in range(4)])
    split = np.array(["select", "select", "test", "test"])
    labels = Labels(ids, split, np.array([0, 1, 2, 2]), ids, np.array(["train"] * 4))
    good = np.zeros((4, 2, 3), np.float32)
    good[0, :, :] = [[2, 0, 0], [0, 2, 0]]
    good[1, :, :] = [[0, 2, 0], [2, 0, 0]]
    good[2:, :, 2] = -5  # poor on test, which must not count
    flat = np.zeros((4, 2, 3), np.float32)
    models = [Logits(ids, split, flat, {}), Logits(ids, split, good, {})]
    assert best_fold([0, 2], models, labels, ["AB", "BA"]) == 2
    with pytest.raises(UserError, match="select_fraction"):
        best_fold([0, 2], models, labels.rows(split == "test"), ["AB", "BA"])


def test_weigh_folds_writes_what_it_did(tmp_path):
    path = tmp_path / "weights.json"
    weigh_folds([0, 1, 2], "equal", path)
    record = read_json(path)
    assert record["method"] == "equal"
    assert record["folds"] == [0, 1, 2]
    assert sum(record["weights"]) == pytest.approx(1)
    weigh_folds([0, 1], [1, 3], path)
    expected = {"folds": [0, 1], "weights": [0.25, 0.75], "method": "given"}
    assert read_json(path) == expected

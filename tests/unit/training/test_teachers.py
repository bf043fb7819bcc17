import json

import numpy as np
import pytest

from prefdistill.running.job import UserError
from prefdistill.storage.tables import Logits, write_logits
from prefdistill.training.teachers import check_gates, check_weights, teacher_logits

META = {"views": ["AB", "BA"]}
IDS = ["a", "b", "c", "x"]
SPLITS = {0: ["dev", "train", "train", "train"], 1: ["train", "dev", "train", "train"]}


@pytest.fixture
def files(tmp_path):
    """Logits of two folds; those of fold k, row i in order v are 100 k + 10 i + v."""
    paths = []
    for fold, split in SPLITS.items():
        values = 100 * fold + 10 * np.arange(4)[:, None] + np.arange(2)
        logits = np.repeat(values[:, :, None], 3, axis=2).astype(np.float32)
        path = tmp_path / f"fold{fold}.npz"
        write_logits(path, Logits(np.array(IDS), np.array(split), logits, META))
        paths.append(path)
    return paths


def test_rows_are_joined_by_id(files):
    ids = np.array(["x", "b"])
    logits, found = teacher_logits(ids, {"t": [files[0]]}, 0, "in_fold")
    assert logits.shape == (2, 1, 2, 3)
    assert logits[:, 0, :, 0].tolist() == [[30, 31], [10, 11]]
    assert found.all()


def test_rows_without_logits_are_marked(files, caplog):
    ids = np.array(["new", "b"])
    logits, found = teacher_logits(ids, {"t": [files[0]]}, 0, "in_fold")
    assert found.tolist() == [[False], [True]]
    assert (logits[0] == 0).all()
    assert "scored 1 of 2 rows" in caplog.text
    with pytest.raises(UserError, match="none of the student's rows"):
        teacher_logits(np.array(["new"]), {"t": [files[0]]}, 0, "in_fold")


def test_out_of_fold_rows_come_from_the_teacher_that_left_them_out(files):
    ids = np.array(["b", "c", "x"])
    logits, _ = teacher_logits(ids, {"t": files}, 0, "out_of_fold")
    assert logits[:, 0, 0, 0].tolist() == [110, 20, 30]


def test_no_teachers(files):
    logits, found = teacher_logits(np.array(IDS), {}, 0, "in_fold")
    assert logits.shape == (4, 0, 2, 3)
    assert found.shape == (4, 0)


@pytest.mark.parametrize("policy", ["refuse", "warn", "off"])
def test_gates(policy, tmp_path, caplog):
    gate = {"information_gain": 0.002, "low": -0.001, "high": 0.005, "passed": False}
    paths = []
    for name, passed in (("good", True), ("bad", False)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"gate": gate | {"passed": passed}}))
        paths.append(path)
    check_gates({"t": paths[:1]}, policy)
    assert not caplog.records
    if policy == "refuse":
        with pytest.raises(UserError, match=r"bad\.json: teacher t gains 0\.0020 nats"):
            check_gates({"t": paths}, policy)
    else:
        check_gates({"t": paths}, policy)
        assert len(caplog.records) == (policy == "warn")


def test_weights_leave_a_term():
    weights = {"ce": 0.0, "kl": 1.0, "cosine": 0.0}
    check_weights(weights, 1)
    with pytest.raises(UserError, match=r"distillation\.weights"):
        check_weights(weights, 0)

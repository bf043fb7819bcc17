"""What the teachers left: read once, checked, and joined to rows by id."""

import json

import numpy as np
import pytest
import two_processes
from two_processes import DISTILLATION

from prefdistill.data.prompts import text_digest
from prefdistill.errors import UserError
from prefdistill.settings import DistillationSettings, LossWeights, TextSettings, read
from prefdistill.storage.logits import VIEWS, Logits, read_logits, write_logits
from prefdistill.training import teachers as distillation
from prefdistill.training.teachers import (
    TeacherFiles,
    check_weights,
    read_teachers,
    teacher_logits,
)

TEXT = read(TextSettings, two_processes.TEXT)
META = {"text": text_digest(TEXT), "max_length": TEXT.max_length, "views": list(VIEWS)}
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


def teachers_of(logits, **changes):
    """The one teacher of fold 0, with more files where its name is of a list."""
    lists = {key: changes.pop(key) for key in ("gates", "unseen") if key in changes}
    files = TeacherFiles(["t"], 0, logits, **lists)
    settings = read(DistillationSettings, DISTILLATION | changes)
    return read_teachers(files, TEXT, settings)


def test_rows_are_joined_by_id(files):
    ids = np.array(["x", "b"])
    logits, found = teacher_logits(ids, teachers_of(files[:1]))
    assert logits.shape == (2, 1, 2, 3)
    assert logits[:, 0, :, 0].tolist() == [[30, 31], [10, 11]]
    assert found.all()


def test_rows_without_logits_are_marked(files, caplog):
    ids = np.array(["new", "b"])
    logits, found = teacher_logits(ids, teachers_of(files[:1]))
    assert found.tolist() == [[False], [True]]
    assert (logits[0] == 0).all()
    assert "scored 1 of 2 rows" in caplog.text
    with pytest.raises(UserError, match="none of the student's rows"):
        teacher_logits(np.array(["new"]), teachers_of(files[:1]))


def test_out_of_fold_rows_come_from_the_teacher_that_left_them_out(files):
    ids = np.array(["b", "c", "x"])
    logits, _ = teacher_logits(ids, teachers_of(files, labels="out_of_fold"))
    assert logits[:, 0, 0, 0].tolist() == [110, 20, 30]


def test_no_teachers():
    logits, found = teacher_logits(np.array(IDS), [])
    assert logits.shape == (4, 0, 2, 3)
    assert found.shape == (4, 0)


def test_each_teacher_has_its_share_of_every_list(files):
    named = TeacherFiles(["one", "two"], 0, [files[0], files[1]], unseen=files * 2)
    settings = read(DistillationSettings, DISTILLATION)
    one, two = read_teachers(named, TEXT, settings)
    assert (one.name, two.name) == ("one", "two")
    assert one.scores.logits[0, 0, 0] == 0
    assert two.scores.logits[0, 0, 0] == 100
    assert [len(each.unseen) for each in (one, two)] == [2, 2]


def test_every_file_is_read_once(files, monkeypatch):
    done = []

    def counted(path):
        done.append(path)
        return read_logits(path)

    monkeypatch.setattr(distillation, "read_logits", counted)
    teachers_of(files, labels="out_of_fold", unseen=files)
    assert done == files


@pytest.mark.parametrize(
    ("key", "value"), [("text", "0" * 12), ("max_length", 79), ("views", ["BA", "AB"])]
)
def test_logits_of_other_texts_are_refused(key, value, files):
    scores = read_logits(files[0])
    other = Logits(scores.ids, scores.split, scores.logits, META | {key: value})
    write_logits(files[0], other)
    with pytest.raises(UserError, match=r"fold0\.npz: its logits were made with"):
        teachers_of(files[:1])


@pytest.mark.parametrize("policy", ["refuse", "warn", "off"])
def test_gates(policy, files, tmp_path, caplog):
    gate = {"information_gain": 0.002, "low": -0.001, "high": 0.005, "passed": False}
    paths = []
    for name, passed in (("good", True), ("bad", False)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"gate": gate | {"passed": passed}}))
        paths.append(path)
    settings = {"labels": "out_of_fold", "teacher_gate": policy}
    teachers_of(files, gates=paths[:1], **settings)
    assert not caplog.records
    if policy == "refuse":
        with pytest.raises(UserError, match=r"bad\.json: teacher t gains 0\.0020 nats"):
            teachers_of(files, gates=paths, **settings)
    else:
        teachers_of(files, gates=paths, **settings)
        assert len(caplog.records) == (policy == "warn")


def test_weights_leave_a_term():
    weights = LossWeights(ce=0.0, kl=1.0, cosine=0.0)
    check_weights(weights, 1)
    with pytest.raises(UserError, match=r"distillation\.weights"):
        check_weights(weights, 0)

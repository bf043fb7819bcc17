"""What a student's rows become under each setting."""

import json

import numpy as np
import pyarrow as pa
import pytest
import two_processes
from two_processes import DISTILLATION

from prefdistill.data.prompts import text_digest
from prefdistill.errors import UserError
from prefdistill.scores.metrics import class_prior, labels_of
from prefdistill.settings import (
    DistillationSettings,
    SampleWeightSettings,
    TextSettings,
    read,
)
from prefdistill.storage.logits import VIEWS, Logits, read_logits, write_logits
from prefdistill.storage.tables import FOLD_SCHEMA
from prefdistill.training.lessons import make_lessons
from prefdistill.training.row_weights import gain_weights, unseen_probs
from prefdistill.training.teachers import TeacherFiles, pseudo_logits, read_teachers

N_ROWS = 30
TEXT = read(TextSettings, two_processes.TEXT)
META = {"text": text_digest(TEXT), "max_length": TEXT.max_length, "views": list(VIEWS)}


def table_of(ids, split, source="train"):
    n_rows = len(ids)
    labels = np.eye(3, dtype=np.int8)[np.arange(n_rows) % 3]
    targets = [[None] * n_rows] * 3 if source == "test" else list(labels.T)
    groups = [f"{source}-{n}" for n in range(n_rows)]
    if source == "test":
        groups[0] = "train-0"  # the prompt of a row that is dev in fold 0
    texts = [[["x"]] * n_rows] * 3
    columns = [ids, [source] * n_rows, split, groups, *texts, *targets]
    return pa.table(columns, schema=FOLD_SCHEMA)


@pytest.fixture
def world(tmp_path):
    """Fold 0 of 3; each teacher's logits of every fold and of 4 unlabelled rows."""
    rng = np.random.default_rng(0)
    ids = [f"train:{n}" for n in range(N_ROWS)]
    splits = []
    for fold in range(3):
        split = ["train"] * N_ROWS
        split[8 * fold : 8 * fold + 8] = ["dev"] * 8
        splits.append([*split[:28], "select", "test"])
    table = table_of(ids, splits[0])
    new = [f"test:{n}" for n in range(4)]
    unlabelled = table_of(new, ["unlabelled"] * 4, "test")
    unseen, own = [], []
    for teacher in ("one", "two"):
        for fold, split in enumerate(splits):
            logits = rng.normal(size=(N_ROWS, 2, 3)) * 2
            path = tmp_path / f"{teacher}{fold}.npz"
            write_logits(path, Logits(np.array(ids), np.array(split), logits, META))
            unseen.append(path)
        path = tmp_path / f"{teacher}.unlabelled.npz"
        logits = rng.normal(size=(4, 2, 3)).astype(np.float32)
        write_logits(
            path, Logits(np.array(new), np.array(["unlabelled"] * 4), logits, META)
        )
        own.append(path)
    train = table.filter(pa.array([each == "train" for each in splits[0]]))
    return {
        "folder": tmp_path,
        "fold": table,
        "train": train,
        "pairs": unlabelled,
        "unseen": unseen,
        "unlabelled": own,
    }


def teachers_of(world, kinds=()):
    files = TeacherFiles(
        ["one", "two"], 0, world["unseen"][::3], **{kind: world[kind] for kind in kinds}
    )
    return read_teachers(files, TEXT, read(DistillationSettings, DISTILLATION))


def lessons_of(world, kinds=(), labelled=None, **changes):
    n_rows = len(world["train"])
    return make_lessons(
        world["fold"],
        world["train"],
        np.ones(n_rows, bool) if labelled is None else labelled,
        world["pairs"] if "unlabelled" in kinds else None,
        teachers_of(world, kinds),
        read(DistillationSettings, DISTILLATION | changes),
    )


def test_with_everything_off_rows_are_as_they_were(world):
    lessons = lessons_of(world)
    assert len(lessons.table) == len(world["train"]) == 20
    assert (lessons.row_weights == 1).all()
    assert set(lessons.targets.ravel().tolist()) == {0.0, 1.0}
    assert lessons.record == {"n_rows": 20, "n_labelled": 20, "dev_is_clean": True}


def test_rows_are_weighed_by_the_gain_over_the_prior(world):
    beta = {"sample_weights": {"beta": -0.5, "low": 0.5, "high": 2.0}}
    labelled = np.arange(20) != 3
    lessons = lessons_of(world, ["unseen"], labelled, **beta)
    ids = np.array(world["train"].column("id").to_pylist())
    probs, unseen = unseen_probs(ids, list(map(read_logits, world["unseen"])))
    rows = np.flatnonzero(unseen & labelled)
    # Fold 0's train side holds the dev rows of folds 1 and 2, and four that are
    # nowhere dev.
    assert unseen.sum() == 16
    assert 3 not in rows
    label = lessons.targets.argmax(axis=1)
    prior = class_prior(labels_of(world["fold"]))
    gain = [np.log(probs[row, label[row]] / prior[label[row]]) for row in rows]
    expected = gain_weights(
        np.array(gain), SampleWeightSettings(beta=-0.5, low=0.5, high=2.0)
    )
    assert lessons.row_weights[rows] == pytest.approx(expected, rel=1e-6)
    others = np.setdiff1d(np.arange(20), rows)
    assert (lessons.row_weights[others] == 1).all()
    assert lessons.row_weights.dtype == np.float32
    record = lessons.record
    assert record["n_judged_out_of_fold"] == len(rows) == 15
    assert record["information_gain"]["mean"] == pytest.approx(np.mean(gain))
    assert record["weight_quantiles"]["1"] == pytest.approx(expected.max())
    assert not record["dev_is_clean"]


def test_without_a_verdict_no_row_is_weighed(world):
    beta = {"sample_weights": {"beta": -0.5, "low": 0.5, "high": 2.0}}
    lessons = lessons_of(world, ["unseen"], np.zeros(20, bool), **beta)
    assert (lessons.row_weights == 1).all()
    assert lessons.record["n_judged_out_of_fold"] == 0


def test_unlabelled_rows_join_with_their_weight(world):
    pseudo = {"pseudo_labels": {"weight": 0.5}}
    lessons = lessons_of(world, ["unlabelled"], **pseudo)
    ids = lessons.table.column("id").to_pylist()
    # test:0 shares a prompt with a row of dev.
    assert ids[20:] == ["test:1", "test:2", "test:3"]
    assert lessons.record["n_pseudo_left_out"] == 1
    assert lessons.record["n_pseudo_labelled"] == 3
    assert lessons.row_weights.tolist() == [1] * 20 + [0.5] * 3
    assert lessons.is_labelled.tolist() == [True] * 20 + [False] * 3
    assert lessons.has_teacher.all()
    teachers = teachers_of(world, ["unlabelled"])
    expected = pseudo_logits(np.array(ids[20:]), teachers)
    assert (lessons.teacher_logits[20:] == expected).all()
    assert lessons.record["dev_is_clean"]


def test_pseudo_labels_are_scaled_as_the_teachers_are(world):
    path = world["folder"] / "calibration.json"
    fit = {"method": "vector", "tied": True, "a": [2, 2, 0.5], "b": [-0.5, -0.5, 1]}
    path.write_text(json.dumps(fit))
    ids = np.array(["test:2"])
    world["scalings"] = [path, path.with_name("plain.json")]
    plain = {"method": "none", "tied": True, "a": [1, 1, 1], "b": [0, 0, 0]}
    path.with_name("plain.json").write_text(json.dumps(plain))
    scaled = teachers_of(world, ["unlabelled", "scalings"])
    raw = teachers_of(world, ["unlabelled"])
    before, after = pseudo_logits(ids, raw), pseudo_logits(ids, scaled)
    assert after[0, 0] == pytest.approx(before[0, 0] * fit["a"] + np.array(fit["b"]))
    assert (after[0, 1] == before[0, 1]).all()
    with pytest.raises(UserError, match="ids have no logits, such as new"):
        pseudo_logits(np.array(["new"]), raw)

"""Numbers of pairs and of training's pairs, worked out by hand."""

from pathlib import Path

import pytest
from configurations import configured, section

from prefdistill.pipeline.pair_counts import (
    Pairs,
    count_pairs,
    scored_pairs,
    trained_pairs,
)
from prefdistill.settings import (
    InferenceSettings,
    PostPretrainSettings,
    TrainingSettings,
)


def counted(**changes):
    settings = configured("demo", **changes)
    return count_pairs(settings.data, settings.folds, settings.simulation)


def test_simulated_pairs_are_counted_by_their_settings():
    # 4,000 pairs: 30 % outside the folds, a third of the rest in dev.
    assert counted() == Pairs(2467, 933, 1200, 1000, 300)


def test_pairs_of_files_are_counted_by_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"train.csv": 3_200_000, "extra.csv.gz": 320_000, "ultra.parquet": 1}
    for name, size in sizes.items():
        with open(name, "wb") as handle:
            handle.truncate(size)
    data = {
        "train": ["train.csv"],
        "extra": ["extra.csv.gz", {"hub": "a/b"}],
        "ultra": ["ultra.parquet"],
        "unlabelled": ["train.csv"],
        "test": None,
    }
    folds = {"n": 4, "select_fraction": 0.1, "test_fraction": 0.1}
    settings = configured("demo", data=data, folds=folds)
    sections = (settings.data, settings.folds, settings.simulation)
    expected = Pairs(600 + 300 + 60_000, 200, 200, 1, 0, 1000)
    assert count_pairs(*sections) == expected
    Path("train.csv").unlink()
    assert count_pairs(*sections).held_out == 12_000


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, 1000),
        ({"epochs": 2.5}, 2500),
        ({"n_rows": 100, "epochs": 2}, 200),
        ({"n_rows": 5000}, 1000),
        ({"max_steps": 10}, 320),
        ({"max_steps": 10_000}, 1000),
    ],
)
def test_pairs_shown_in_training(changes, shown):
    settings = section(TrainingSettings, **changes)
    assert trained_pairs(settings, 1000) == pytest.approx(shown)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"fraction_of_epoch": 0.01}, 10),
        ({"objective": "none"}, 0),
        ({"objective": "classification"}, 1000),
        ({"max_steps": 10}, 320),
    ],
)
def test_pairs_shown_in_post_pretraining(changes, shown):
    settings = section(PostPretrainSettings, **changes)
    assert trained_pairs(settings, 1000) == pytest.approx(shown)


@pytest.mark.parametrize(
    ("rows", "n_rows", "n_train"),
    [
        (None, None, 600),
        (None, 100, 100),
        (None, 5000, 600),
        ([100, 300], None, 200),
        ([500, 900], None, 100),
        ([700, 900], 100, 0),
    ],
)
def test_pairs_scored_by_a_teacher(rows, n_rows, n_train):
    pairs = Pairs(600, 200, 50, 0, 7)
    settings = section(InferenceSettings, rows=rows, n_rows=n_rows)
    assert scored_pairs(settings, pairs) == n_train + 250

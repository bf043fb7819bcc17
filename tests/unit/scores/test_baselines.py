import numpy as np
import pyarrow as pa
import pytest
from fit_baselines import main as fit_baselines_script

from prefdistill.scores.baselines import (
    STAGES,
    fit_baselines,
    join_turns,
    pair_features,
)
from prefdistill.scores.metrics import labels_of, log_loss
from prefdistill.storage.tables import FOLD_SCHEMA, read_table, write_table

WORDS = ["red", "green", "blue", "cat", "dog", "sun", "rain", "tree", "house", "river"]


def text(rng, n_words):
    return " ".join(rng.choice(WORDS, n_words))


def fold_table(n=400, seed=0):
    """Make pairs whose longer answer wins, or ties if they are about as long."""
    rng = np.random.default_rng(seed)
    columns = {field.name: [] for field in FOLD_SCHEMA}
    for i in range(n):
        sizes = rng.integers(3, 60, 2)
        ratio = np.log(sizes[0] / sizes[1])
        label = 2 if abs(ratio) < 0.3 else int(ratio < 0)
        if rng.random() < 0.1:
            label = int(rng.integers(3))
        split = "train"
        if i % 5 == 0:
            split = ("dev", "test", "select", "dev")[i // 5 % 4]
        row = {
            "id": f"train:{i}",
            "source": "train" if i % 9 or split != "train" else "extra",
            "split": split,
            "group": f"g{i}",
            "prompt": [text(rng, 5), "", text(rng, 2)],
            "response_a": [text(rng, sizes[0])],
            "response_b": ["- " + text(rng, 2), None, text(rng, sizes[1])],
            "winner_model_a": int(label == 0),
            "winner_model_b": int(label == 1),
            "winner_tie": int(label == 2),
        }
        for name, value in row.items():
            columns[name].append(value)
    return pa.Table.from_pydict(columns, FOLD_SCHEMA)


def test_turns_may_be_missing():
    assert join_turns(["a", None, "b"]) == "a\n\nb"
    assert join_turns([]) == join_turns(None) == ""


def test_features_follow_the_answers_when_swapped():
    table = fold_table(30)
    exchanged = table.select(["prompt", "response_b", "response_a"]).rename_columns(
        ["prompt", "response_a", "response_b"]
    )
    features, other = pair_features(table), pair_features(exchanged)
    assert (features.swapped().all_columns() == other.all_columns()).all()
    assert np.isfinite(features.all_columns()).all()
    assert len(pair_features(table.slice(0, 0)).same) == 0


def test_features_of_empty_and_odd_texts_are_finite():
    table = pa.table(
        {
            "prompt": pa.array([[], ["?"], None], pa.list_(pa.string())),
            "response_a": pa.array([[""], ["```\n1. x\n```"], ["\u00e9" * 9]]),
            "response_b": pa.array(
                [[None], ["  \n"], ["12 34!"]], pa.list_(pa.string())
            ),
        }
    )
    assert np.isfinite(pair_features(table).all_columns()).all()


def test_baselines_improve_in_their_order_and_ignore_position():
    table = fold_table()
    labels, features = labels_of(table), pair_features(table)
    train, dev = labels.split == "train", labels.split != "train"
    probs = fit_baselines(features, labels, train, dev, seed=0)
    losses = {s: log_loss(probs[s], labels.label[dev]) for s in STAGES}
    assert losses["length"] < losses["prior"] - 0.2
    assert losses["trees"] < losses["prior"] - 0.2
    swapped = fit_baselines(features.swapped(), swap(labels), train, dev, seed=0)
    for stage in ("length", "trees"):
        assert probs[stage].sum(axis=1) == pytest.approx(np.ones(dev.sum()))
        assert swapped[stage][:, [1, 0, 2]] == pytest.approx(probs[stage], abs=0.02)


def swap(labels):
    from dataclasses import replace

    return replace(labels, label=np.array([1, 0, 2])[labels.label])


def test_a_class_that_never_occurs_keeps_some_probability():
    table = fold_table(80)
    labels, features = labels_of(table), pair_features(table)
    train = (labels.split == "train") & (labels.label != 2)
    probs = fit_baselines(features, labels, train, labels.split == "dev", seed=0)
    for stage in STAGES:
        assert (probs[stage] > 0).all()


def test_script(tmp_path):
    paths = [tmp_path / "fold0.parquet", tmp_path / "fold1.parquet"]
    table = fold_table(200)
    write_table(paths[0], table, FOLD_SCHEMA)
    write_table(paths[1], table.take(np.arange(200)[::-1]), FOLD_SCHEMA)
    fit_baselines_script(paths, None, tmp_path / "baselines.parquet", seed=0)
    rows = read_table(tmp_path / "baselines.parquet").to_pandas()
    assert list(rows.columns[:4]) == ["stage", "fold", "split", "id"]
    assert set(rows.stage) == set(STAGES)
    assert set(zip(rows.fold, rows.split, strict=True)) == {
        (-1, "select"),
        (-1, "test"),
        (0, "dev"),
        (1, "dev"),
    }
    assert not rows.duplicated(["stage", "fold", "id"]).any()
    assert np.allclose(rows[["p_a", "p_b", "p_tie"]].sum(axis=1), 1)


def test_pairs_to_predict_are_scored_as_test_is(tmp_path):
    table = fold_table(200)
    write_table(tmp_path / "fold0.parquet", table, FOLD_SCHEMA)
    ids = [f"new:{i}" for i in range(200)]
    new = table.set_column(0, "id", pa.array(ids))
    new = new.set_column(2, "split", pa.array(["unlabelled"] * 200))
    for place, name in enumerate(FOLD_SCHEMA.names[-3:]):
        new = new.set_column(7 + place, name, pa.nulls(200, FOLD_SCHEMA.types[-1]))
    write_table(tmp_path / "new.parquet", new, FOLD_SCHEMA)
    found = []
    for number, path in enumerate((None, tmp_path / "new.parquet")):
        output = tmp_path / f"{number}.parquet"
        fit_baselines_script([tmp_path / "fold0.parquet"], path, output, seed=0)
        found.append(read_table(output).to_pandas())
    columns = ["p_a", "p_b", "p_tie"]
    without, both = (rows.set_index(["stage", "fold", "id"])[columns] for rows in found)
    assert np.allclose(both.loc[without.index], without)
    added = found[1][found[1].split == "unlabelled"]
    assert sorted(added[added.stage == "trees"].id) == sorted(ids)
    assert set(added.fold) == {-1}
    # The same texts get the same answer, whether they are there to score or to predict.
    split = dict(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True))
    for stage, fold, name in without.index:
        if split[name] in ("select", "test"):
            twin = (stage, fold, name.replace("train:", "new:"))
            assert np.allclose(both.loc[twin], both.loc[stage, fold, name])

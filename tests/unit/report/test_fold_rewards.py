"""Weigh folds by rewards, against the same sums done a row at a time."""

import math

import numpy as np
import pyarrow as pa
import pytest
from weigh_folds import main as weigh_folds

from prefdistill.errors import UserError
from prefdistill.scores.baselines import BASELINES_SCHEMA
from prefdistill.settings import AdvantageSettings
from prefdistill.storage.logits import Logits, write_logits
from prefdistill.storage.records import read_json
from prefdistill.storage.tables import FOLD_SCHEMA, write_table

META = {"views": ["AB", "BA"]}


def slow_weights(rewards, temperature):
    """Compare each fold with the mean of the others, one at a time."""
    raw = []
    for k, own in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != k]
        raw.append(math.exp((own - sum(others) / len(others)) / temperature))
    return [each / sum(raw) for each in raw]


def fold_of(folder, k, rng, n=40):
    """Write a fold file and its student's logits; return these and baseline rows."""
    ids = [f"train:{i}" for i in range(n)] + [f"train:{1000 * k + i}" for i in range(n)]
    split = ["select"] * n + ["dev"] * n
    label = rng.integers(3, size=2 * n)
    targets = np.eye(3, dtype=np.int8)[label].T
    texts = [["text"]] * (2 * n)
    columns = [ids, ["train"] * (2 * n), split, ids, texts, texts, texts, *targets]
    table = pa.Table.from_arrays(list(map(pa.array, columns)), FOLD_SCHEMA.names)
    write_table(folder / f"fold{k}.parquet", table, FOLD_SCHEMA)
    logits = rng.normal(size=(2 * n, 2, 3)).astype(np.float32)
    scores = Logits(np.array(ids), np.array(split), logits, META)
    write_logits(folder / f"{k}.npz", scores)
    shares = rng.dirichlet([2, 2, 2], n)
    rows = zip(ids[n:], shares.tolist(), strict=True)
    return scores, label, [("trees", k, "dev", i, *share) for i, share in rows]


def slow_reward(scores, label, rows, base=None):
    """Average the verdicts' log probability minus the baseline's, row by row."""
    total = 0.0
    for place, row in enumerate(rows):
        first, second = np.exp(scores.logits[row].astype(float))
        p = first / first.sum() / 2 + second[[1, 0, 2]] / second.sum() / 2
        total += math.log(p[label[row]])
        if base is not None:
            total -= math.log(base[place][4 + label[row]])
    return total / len(rows)


def softmax_rows(scores, rows):
    """Compute averaged probabilities, placed as in a row of the baselines."""
    found = []
    for row in rows:
        first, second = np.exp(scores.logits[row].astype(float))
        mean = first / first.sum() / 2 + second[[1, 0, 2]] / second.sum() / 2
        found.append([None] * 4 + mean.tolist())
    return found


def test_weigh_folds_writes_what_it_did(tmp_path):
    path = tmp_path / "weights.json"
    weigh_folds([], [], [], path, [0, 1, 2], "equal", None)
    record = read_json(path)
    assert record["method"] == "equal"
    assert record["folds"] == [0, 1, 2]
    assert sum(record["weights"]) == pytest.approx(1)
    weigh_folds([], [], [], path, [0, 1], [1, 3], None)
    expected = {"folds": [0, 1], "weights": [0.25, 0.75], "method": "given"}
    assert read_json(path) == expected


@pytest.mark.parametrize("baseline", ["trees", "ema", "none"])
def test_weigh_folds_by_advantage(tmp_path, baseline):
    rng = np.random.default_rng(1)
    folds = [fold_of(tmp_path, k, rng) for k in (1, 2, 3)]
    rows = [row for _, _, part in folds for row in part]
    rng.shuffle(rows)  # joined by fold and id, not by place
    table = pa.Table.from_pylist(
        [dict(zip(BASELINES_SCHEMA.names, row, strict=True)) for row in rows]
    )
    write_table(tmp_path / "baselines.parquet", table, BASELINES_SCHEMA)
    paths = {"trees": [tmp_path / "baselines.parquet"], "none": [], "ema": []}
    means = []
    for scores, _, _ in folds:
        logits = rng.normal(size=scores.logits.shape).astype(np.float32)
        means.append(scores.replace_logits(logits))
        paths["ema"].append(tmp_path / f"ema{len(means)}.npz")
        write_logits(paths["ema"][-1], means[-1])
    path = tmp_path / "weights.json"
    weigh_folds(
        fold_files=[tmp_path / f"fold{k}.parquet" for k in (1, 2, 3)],
        students=[tmp_path / f"{k}.npz" for k in (1, 2, 3)],
        baselines=paths[baseline],
        weights=path,
        folds=[1, 2, 3],
        fold_weights="advantage",
        advantage=AdvantageSettings(temperature=0.1, baseline=baseline),
    )
    record = read_json(path)
    where = range(40, 80) if baseline == "trees" else range(40)
    against = {
        "trees": [part for *_, part in folds],
        "ema": [softmax_rows(mean, where) for mean in means],
        "none": [None] * 3,
    }
    expected = [
        slow_reward(scores, label, where, base)
        for (scores, label, _), base in zip(folds, against[baseline], strict=True)
    ]
    assert record["split"] == ("dev" if baseline == "trees" else "select")
    assert [each["mean"] for each in record["rewards"]] == pytest.approx(expected)
    assert record["weights"] == pytest.approx(slow_weights(expected, 0.1))
    assert record["folds"] == [1, 2, 3]
    assert (record["temperature"], record["baseline"]) == (0.1, baseline)


def test_a_baseline_that_lacks_a_row_is_one_line(tmp_path):
    _, _, rows = fold_of(tmp_path, 1, np.random.default_rng(0))
    table = [dict(zip(BASELINES_SCHEMA.names, r, strict=True)) for r in rows[1:]]
    table = pa.Table.from_pylist(table)
    write_table(tmp_path / "baselines.parquet", table, BASELINES_SCHEMA)
    with pytest.raises(UserError, match="trees has no prediction of row id train:1000"):
        weigh_folds(
            [tmp_path / "fold1.parquet"],
            [tmp_path / "1.npz"],
            [tmp_path / "baselines.parquet"],
            tmp_path / "weights.json",
            [1],
            "advantage",
            AdvantageSettings(temperature=1.0, baseline="trees"),
        )

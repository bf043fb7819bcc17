"""Compare arms row by row, against the same sums done a row at a time."""

import csv
import math

import numpy as np
import pyarrow as pa
import pytest
from compare_arms import main as compare_arms

from prefdistill.report.comparisons import by_arm
from prefdistill.settings import EvaluationSettings
from prefdistill.storage.logits import Logits, write_logits
from prefdistill.storage.tables import FOLD_SCHEMA, write_table

META = {"views": ["AB", "BA"]}
N_FOLDS, N_SEEDS, N_ROWS = 2, 3, 40
EVALUATION = EvaluationSettings(n_bootstrap=200, seed=0, n_bins=15, labels_only=False)


@pytest.fixture
def world(tmp_path):
    """Write two folds' labels and logits of two arms, of which the second is better."""
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=N_ROWS)
    ids = [f"train:{n}" for n in range(N_ROWS)]
    folds, splits = [], []
    for fold in range(N_FOLDS):
        split = ["test" if n < 10 else "train" for n in range(N_ROWS)]
        split[10 + 10 * fold : 20 + 10 * fold] = ["dev"] * 10
        hot = np.eye(3, dtype=np.int8)[label]
        empty = [["x"]] * N_ROWS
        columns = [
            ids,
            ["train"] * N_ROWS,
            split,
            [f"g{n // 2}" for n in range(N_ROWS)],
        ]
        table = pa.table([*columns, empty, empty, empty, *hot.T], schema=FOLD_SCHEMA)
        folds.append(tmp_path / f"fold{fold}.parquet")
        write_table(folds[-1], table, FOLD_SCHEMA)
        splits.append(np.array(split))
    logits, files = {}, {}
    for arm, skill in (("plain", 0.5), ("better", 1.5)):
        files[arm] = []
        for seed in range(N_SEEDS):
            files[arm].append([])
            for fold in range(N_FOLDS):
                noise = rng.normal(size=(N_ROWS, 2, 3))
                true = np.eye(3)[label]
                seen = skill * np.stack([true, true[:, [1, 0, 2]]], axis=1) + noise
                kept = splits[fold] != "train"
                logits[arm, seed, fold] = seen
                path = tmp_path / f"{arm}.{seed}.{fold}.npz"
                names = np.array(ids)[kept]
                scores = Logits(names, splits[fold][kept], seen[kept], META)
                write_logits(path, scores)
                files[arm][-1].append(path)
    return {"folds": folds, "files": files, "logits": logits, "label": label,
            "splits": splits, "folder": tmp_path}  # fmt: skip


def plain_loss(logits, label):
    """Compute the loss of one row from exponentials, both orders averaged."""
    swapped = [1, 0, 2][label]
    first = math.exp(logits[0][label]) / sum(map(math.exp, logits[0]))
    second = math.exp(logits[1][swapped]) / sum(map(math.exp, logits[1]))
    return -math.log((first + second) / 2)


def run(world, unclean=()):
    table, page = world["folder"] / "toy.csv", world["folder"] / "toy.md"
    compare_arms(
        folds=world["folds"],
        predictions=[
            path
            for arm in ("plain", "better")
            for seed in world["files"][arm]
            for path in seed
        ],
        comparisons=[["plain", "better"]],
        changes={"plain": {}, "better": {"distillation": {"temperature": 2.0}}},
        unclean=list(unclean),
        evaluation=EVALUATION,
        table=table,
        page=page,
    )
    with open(table, newline="") as handle:
        return {row["split"]: row for row in csv.DictReader(handle)}, page.read_text()


def test_files_are_grouped_by_arm_seed_and_fold():
    found = by_arm(["a00", "a01", "a10", "a11", "b00", "b01", "b10", "b11"], "ab", 2)
    assert found == {
        "a": [["a00", "a01"], ["a10", "a11"]],
        "b": [["b00", "b01"], ["b10", "b11"]],
    }


@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_table_is_the_mean_over_seeds_folds_and_rows(world, split):
    rows, _ = run(world)
    by_seed = []
    for seed in range(N_SEEDS):
        found = {"plain": [], "better": []}
        for arm, losses in found.items():
            for fold in range(N_FOLDS):
                for row in np.flatnonzero(world["splits"][fold] == split):
                    logits = world["logits"][arm, seed, fold][row].astype(np.float32)
                    losses.append(plain_loss(logits.tolist(), world["label"][row]))
        by_seed.append((np.mean(found["plain"]), np.mean(found["better"])))
    first, second = np.mean(by_seed, axis=0)
    row = rows[split]
    assert int(row["n"]) == (20 if split == "dev" else 10)
    assert float(row["from_log_loss"]) == pytest.approx(first, abs=2e-6)
    assert float(row["to_log_loss"]) == pytest.approx(second, abs=2e-6)
    assert float(row["difference"]) == pytest.approx(second - first, abs=2e-6)
    assert float(row["low"]) < float(row["difference"]) < float(row["high"])
    spread = np.std([b - a for a, b in by_seed], ddof=1)
    assert float(row["seed_sd"]) == pytest.approx(spread, abs=2e-6)


def test_scores_on_dev_of_an_arm_whose_teachers_saw_it_are_marked(world):
    rows, page = run(world)
    assert {row["clean"] for row in rows.values()} == {"1"}
    assert "not clean" not in page
    rows, page = run(world, unclean=["better"])
    assert (rows["dev"]["clean"], rows["test"]["clean"]) == ("0", "1")
    assert page.count("| not clean |") == 1
    assert '| better | {"distillation": {"temperature": 2.0}}' in page


def test_one_seed_has_no_spread(world):
    world["files"] = {arm: seeds[:1] for arm, seeds in world["files"].items()}
    rows, _ = run(world)
    assert rows["test"]["seed_sd"] == ""

"""The scripts from logits to the report, run on a toy of every stage."""

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import plot_report
import pyarrow as pa
import pytest
import summarise_report
import write_pages
from average_predictions import main as average_predictions
from calibrate_judge import main as calibrate_judge
from calibrate_logits import main as calibrate_logits
from evaluate import main as evaluate
from fit_baselines import main as fit_baselines
from symmetrise import main as symmetrise_script
from weigh_folds import main as weigh_folds
from write_submission import main as write_submission

from prefdistill.classes import swap_classes
from prefdistill.errors import UserError
from prefdistill.report.score_table import (
    SCORE_COLUMNS,
    STEP_COLUMNS,
    over_folds,
    paired_steps,
    step_pairs,
)
from prefdistill.report.stages import Predictions, StageFiles
from prefdistill.scores.metrics import Labels, log_loss
from prefdistill.scores.views import columns_of, symmetrise
from prefdistill.storage.digests import file_digest
from prefdistill.storage.logits import Logits, read_logits, write_logits
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.tables import FOLD_SCHEMA, read_table, write_table

VIEWS = ["AB", "BA"]
META = {"views": VIEWS}
N_FOLDS, N_ROWS = 3, 600
CALIBRATION = {"method": "vector", "tied": True}
EVALUATION = {"n_bootstrap": 200, "seed": 0, "n_bins": 10}
TEACHERS = ["llama", "qwen"]
JUDGES = ["merged", "gptq8"]


class Toy:
    """A judge with known probabilities, and models that see them through noise."""

    def __init__(self, folder):
        self.folder = folder
        rng = np.random.default_rng(0)
        self.ids = np.array([f"train:{i}" for i in range(N_ROWS)])
        self.latent = 1.5 * rng.normal(size=(N_ROWS, 3))
        shares = np.exp(self.latent)
        self.truth = shares / shares.sum(axis=1, keepdims=True)
        drawn = self.truth.cumsum(axis=1) < rng.random((N_ROWS, 1))
        self.label = drawn.sum(axis=1)
        place = np.arange(N_ROWS) % 10
        self.common = np.select([place == 0, place < 3], ["select", "test"], "dev")
        self.fold_of = np.arange(N_ROWS) // 10 % N_FOLDS
        self.new_ids = np.array(["test:7", "test:3", "test:5"])

    def path(self, name):
        return self.folder / name

    def split(self, fold):
        own = (self.common == "dev") & (self.fold_of != fold)
        return np.where(own, "train", self.common)

    def write_folds(self):
        for fold in range(N_FOLDS):
            columns = {
                "id": self.ids.tolist(),
                "source": ["train"] * N_ROWS,
                "split": self.split(fold).tolist(),
                "group": [f"g{i // 2}" for i in range(N_ROWS)],
                "prompt": [["why", "how"]] * N_ROWS,
                "response_a": [["word " * (1 + i % 7)] for i in range(N_ROWS)],
                "response_b": [["word " * (1 + i % 5)] for i in range(N_ROWS)],
            }
            for c, name in enumerate(FOLD_SCHEMA.names[-3:]):
                columns[name] = (self.label == c).astype(int).tolist()
            table = pa.Table.from_pydict(columns, FOLD_SCHEMA)
            write_table(self.path(f"fold{fold}.parquet"), table, FOLD_SCHEMA)
        new = {name: [None] * 3 for name in FOLD_SCHEMA.names}
        new |= {"id": self.new_ids.tolist(), "split": ["unlabelled"] * 3}
        table = pa.Table.from_pydict(new, FOLD_SCHEMA)
        write_table(self.path("unlabelled.parquet"), table, FOLD_SCHEMA)
        columns = [self.ids.tolist(), *self.truth.T]
        truth = pa.table(dict(zip(["id", "p_a", "p_b", "p_tie"], columns, strict=True)))
        write_table(self.path("truth.parquet"), truth, truth.schema)

    def logits(self, seed, noise, sharpness, rows, split):
        """Logits of some rows in a random order, classes as shown."""
        rng = np.random.default_rng(seed)
        seen = self.latent + noise * rng.normal(size=self.latent.shape)
        shown = np.stack([seen, swap_classes(seen)], axis=1)
        shown += 0.2 * rng.normal(size=shown.shape)
        order = rng.permutation(np.flatnonzero(rows))
        return Logits(
            self.ids[order], split[order], np.float32(sharpness * shown[order]), META
        )

    def with_unlabelled(self, scores):
        rng = np.random.default_rng(9)
        return Logits(
            np.concatenate([scores.ids, self.new_ids]),
            np.concatenate([scores.split, ["unlabelled"] * 3]),
            np.concatenate([scores.logits, np.float32(rng.normal(size=(3, 2, 3)))]),
            META,
        )

    def teacher_paths(self, name):
        files = [(f"{name}{k}.npz", f"{name}{k}_c.npz") for k in range(N_FOLDS)]
        return [(self.path(raw), self.path(scaled)) for raw, scaled in files]

    def scores(self, model):
        return self.path(f"{model}.npz")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    toy = Toy(tmp_path_factory.mktemp("toy"))
    toy.write_folds()
    for number, name in enumerate(TEACHERS):
        for fold, (raw, calibrated) in enumerate(toy.teacher_paths(name)):
            every = np.ones(N_ROWS, bool)
            scores = toy.logits(10 * number + fold, 0.7, 4.0, every, toy.split(fold))
            adapter = raw.with_suffix(".safetensors")
            adapter.touch()
            meta = META | {"adapter": file_digest(adapter)}
            write_logits(raw, replace(scores, meta=meta))
            record = toy.path(f"{name}{fold}.json")
            fold_path = toy.path(f"fold{fold}.parquet")
            calibrate_logits(raw, adapter, fold_path, calibrated, record, CALIBRATION)
    for fold in range(N_FOLDS):
        split = toy.split(fold)
        scores = toy.logits(50 + fold, 0.9, 1.0, split != "train", split)
        write_logits(toy.scores(f"fold{fold}_bf16"), toy.with_unlabelled(scores))
    for number, name in enumerate(JUDGES):
        scores = toy.logits(
            70, 0.6 + 0.2 * number, 2.0, toy.common != "dev", toy.common
        )
        write_logits(toy.scores(name), toy.with_unlabelled(scores))
        judge = toy.path(f"{name}.json")
        calibrate_judge(toy.scores(name), toy.path("fold0.parquet"), judge, "vector")
    weigh_folds([], [], [], toy.path("weights.json"), [0, 1, 2], "equal", None)
    symmetrised = toy.path("gptq8.parquet")
    symmetrise_script(
        toy.scores("gptq8"), toy.path("gptq8.json"), None, symmetrised, 0.0
    )
    folds = [toy.path(f"fold{k}.parquet") for k in range(N_FOLDS)]
    fit_baselines(folds, None, toy.path("baselines.parquet"), seed=0)
    run_evaluate(toy, folds)
    return toy


def run_evaluate(toy, folds):
    files = StageFiles(
        folds=folds,
        baselines=toy.path("baselines.parquet"),
        teachers={name: toy.teacher_paths(name) for name in TEACHERS},
        students=[toy.scores(f"fold{k}_bf16") for k in range(N_FOLDS)],
        labels_only=[],
        weights=toy.path("weights.json"),
        judges={n: (toy.scores(n), toy.path(f"{n}.json")) for n in JUDGES},
        final="gptq8",
        final_files=(
            toy.path("gptq8.parquet"),
            toy.scores("gptq8"),
            toy.path("gptq8.json"),
        ),
        truth=toy.path("truth.parquet"),
    )
    evaluate(
        files,
        scores=toy.path("scores.csv"),
        steps=toy.path("steps.csv"),
        predictions=toy.path("results/report/predictions.parquet"),
        calibration=CALIBRATION,
        evaluation=EVALUATION,
        trees_weight=0.0,
    )


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def find(rows, **wanted):
    return [r for r in rows if all(r[k] == v for k, v in wanted.items())]


def test_score_table_is_complete(toy):
    rows = read_csv(toy.path("scores.csv"))
    assert tuple(rows[0]) == SCORE_COLUMNS
    keys = [tuple(list(row.values())[:5]) for row in rows]
    assert len(set(keys)) == len(keys)
    for name in TEACHERS:
        for stage in ("teacher", "teacher_calibrated"):
            own = find(rows, stage=stage, model=name)
            # 3 folds and all of them, 3 splits, 2 views and their average
            assert len(own) == 4 * 3 * 3
    assert len(find(rows, stage="student")) == 4 * 3 * 3
    assert {r["split"] for r in find(rows, stage="adapters")} == {"select", "test"}
    for stage in ("prior", "length", "trees"):
        assert len(find(rows, stage=stage, split="dev")) == N_FOLDS + 1
        assert len(find(rows, stage=stage, split="test", fold="")) == 1
    for row in rows:
        low, loss, high = (
            float(row[f"log_loss{end}"]) for end in ("_low", "", "_high")
        )
        assert low <= loss <= high
        assert bool(row["swap_agreement"]) == (
            row["views"] == "AB+BA" and row["stage"] not in {"prior", "length", "trees"}
            and row["stage"] != "bayes"
        )  # fmt: skip
    dev = find(rows, stage="teacher", model="qwen", split="dev", views="AB")
    pooled = [int(r["n"]) for r in dev if r["fold"] == ""]
    assert pooled == [sum(int(r["n"]) for r in dev if r["fold"] != "")]


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


def test_scores_tell_the_known_story(toy):
    rows = read_csv(toy.path("scores.csv"))

    def loss(stage, model=None, split="test", fold=""):
        found = find(rows, stage=stage, split=split, views="AB+BA", fold=fold)
        return float([r for r in found if model in (None, r["model"])][-1]["log_loss"])

    test = toy.common == "test"
    bayes = log_loss(toy.truth[test], toy.label[test])
    assert loss("bayes") == pytest.approx(bayes, abs=1e-6)
    assert loss("bayes") < loss("final") < loss("prior")
    for name in TEACHERS:
        for split in ("dev", "test"):
            raw, scaled = (
                loss(s, name, split) for s in ("teacher", "teacher_calibrated")
            )
            assert scaled < raw - 0.1
    assert loss("teacher", "mean") < loss("teacher", "llama", fold="0")
    assert loss("merged_calibrated") < loss("merged")


def test_calibrated_dev_rows_are_cross_fitted(toy):
    """The table repeats the cross-fitted figures of calibration.json."""
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


def test_steps_are_differences_of_the_scores(toy):
    scores, steps = read_csv(toy.path("scores.csv")), read_csv(toy.path("steps.csv"))
    assert tuple(steps[0]) == STEP_COLUMNS
    pairs = {(s["from"], s["to"]) for s in steps if s["split"] == "test"}
    assert ("teacher_calibrated", "student") in pairs
    assert ("gptq8", "final") in pairs
    assert ("adapters", "merged") in pairs
    for step in steps:
        losses = []
        for stage in (step["from"], step["to"]):
            row = find(
                scores, stage=stage, split=step["split"], views="AB+BA", fold=""
            )[-1]
            assert row["n"] == step["n"]
            losses.append(float(row["log_loss"]))
        assert float(step["difference"]) == pytest.approx(
            losses[1] - losses[0], abs=2e-6
        )
        assert float(step["low"]) <= float(step["difference"]) <= float(step["high"])


def test_step_pairs_lead_to_the_final_model():
    assert ("gptq4", "final") in step_pairs(["merged", "gptq8", "gptq4"], "gptq4")
    assert ("adapters", "final") in step_pairs(["merged"], "adapters_nf4")
    pooled = step_pairs(["gptq4"], "gptq4", is_pooled=True)
    added = [("gptq4_calibrated", "final"), ("trees", "final")]
    assert sorted(pooled) == sorted(step_pairs(["gptq4"], "gptq4") + added)


def test_models_are_joined_by_id_and_steps_use_common_rows():
    ids = np.array(["a", "b", "c", "d"])
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([1, 1, 1], 4)
    order = np.array([2, 0, 3])
    first = Predictions("teacher", "x", 0, "test", ids, {"AB": probs})
    second = Predictions("teacher", "x", 1, "test", ids[order], {"AB": probs[order]})
    (mean,) = over_folds([first, second])
    assert mean.ids.tolist() == ["a", "c", "d"]
    assert mean.probs["AB"] == pytest.approx(probs[[0, 2, 3]])
    labels = Labels(ids, ids, np.array([0, 1, 2, 0]), ids, ids)
    prior = Predictions("prior", "prior", None, "test", ids, {"AB+BA": probs[:, ::-1]})
    (step,) = paired_steps(
        [prior, mean], labels, [("prior", "teacher")], n_bootstrap=50, seed=0
    )
    rows = [0, 2, 3]
    expected = log_loss(probs[rows], labels.label[rows]) - log_loss(
        probs[rows, ::-1], labels.label[rows]
    )
    assert step["n"] == 3
    assert step["difference"] == pytest.approx(expected)


@pytest.mark.parametrize("best", [False, True])
def test_average_predictions(toy, tmp_path, best):
    files = [toy.scores(f"fold{k}_bf16") for k in range(N_FOLDS)]
    output = tmp_path / "logits.npz"
    write_json(
        tmp_path / "weights.json", {"folds": [0, 1, 2], "weights": [0.2, 0.3, 0.5]}
    )
    average_predictions(
        files,
        tmp_path / "weights.json",
        toy.path("fold0.parquet") if best else None,
        output,
        folds=[0, 1, 2],
    )
    mean = read_logits(output)
    assert set(mean.split) == {"select", "test", "unlabelled"}
    models = [read_logits(path) for path in files]
    each = [m.logits[m.rows_of(mean.ids)] for m in models]
    if best:
        select = mean.split == "select"
        place = {name: row for row, name in enumerate(toy.ids.tolist())}
        label = toy.label[[place[name] for name in mean.ids[select]]]
        losses = [log_loss(symmetrise(z[select], VIEWS), label) for z in each]
        expected = each[int(np.argmin(losses))]
    else:
        expected = 0.2 * each[0] + 0.3 * each[1] + 0.5 * each[2]
    assert mean.logits == pytest.approx(expected, abs=1e-5)


def test_symmetrised_file_holds_calibrated_and_raw(toy):
    table = read_table(toy.path("gptq8.parquet"))
    scores = read_logits(toy.scores("gptq8"))
    assert table.column("id").to_pylist() == scores.ids.tolist()
    raw = columns_of(table, ["raw_a", "raw_b", "raw_tie"])
    assert raw == pytest.approx(symmetrise(scores.logits, VIEWS))
    assert not np.allclose(raw, columns_of(table, ["p_a", "p_b", "p_tie"]))


def test_one_view_is_enough(toy, tmp_path):
    both = read_logits(toy.scores("merged"))
    path, output = tmp_path / "one.npz", tmp_path / "one.parquet"
    one = replace(both, logits=both.logits[:, 1:], meta={"views": ["BA"]})
    write_logits(path, one)
    calibrate_judge(path, toy.path("fold0.parquet"), tmp_path / "c.json", "vector")
    symmetrise_script(path, tmp_path / "c.json", None, output, 0.0)
    table = read_table(output)
    probs = columns_of(table, ["p_a", "p_b", "p_tie"])
    rows = np.array(table.column("split").to_pylist()) == "test"
    place = {name: row for row, name in enumerate(toy.ids.tolist())}
    known = [place[name] for name in np.array(table.column("id").to_pylist())[rows]]
    assert log_loss(probs[rows], toy.label[known]) < 1.0


def test_submission(toy, tmp_path):
    output = tmp_path / "submission.csv"
    unlabelled = toy.path("unlabelled.parquet")
    write_submission(toy.path("gptq8.parquet"), unlabelled, output)
    rows = read_csv(output)
    assert list(rows[0]) == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert [row["id"] for row in rows] == ["7", "3", "5"]
    for row in rows:
        probs = [float(value) for value in list(row.values())[1:]]
        assert all(math.isfinite(p) and p >= 0 for p in probs)
        assert sum(probs) == pytest.approx(1, abs=1e-12)


def test_submission_refuses_missing_and_unsound_rows(toy, tmp_path):
    table = read_table(toy.path("gptq8.parquet"))
    path, unlabelled = tmp_path / "s.parquet", toy.path("unlabelled.parquet")
    kept = pa.array([name != "test:3" for name in table.column("id").to_pylist()])
    write_table(path, table.filter(kept), table.schema)
    with pytest.raises(UserError, match="lacks row id test:3"):
        write_submission(path, unlabelled, tmp_path / "x.csv")
    broken = table.set_column(2, "p_a", pa.array([0.9] * len(table)))
    write_table(path, broken, table.schema)
    with pytest.raises(UserError, match="row id test:7 is not a distribution"):
        write_submission(path, unlabelled, tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


def test_report(toy, tmp_path):
    folds = [toy.path(f"fold{k}.parquet") for k in range(N_FOLDS)]
    curve = tmp_path / "train.jsonl"
    curve.write_text('{"step": 1, "loss": 1.1}\n{"step": 2, "loss": null}\n')
    names = ("stages", "reliability", "confusion", "swap", "curves", "weights")
    figures = {name: tmp_path / f"{name}.svg" for name in names}
    logits = [pair for name in TEACHERS for pair in toy.teacher_paths(name)]
    plot_report.main(
        plot_report.Inputs(
            scores=toy.path("scores.csv"),
            folds=folds,
            logits=[raw for raw, _ in logits],
            calibrated=[calibrated for _, calibrated in logits],
            final=toy.path("gptq8.parquet"),
            curves=[curve, curve],
            weights=toy.path("weights.json"),
            rows=[],
        ),
        figures,
        teachers=TEACHERS,
        judges=JUDGES,
        runs=["llama/fold 0", "student/fold 0"],
        n_bins=10,
    )
    for figure in figures.values():
        assert figure.read_text().lstrip().startswith("<?xml")
    assert "teacher calibrated" in figures["stages"].read_text()
    cleaning = {
        "n_in": {"train": 9, "test": 3},
        "n_out": {"train": 7, "test": 3},
        "dropped": {"duplicate": {"train": 2, "test": 0}},
    }
    write_json(tmp_path / "cleaning.json", cleaning)
    summarise_report.main(
        summarise_report.Inputs(
            scores=toy.path("scores.csv"),
            steps=toy.path("steps.csv"),
            cleaning=tmp_path / "cleaning.json",
            teacher_calibrations=[toy.path("llama0.json")],
            judge_calibrations=[toy.path(f"{name}.json") for name in JUDGES],
            figures=list(figures.values()),
            submission=Path("results/submission.csv"),
        ),
        tmp_path / "summary.md",
        judges=JUDGES,
        teachers=["llama fold 0"],
        teacher_gate="warn",
    )
    text = (tmp_path / "summary.md").read_text()
    shown = ("| final ", "| bayes ", "gate: warn", "passed", "dropped: duplicate")
    for part in (*shown, "results/submission.csv", "of the gap", "gptq8_calibrated"):
        assert part in text


def test_pages(toy, tmp_path):
    shares = {
        "n": 3,
        "n_by_source": {},
        "class_shares": {"a": 0.5, "b": 0.3, "tie": 0.2},
    }
    split = {"rows": 4, "rows_cut": 1, "tokens": 80, "tokens_cut": 8}
    contents = {
        "cleaning": {
            "n_in": {"train": 9},
            "n_out": {"train": 7},
            "dropped": {"duplicate": {"train": 2}},
            "repaired": {"null_turn": 5},
        },
        "folds": {"folds": {"0": {"train": shares}}},
        "lengths": {
            "every": 2,
            "max_length": 40,
            "splits": {"dev": split | {"quantiles": {"0.5": 20, "1": 48}}},
        },
    }
    paths = {name: tmp_path / f"{name}.json" for name in contents}
    for name, content in contents.items():
        write_json(paths[name], content)
    times = tmp_path / "benchmarks/train_teacher"
    times.mkdir(parents=True)
    (times / "llama.fold0.tsv").write_text("s\tmax_rss\tcpu_time\n3600\t2000\t7200\n")
    names = ("scores", "data", "models", "run")
    pages = {name: tmp_path / f"{name}.html" for name in names}
    write_pages.main(
        write_pages.Inputs(
            scores=toy.path("scores.csv"),
            steps=toy.path("steps.csv"),
            **paths,
            teacher_calibrations=[toy.path("llama0.json")],
            judge_calibrations=[toy.path(f"{name}.json") for name in JUDGES],
            weights=toy.path("weights.json"),
            fingerprinted=[toy.path("weights.json")],
        ),
        pages,
        judges=JUDGES,
        teachers=["llama fold 0"],
        config={
            "teachers": {"llama": {"gpus": 2}},
            "student": {"gpus": 1},
            "distillation": {"teacher_gate": "warn"},
        },
        benchmarks=tmp_path / "benchmarks",
        logs=tmp_path / "logs",
    )
    shown = {name: path.read_text() for name, path in pages.items()}
    for text in shown.values():
        assert text.startswith("<!doctype html>")
        assert not re.search(r"(src|href)=|@import|url\(", text)  # nothing beside it
    assert "<td>final</td>" in shown["scores"]
    assert "of the gap" in shown["scores"]
    assert '<td style="text-align:right">2</td>' in shown["data"]
    assert "Tokens of one in 2 rows" in shown["data"]
    assert "<td>25.0%</td>" in shown["data"]
    assert "<td>10.0%</td>" in shown["data"]
    assert "gate: warn" in shown["models"]
    assert "train_teacher" in shown["run"]
    assert "teacher_gate: warn" in shown["run"]
    assert file_digest(toy.path("weights.json")) in shown["run"]

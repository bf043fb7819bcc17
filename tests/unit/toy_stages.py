"""Build a toy of every stage: models that see a known judge through noise."""

import csv
from dataclasses import replace

import numpy as np
import pyarrow as pa
from calibrate_judge import main as calibrate_judge
from calibrate_logits import main as calibrate_logits
from evaluate import main as evaluate
from fit_baselines import main as fit_baselines
from symmetrise import main as symmetrise
from weigh_folds import main as weigh_folds

from prefdistill.classes import swap_classes
from prefdistill.report.inputs import StageFiles
from prefdistill.settings import EvaluationSettings, ScalingSettings
from prefdistill.storage.digests import file_digest
from prefdistill.storage.logits import Logits, write_logits
from prefdistill.storage.tables import FOLD_SCHEMA, write_table

VIEWS = ["AB", "BA"]
META = {"views": VIEWS}
N_FOLDS, N_ROWS = 3, 600
SCALING = ScalingSettings(method="vector", tied=True)
EVALUATION = EvaluationSettings(n_bootstrap=200, seed=0, n_bins=10, labels_only=False)
TEACHERS = ["llama", "qwen"]
JUDGES = ["merged", "gptq8"]


class Toy:
    """Hold a judge with known probabilities, and write what its models predict."""

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
        """Draw logits of some rows in a random order, classes as shown."""
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


def make_toy(folder):
    """Write the files of every stage, and evaluate them."""
    toy = Toy(folder)
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
            calibrate_logits(raw, adapter, fold_path, calibrated, record, SCALING)
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
    symmetrise(toy.scores("gptq8"), toy.path("gptq8.json"), None, symmetrised, 0.0)
    folds = [toy.path(f"fold{k}.parquet") for k in range(N_FOLDS)]
    fit_baselines(folds, None, toy.path("baselines.parquet"), seed=0)
    run_evaluate(toy, folds)
    return toy


def run_evaluate(toy, folds):
    teachers = [pair for name in TEACHERS for pair in toy.teacher_paths(name)]
    inputs = StageFiles(
        folds=folds,
        baselines=toy.path("baselines.parquet"),
        teacher_logits=[raw for raw, _ in teachers],
        teacher_calibrated=[calibrated for _, calibrated in teachers],
        student_logits=[toy.scores(f"fold{k}_bf16") for k in range(N_FOLDS)],
        labels_only=[],
        weights=toy.path("weights.json"),
        judge_logits=[toy.scores(name) for name in JUDGES],
        judge_calibrations=[toy.path(f"{name}.json") for name in JUDGES],
        final=toy.path("gptq8.parquet"),
        final_logits=toy.scores("gptq8"),
        final_calibration=toy.path("gptq8.json"),
        truth=toy.path("truth.parquet"),
    )
    outputs = {
        "scores": toy.path("scores.csv"),
        "steps": toy.path("steps.csv"),
        "predictions": toy.path("results/report/predictions.parquet"),
    }
    evaluate(
        inputs,
        outputs,
        teachers=TEACHERS,
        judges=JUDGES,
        final_model="gptq8",
        trees_weight=0.0,
        scaling=SCALING,
        evaluation=EVALUATION,
    )


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def find(rows, **wanted):
    return [r for r in rows if all(r[k] == v for k, v in wanted.items())]

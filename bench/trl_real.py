"""TRL's RewardTrainer beside this workflow's student, on pairs and a base of one's own.

    pip install --target scratch/trl --no-deps trl==1.16.0     # not in the lock
    PYTHONPATH=scratch/trl python bench/trl_real.py --base results/base/smollm2 \\
        --pairs train.csv --out scratch/trl_real

Needs no run and no Snakemake; a GPU is used if there is one. The labelled pairs are
cleaned and cut by prompt into parts, as for `folds.test_part`. Each part is tested
once: of the other rows both systems train on the same, at each learning rate; scale and
margin, or vector scaling, are fitted on `select`, each with a weak prior; the rate of
least log loss on `dev` is taken. Both have the same base, LoRA, epochs, pairs a step,
schedule and longest row. The student learns from labels alone (no teacher, no
post-pretraining) and reads both orders of a pair in a step; the reward model learns
nothing from ties. Beside them stand the class prior and trees on surface features, of
the same train rows.

A part's result is written to `--out` when it is done and not made again, so parts can
run side by side (`--parts 0 & ... --parts 1 & ... wait`), and a last call without
`--parts` makes what is missing, and `trl_real.json` and `trl_real.md` of all. Seconds
are only worth comparing where a part ran alone.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

import clean_pairs
import import_pairs
import make_folds

import reward_model
from prefdistill.data.prompts import encode_pairs
from prefdistill.models.loading import load_classifier, load_tokenizer
from prefdistill.models.lora import add_adapter
from prefdistill.models.scoring import score_pairs
from prefdistill.pipeline.validation import fill_defaults
from prefdistill.running.job import UserError
from prefdistill.scores.baselines import fit_baselines, pair_features
from prefdistill.scores.calibration import fit_scaling
from prefdistill.scores.metrics import Labels, labels_of, log_loss
from prefdistill.scores.views import as_answers, symmetrise
from prefdistill.settings import LoraSettings, TextSettings, TrainingSettings, read
from prefdistill.storage.checkpoints import Checkpoints
from prefdistill.storage.tables import (
    FOLD_SCHEMA,
    VIEWS,
    read_json,
    read_table,
    table_targets,
    write_json,
)
from prefdistill.storage.whole_files import write_text
from prefdistill.training.objectives import label_objective
from prefdistill.training.trainer import Trainer
from trl_scores import SYSTEMS, lines_to_write, page, score_systems

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = ("dev", "select", "test")


def read_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The workflow's settings, with its defaults, for what is compared."""
    student = {
        "lora": {"r": options.rank, "alpha": 2 * options.rank},
        "training": {
            "epochs": options.epochs,
            "pairs_per_step": options.pairs_per_step,
            "max_steps": options.max_steps,
            "seed": options.seed,
        },
    }
    config = {
        "data": {"train": [str(options.pairs)], "extra": [], "ultra": [], "test": None},
        "folds": {
            "n": options.folds,
            "select_fraction": 0.1,
            "test_fraction": 1 / options.n_parts,
            "test_part": 0,
        },
        "text": {"max_length": options.max_length},
        "student": student,
    }
    path = ROOT / "workflow/schemas/config.schema.yaml"
    schema = yaml.safe_load(path.read_text("utf-8"))
    return fill_defaults(config, schema, schema)


def split_rows(settings: dict[str, Any], part: int, folder: Path) -> pa.Table:
    """The labelled pairs with their splits, ``FOLD_SCHEMA``: fold 0 of a test part."""
    pairs, clean, report = (folder / name for name in ("p.parquet", "c.parquet", "r"))
    import_pairs.main(pairs, report, settings["data"])
    clean_pairs.main(pairs, report, clean, folder / "clean", settings["cleaning"])
    folds = settings["folds"] | {"test_part": part}
    paths = [folder / f"fold{fold}.parquet" for fold in range(folds["n"])]
    others = [folder / f"{name}.parquet" for name in ("ultra", "unlabelled", "pseudo")]
    make_folds.main(clean, paths, *others[:2], folder / "folds", folds, others[2])
    return read_table(paths[0], FOLD_SCHEMA)


def train_student(
    base: Path, train: pa.Table, settings: dict[str, Any], rate: float, folder: Path
) -> torch.nn.Module:
    """The student on labels, as the workflow trains it."""
    student = settings["student"]
    training = student["training"] | {"learning_rate": rate}
    training = read(TrainingSettings, training)
    model = load_classifier(base, student["precision"])
    model = add_adapter(model, read(LoraSettings, student["lora"]), training.seed)
    encoded = encode_pairs(
        train, load_tokenizer(base), read(TextSettings, settings["text"])
    )
    objective = label_objective(table_targets(train))
    kept = Checkpoints(folder / "checkpoints", "bench")
    trainer = Trainer(model, encoded, objective, training, training.epochs, kept)
    trainer.run(folder / "train.jsonl")
    return model


def try_student(
    base: Path,
    table: pa.Table,
    labels: Labels,
    settings: dict[str, Any],
    rate: float,
    folder: Path,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Calibrated probabilities of the held-out rows, ``(n, 3)``, and what it took."""
    started = time.monotonic()
    train = table.filter(pa.array(labels.split == "train"))
    model = train_student(base, train, settings, rate, folder)
    trained = time.monotonic()
    rows = np.isin(labels.split, HELD_OUT)
    text = read(TextSettings, settings["text"])
    encoded = encode_pairs(table.filter(pa.array(rows)), load_tokenizer(base), text)
    answers = as_answers(score_pairs(model, encoded, token_budget=8192), VIEWS)
    known = labels.rows(rows)
    select = known.split == "select"
    fit = fit_scaling(answers[select], known.label[select], method="vector", tied=True)
    facts = {"pairs": len(train), "a": fit.a, "b": fit.b}
    facts |= _seconds(started, trained)
    return symmetrise(fit.apply(answers), ["AB", "AB"]), facts


def try_reward_model(
    base: Path,
    table: pa.Table,
    labels: Labels,
    settings: dict[str, Any],
    rate: float,
    folder: Path,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The same of TRL's reward model."""
    lora, training = settings["student"]["lora"], settings["student"]["training"]
    started = time.monotonic()
    train = table.filter(pa.array(labels.split == "train"))
    pairs = reward_model.preferences(train)
    trainer = reward_model.train_reward_model(
        base, pairs, folder / "trl", training["seed"],
        {
            "r": lora["r"], "lora_alpha": lora["alpha"],
            "lora_dropout": lora["dropout"], "target_modules": "all-linear",
        },
        {
            "learning_rate": rate, "num_train_epochs": training["epochs"],
            "max_steps": training["max_steps"] or -1,
            "per_device_train_batch_size": training["pairs_per_step"],
            "lr_scheduler_type": training["schedule"],
            "warmup_steps": training["warmup_fraction"],
            "weight_decay": training["weight_decay"],
            "max_grad_norm": training["max_grad_norm"],
            "max_length": settings["text"]["max_length"],
        },
    )  # fmt: skip
    trained = time.monotonic()
    rows = np.isin(labels.split, HELD_OUT)
    difference = reward_model.reward_differences(trainer, table.filter(pa.array(rows)))
    known = labels.rows(rows)
    select = known.split == "select"
    # A row of each class more, as for the class prior: without a tie no margin is best.
    fit = reward_model.fit_margin(
        np.append(difference[select], [0, 0, 0]),
        np.append(known.label[select], [0, 1, 2]),
    )
    facts = {"pairs": len(pairs), "scale": fit[0], "margin": abs(fit[1])}
    facts |= _seconds(started, trained)
    return reward_model.tie_probabilities(difference, *fit), facts


def _seconds(started: float, trained: float) -> dict[str, float]:
    """Seconds of training, model loaded and text tokenised included, and of scoring."""
    return {
        "train_s": round(trained - started, 2),
        "score_s": round(time.monotonic() - trained, 2),
    }


def best_rate(
    attempt: Callable[..., tuple[np.ndarray, dict[str, Any]]],
    labels: Labels,
    rates: list[float],
    **given: Any,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Probabilities on test at the rate of least log loss on dev, and all attempts."""
    held_out = labels.rows(np.isin(labels.split, HELD_OUT))
    dev, test = held_out.split == "dev", held_out.split == "test"
    found, attempts = [], []
    for rate in rates:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            probs, facts = attempt(labels=labels, rate=rate, folder=folder, **given)
        loss = log_loss(probs[dev], held_out.label[dev])
        found.append(probs[test])
        attempts.append({"rate": rate, "dev_log_loss": loss, **facts})
        print(f"{attempt.__name__} {json.dumps(attempts[-1])}", flush=True)
    return found[int(np.argmin([each["dev_log_loss"] for each in attempts]))], attempts


def run_part(
    base: Path, settings: dict[str, Any], part: int, rates: list[float]
) -> dict[str, Any]:
    """Train and score everything on one part; rows by their probabilities on test."""
    with tempfile.TemporaryDirectory() as scratch:
        table = split_rows(settings, part, Path(scratch))
    labels = labels_of(table)
    given = {"base": base, "table": table, "labels": labels, "settings": settings}
    probs, attempts = {}, {}
    for name, attempt in zip(SYSTEMS, (try_reward_model, try_student), strict=True):
        probs[name], attempts[name] = best_rate(attempt, rates=rates, **given)
    test = labels.split == "test"
    features = pair_features(table)
    simple = fit_baselines(features, labels, labels.split == "train", test, 0)
    probs |= {"class prior": simple["prior"], "surface trees": simple["trees"]}
    names, counts = np.unique(labels.split, return_counts=True)
    return {
        "part": part,
        "n": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "attempts": attempts,
        "label": labels.label[test].tolist(),
        "group": labels.group[test].tolist(),
        "probs": {name: values.tolist() for name, values in probs.items()},
    }


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="a model's folder")
    parser.add_argument("--pairs", type=Path, required=True, help="labelled, Kaggle's")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--parts", type=int, nargs="*", help="only these; all if absent"
    )
    parser.add_argument("--n-parts", type=int, default=5)
    parser.add_argument("--folds", type=int, default=6, help="one of them is dev")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--pairs-per-step", type=int, default=16)
    parser.add_argument("--max-steps", type=int, help="end training there")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens")
    parser.add_argument(
        "--rank", type=int, default=64, help="of LoRA; alpha is twice it"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Make the parts asked for, and the tables once all are there."""
    options = read_options()
    settings = read_settings(options)
    given = {
        name: str(value)
        for name, value in vars(options).items()
        if name not in ("out", "parts")
    }
    wanted = range(options.n_parts) if options.parts is None else options.parts
    for part in wanted:
        path = options.out / f"part{part}.json"
        if not path.is_file():
            found = run_part(options.base, settings, part, options.rates)
            write_json(path, found | {"options": given})
    paths = [options.out / f"part{part}.json" for part in range(options.n_parts)]
    paths = [path for path in paths if path.is_file()]
    parts = [read_json(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part["options"] != given:
            raise UserError(f"{path}: made with other options; use another --out")
    if len(parts) < options.n_parts:
        print(f"{len(parts)} of {options.n_parts} parts are done")
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    scores = score_systems(parts)
    facts = {"device": device, "options": given, "lines": lines_to_write()}
    n_rows = {str(part["part"]): part["n"] for part in parts}
    attempts = {str(part["part"]): part["attempts"] for part in parts}
    write_json(
        options.out / "trl_real.json",
        facts | {"scores": scores, "n": n_rows, "attempts": attempts},
    )
    text = page(parts, scores)
    write_text(options.out / "trl_real.md", text)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

"""TRL's RewardTrainer beside this workflow's student, on a finished run's own folds.

    pip install --target scratch/trl --no-deps trl==1.16.0     # not in the lock
    PYTHONPATH=scratch/trl python bench/trl_baseline.py        # after `make demo`

The reward model's scale and margin are fitted on `select`, as the judge's calibration
is. Same base, LoRA, learning rate, steps of as many pairs, one pass over the same
pairs: those of fold 0 and of post-pretraining. `trl_real.py` compares on other pairs.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from prefdistill.report.tables import markdown_table
from prefdistill.scores.calibration import calibrate_judge
from prefdistill.scores.metrics import (
    Labels,
    accuracy,
    ece,
    group_bootstrap,
    labels_of,
    row_log_loss,
)
from prefdistill.scores.views import symmetrise
from prefdistill.storage.tables import (
    FOLD_SCHEMA,
    read_logits,
    read_table,
    table_targets,
)
from reward_model import (
    fit_margin,
    preferences,
    reward_differences,
    tie_probabilities,
    train_reward_model,
)

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
TRAINING = {
    "learning_rate": 3e-3,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "max_length": 256,
}


def own_probabilities(path: Path, labels: Labels, ids: np.ndarray) -> np.ndarray:
    """A judge's probabilities on rows, calibrated on select as all judges are."""
    scores = read_logits(path)
    fit, _ = calibrate_judge(scores, labels, "vector")
    return symmetrise(fit.apply(scores.logits[scores.rows_of(ids)]), scores.views)


def score_row(
    name: str, probs: np.ndarray, known: Labels, reference: np.ndarray
) -> list[Any]:
    """A line of the table: scores on test, and the paired difference to a reference."""
    losses = row_log_loss(probs, known.label)
    own, step = (
        group_bootstrap(values, known.group)
        for values in (losses, losses - row_log_loss(reference, known.label))
    )
    interval = f"{step.mean:+.4f} [{step.low:+.4f}, {step.high:+.4f}]"
    spread = f"{own.mean:.4f} [{own.low:.4f}, {own.high:.4f}]"
    return [
        name, spread, accuracy(probs, known.label), ece(probs, known.label), interval
    ]  # fmt: skip


def reward_model_probabilities(
    run: Path, base: Path, table: pa.Table, ids: np.ndarray, seed: int
) -> tuple[np.ndarray, dict[str, float]]:
    """TRL's probabilities on rows, and what training and fitting gave."""
    split = np.array(table.column("split").to_pylist())
    extra = read_table(run / "results/folds/post_pretrain.parquet", FOLD_SCHEMA)
    rows = preferences(pa.concat_tables([table.filter(split == "train"), extra]))
    started = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = train_reward_model(base, rows, scratch, seed, LORA, TRAINING)
    seconds = time.monotonic() - started[0], time.process_time() - started[1]
    parts = {name: table.filter(split == name) for name in ("select", "test")}
    found = {name: reward_differences(trainer, part) for name, part in parts.items()}
    labels = table_targets(parts["select"]).argmax(axis=1)
    scale, margin = fit_margin(found["select"], labels)
    facts = {
        "pairs": len(rows), "seconds": seconds[0], "cpu_seconds": seconds[1],
        "scale": scale, "margin": abs(margin),
    }  # fmt: skip
    assert parts["test"].column("id").to_pylist() == ids.tolist()
    return tie_probabilities(found["test"], scale, margin), facts


def main() -> None:
    """Train, score and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("."), help="a finished demo")
    parser.add_argument(
        "--base", default="results/base/tiny_gemma2", help="the student's, in the run"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run = options.run
    table = read_table(run / "results/folds/fold0.parquet", FOLD_SCHEMA)
    labels = labels_of(table)
    known = labels.rows(labels.split == "test")
    reward, facts = reward_model_probabilities(
        run, run / options.base, table, known.ids, options.seed
    )
    labels_only = "results/ablation/labels_only/seed0/fold0/predictions.npz"
    files = {
        "student of fold 0, labels alone": labels_only,
        "student of fold 0, distilled": "results/predictions/fold0_bf16/logits.npz",
        "merged": "results/predictions/merged/logits.npz",
    }
    rows = [score_row("TRL reward model", reward, known, reward)]
    for name, path in files.items():
        if (run / path).is_file():
            probs = own_probabilities(run / path, labels, known.ids)
            rows.append(score_row(name, probs, known, reward))
    header = ["model", "log loss", "accuracy", "ECE", "difference to TRL"]
    print(f"\n{len(known.ids)} test rows\n\n{markdown_table(header, rows)}\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()

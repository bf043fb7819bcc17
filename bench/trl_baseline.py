"""TRL's RewardTrainer beside this workflow's student, on a finished run's own folds.

    pip install --target scratch/trl --no-deps trl==1.16.0     # not in the lock
    PYTHONPATH=scratch/trl python bench/trl_baseline.py        # after `make demo`

A reward model gives each answer by itself a number, learnt from the difference between
the winner's and the loser's (Bradley-Terry). It knows no ties: they are left out of its
training, and a scale and a margin, fitted on `select` as the judge's calibration is,
turn differences into three probabilities. Same base, LoRA, learning rate, steps of as
many pairs, one pass over the same pairs: those of fold 0 and of post-pretraining.
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
import torch
from scipy.optimize import minimize
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from prefdistill.calibration import calibrate_judge
from prefdistill.io import FOLD_SCHEMA, read_table, table_targets
from prefdistill.metrics import (
    Labels,
    accuracy,
    ece,
    group_bootstrap,
    labels_of,
    row_log_loss,
)
from prefdistill.models import load_tokenizer
from prefdistill.summary import markdown_table
from prefdistill.tta import read_predictions, symmetrise

VIEWS = ["AB", "BA"]
MAX_LENGTH = 256
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
TRAINING = {
    "learning_rate": 3e-3,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "max_length": MAX_LENGTH,
}


def answer_texts(table: pa.Table, side: str) -> list[str]:
    """Prompt and one answer of each row as one text, turns joined by line breaks."""
    prompts, answers = table.column("prompt"), table.column(f"response_{side}")
    return [
        "<prompt>: {}\n\n<response_a>: {}\n\n<verdict>:".format(
            *("\n".join(turn or "" for turn in turns) for turns in row)
        )
        for row in zip(prompts.to_pylist(), answers.to_pylist(), strict=True)
    ]


def preferences(table: pa.Table) -> list[dict[str, str]]:
    """Winners and losers of the rows that are no tie, as TRL wants them."""
    labels = table_targets(table).argmax(axis=1)
    texts = [answer_texts(table, side) for side in "ab"]
    return [
        {"chosen": texts[label][row], "rejected": texts[1 - label][row]}
        for row, label in enumerate(labels)
        if label < 2
    ]


def train_reward_model(
    base: Path, rows: list[dict[str, str]], folder: str, seed: int
) -> Any:
    """What a user of TRL writes."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(seed)  # the score head is drawn before the trainer seeds
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, dtype=torch.float32, trust_remote_code=False
        ),
        args=RewardConfig(
            folder, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
            gradient_checkpointing=False, disable_tqdm=True, seed=seed, **TRAINING,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base, trust_remote_code=False),
        peft_config=LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **LORA),
    )  # fmt: skip
    trainer.train()
    return trainer.model.eval()


@torch.inference_mode()
def reward_differences(model: Any, tokenizer: Any, table: pa.Table) -> np.ndarray:
    """Reward of A minus that of B, ``(n,)``; texts end as in training."""
    rewards = []
    for side in "ab":
        texts = [text + tokenizer.eos_token for text in answer_texts(table, side)]
        for start in range(0, len(texts), 32):
            batch = tokenizer(
                texts[start : start + 32], padding=True, truncation=True,
                max_length=MAX_LENGTH, return_tensors="pt",
            )  # fmt: skip
            rewards.append(model(**batch).logits[:, 0].float().numpy())
    first, second = np.split(np.concatenate(rewards), 2)
    return first - second


def tie_probabilities(
    difference: np.ndarray, scale: float, margin: float
) -> np.ndarray:
    """P(A), P(B), P(tie) of reward differences (Rao and Kupper 1967): ``(n, 3)``."""
    first, second = (
        expit(sign * scale * difference - abs(margin)) for sign in (1.0, -1.0)
    )
    return np.stack([first, second, 1 - first - second], axis=1)


def fit_margin(difference: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The scale and margin of least log loss."""

    def loss(theta: np.ndarray) -> float:
        return row_log_loss(tie_probabilities(difference, *theta), labels).mean()

    return tuple(minimize(loss, [1.0, 0.5], method="Nelder-Mead").x)


def own_probabilities(folder: Path, labels: Labels, ids: np.ndarray) -> np.ndarray:
    """A judge's probabilities on rows, calibrated on select as all judges are."""
    scores = read_predictions([folder / f"{view}.parquet" for view in VIEWS], VIEWS)
    fit, _ = calibrate_judge(scores, labels, VIEWS, "vector")
    return symmetrise(fit.apply(scores.logits[scores.rows_of(ids)]), VIEWS)


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
        model = train_reward_model(base, rows, scratch, seed)
    seconds = time.monotonic() - started[0], time.process_time() - started[1]
    tokenizer = load_tokenizer(base)
    parts = {name: table.filter(split == name) for name in ("select", "test")}
    found = {
        name: reward_differences(model, tokenizer, part) for name, part in parts.items()
    }
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
    names = {
        "student of fold 0, labels alone": "results/ablation/labels_only/seed0/fold0",
        "student of fold 0, distilled": "results/predictions/fold0_bf16",
        "merged": "results/predictions/merged",
    }
    rows = [score_row("TRL reward model", reward, known, reward)]
    for name, folder in names.items():
        if (run / folder / "AB.parquet").is_file():
            probs = own_probabilities(run / folder, labels, known.ids)
            rows.append(score_row(name, probs, known, reward))
    header = ["model", "log loss", "accuracy", "ECE", "difference to TRL"]
    print(f"\n{len(known.ids)} test rows\n\n{markdown_table(header, rows)}\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()

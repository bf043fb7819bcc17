"""A reward model by TRL, and three probabilities of its reward differences.

A reward model gives each answer by itself a number, learnt from the difference between
the winner's and the loser's (Bradley-Terry). It knows no ties: they are left out of its
training, and a scale and a margin, fitted on held-out rows, turn differences into
P(A), P(B) and P(tie). TRL is not in the lock: it is imported where it is used.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.optimize import minimize
from scipy.special import expit

from prefdistill.scores.metrics import row_log_loss
from prefdistill.storage.tables import table_targets

BATCH_ROWS = 32


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
    base: Path,
    rows: list[dict[str, str]],
    folder: str | Path,
    seed: int,
    lora: dict[str, Any],
    training: dict[str, Any],
) -> Any:
    """What a user of TRL writes; the trainer, whose model is trained.

    Weights are float32; a GPU multiplies in bf16 by autocast.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(seed)  # the score head is drawn before the trainer seeds
    on_gpu = torch.cuda.is_available()
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, dtype=torch.float32, trust_remote_code=False
        ),
        args=RewardConfig(
            str(folder), report_to="none", save_strategy="no", use_cpu=not on_gpu,
            bf16=on_gpu, gradient_checkpointing=False, disable_tqdm=True, seed=seed,
            **training,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base, trust_remote_code=False),
        peft_config=LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **lora),
    )  # fmt: skip
    trainer.train()
    trainer.model.eval()
    return trainer


@torch.inference_mode()
def reward_differences(trainer: Any, table: pa.Table) -> np.ndarray:
    """Reward of A minus that of B, ``(n,)`` float64; texts end as in training."""
    model, tokenizer = trainer.model, trainer.processing_class
    texts = [
        text + tokenizer.eos_token
        for side in "ab"
        for text in answer_texts(table, side)
    ]
    rewards = np.empty(len(texts))
    order = np.argsort([len(text) for text in texts], kind="stable")
    for start in range(0, len(order), BATCH_ROWS):
        rows = order[start : start + BATCH_ROWS]
        batch = tokenizer(
            [texts[row] for row in rows], padding=True, truncation=True,
            max_length=trainer.args.max_length, return_tensors="pt",
        ).to(model.device)  # fmt: skip
        on_gpu = model.device.type == "cuda"
        with torch.autocast(model.device.type, torch.bfloat16, enabled=on_gpu):
            rewards[rows] = model(**batch).logits[:, 0].float().cpu().numpy()
    first, second = np.split(rewards, 2)
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

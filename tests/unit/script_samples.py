"""Toy files, and runs of the engine's scripts on them."""

import infer_logits
import numpy as np
import post_pretrain
import pyarrow as pa
import two_processes
from two_processes import SETTINGS, TEXT

from prefdistill.settings import (
    LoraSettings,
    PostPretrainSettings,
    ScoringSettings,
    TextSettings,
    read,
)
from prefdistill.storage.logits import read_logits
from prefdistill.storage.tables import FOLD_SCHEMA
from prefdistill.training.run import TrainingJob

LORA = two_processes.LORA | {"dropout": 0.0}
STEPS = SETTINGS | {"max_steps": 3, "token_budget": 256, "checkpoint_steps": 100}
TRAINING = STEPS | {"epochs": 1.0, "n_rows": None}
POST = STEPS | {
    "objective": "classification",
    "fraction_of_epoch": 1.0,
    "keep_head": True,
}
INFERENCE = {
    "token_budget": 512,
    "rows": None,
    "n_rows": None,
    "weights": "adapter",
    "progress_batches": 5,
}
MODEL = {
    "base": "tiny",
    "precision": "nf4",
    "gpus": 0,
    "lora": LORA,
    "training": TRAINING,
    "post_pretrain": POST,
    "inference": INFERENCE,
}


def table_of(splits, source="train"):
    n_rows = len(splits)
    labels = np.eye(3, dtype=np.int8)[np.arange(n_rows) % 3]
    columns = {
        "id": [f"{source}:{n}" for n in range(n_rows)],
        "source": [source] * n_rows,
        "split": splits,
        "group": [f"g{n}" for n in range(n_rows)],
        "prompt": [["river " * (1 + n % 3)] for n in range(n_rows)],
        "response_a": [["yes " * (n % 5)] for n in range(n_rows)],
        "response_b": [["no " * (n % 7)] for n in range(n_rows)],
        "winner_model_a": labels[:, 0],
        "winner_model_b": labels[:, 1],
        "winner_tie": labels[:, 2],
    }
    return pa.table(columns, schema=FOLD_SCHEMA)


def job_of(world, name, base, init=None):
    """What every training job reads and writes, in a folder of its name."""
    folder = world["folder"] / name
    return TrainingJob(
        base=world[base],
        init=init and init / "adapter_model.safetensors",
        adapter=folder / "adapter_model.safetensors",
        curve=folder / "train.jsonl",
        precision="fp32",
        text=read(TextSettings, TEXT),
        code="c",
        scratch=world["folder"] / "scratch" / name,
    )


def run_post_pretrain(world, name, base, table="ultra.parquet", **changes):
    post_pretrain.main(
        pairs=world["folder"] / table,
        job=job_of(world, name, base),
        lora=read(LoraSettings, LORA),
        post_pretrain=read(PostPretrainSettings, POST | changes),
    )
    return world["folder"] / name


def run_infer_logits(world, teacher, **changes):
    path = world["folder"] / "logits.npz"
    infer_logits.main(
        pairs=[world["folder"] / "fold0.parquet"],
        weights=teacher / "adapter_model.safetensors",
        base=world["llama"],
        logits=path,
        scoring=ScoringSettings(precision="fp32", **INFERENCE | changes),
        text=read(TextSettings, TEXT),
        scratch=world["folder"] / "scratch" / "logits",
        code="c",
    )
    return read_logits(path)

"""What the training scripts share: the settings of a job, and its identity."""

from dataclasses import replace

import pytest
from two_processes import DISTILLATION, LORA, SETTINGS, TEXT

from prefdistill.settings import (
    DistillationSettings,
    EmaSettings,
    LoraSettings,
    TextSettings,
    TrainingSettings,
    read,
)
from prefdistill.storage.whole_files import write_text
from prefdistill.training.run import TrainingJob, TrainingRun

TRAINING = SETTINGS | {"epochs": 1.0, "n_rows": None}


@pytest.fixture
def job(tiny_model_folder, tmp_path):
    write_text(tmp_path / "pairs.parquet", "pairs")
    return TrainingJob(
        base=tiny_model_folder("llama") / "manifest.json",
        adapter=tmp_path / "adapter_model.safetensors",
        curve=tmp_path / "train.jsonl",
        precision="fp32",
        text=read(TextSettings, TEXT),
        code="c",
        scratch=tmp_path / "scratch",
    )


def identity(job, lora=LORA, distillation=None, **training):
    settings = read(TrainingSettings, TRAINING | training)
    run = TrainingRun(job, settings, read(LoraSettings, lora))
    return run.identity([job.adapter.with_name("pairs.parquet")], distillation)


def test_the_identity_follows_what_decides_the_result(job):
    student = read(DistillationSettings, DISTILLATION)
    averaged = replace(student, ema=EmaSettings(decay=0.5, use=False))
    known = {
        identity(job),
        identity(job, learning_rate=0.5),
        identity(job, epochs=2.0),
        identity(job, lora=LORA | {"r": 4}),
        identity(job, distillation=student),
        identity(job, distillation=averaged),
        identity(replace(job, code="d")),
        identity(replace(job, precision="nf4")),
        identity(replace(job, text=replace(job.text, max_length=79))),
    }
    write_text(job.adapter.with_name("pairs.parquet"), "other pairs")
    known.add(identity(job))
    assert len(known) == 10


def test_the_identity_does_not_depend_on_how_the_job_runs(job):
    other = {"token_budget": 64, "checkpoint_steps": 1, "recompute": "full"}
    assert identity(job, compile="never", **other) == identity(job)

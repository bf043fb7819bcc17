"""Train students on toy files, with and without teachers, and score with one."""

import json

import distill_student
import infer_logits
import pytest
from script_samples import TRAINING, job_of, run_infer_logits, run_post_pretrain
from two_processes import DISTILLATION, TEXT

from prefdistill.errors import UserError
from prefdistill.settings import (
    DistillationSettings,
    ScoringSettings,
    TextSettings,
    TrainingSettings,
    read,
)
from prefdistill.storage.digests import file_digest
from prefdistill.storage.logits import read_logits
from prefdistill.storage.records import read_json, write_json
from prefdistill.training.teachers import TeacherFiles


def run_distill(world, logits, gates, name="student", **changes):
    init = world["folder"] / "none"
    if not init.exists():
        run_post_pretrain(world, "none", "gemma2", objective="none")
    folder = world["folder"] / name
    distill_student.main(
        pairs=world["folder"] / "fold0.parquet",
        pairs_unlabelled=None,
        files=TeacherFiles(["llama"] * len(logits), 0, logits, gates),
        job=job_of(world, name, "gemma2", init),
        training=read(TrainingSettings, TRAINING),
        distillation=read(DistillationSettings, DISTILLATION | changes),
        average=folder / "ema/adapter_model.safetensors"
        if changes.get("ema")
        else None,
        rows=folder / "rows.json",
    )
    return folder


def adapter(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_the_averaged_student_lies_beside_the_last_or_takes_its_place(world):
    plain = run_distill(world, [], [], name="plain")
    beside = run_distill(world, [], [], name="beside", ema={"decay": 0.9, "use": False})
    instead = run_distill(
        world, {}, {}, name="instead", ema={"decay": 0.9, "use": True}
    )
    assert adapter(beside) == adapter(plain) != adapter(beside / "ema")
    assert adapter(instead) == adapter(instead / "ema") == adapter(beside / "ema")


def test_student_and_predictions(world, teacher):
    run_infer_logits(world, teacher)
    logits = [world["folder"] / "logits.npz"]
    gate = {"information_gain": 0.001, "low": -0.01, "high": 0.01, "passed": False}
    write_json(world["folder"] / "calibration.json", {"gate": gate})
    gates = [world["folder"] / "calibration.json"]
    with pytest.raises(UserError, match="teacher_gate to warn"):
        run_distill(world, logits, gates)
    student = run_distill(world, logits, gates, teacher_gate="warn")
    alone = run_distill(world, [], [], name="alone")
    few = run_distill(
        world, logits, gates, name="few", teacher_gate="off", n_labelled_rows=2
    )
    losses = [
        json.loads((folder / "train.jsonl").read_text().splitlines()[0])["loss"]
        for folder in (student, alone, few)
    ]
    assert losses[2] < losses[0] < losses[1]
    assert not (student / "ema").exists()
    assert read_json(few / "rows.json")["n_labelled"] == 2

    out = world["folder"] / "predictions/logits.npz"
    infer_logits.main(
        pairs=[
            world["folder"] / "fold0.parquet",
            world["folder"] / "unlabelled.parquet",
        ],
        weights=student / "adapter_model.safetensors",
        base=world["gemma2"],
        logits=out,
        scoring=ScoringSettings(
            "auto", splits=["select", "test", "unlabelled"], token_budget=512
        ),
        text=read(TextSettings, TEXT),
        scratch=world["folder"] / "scratch" / "predictions",
        code="c",
    )
    scores = read_logits(out)
    assert scores.split.tolist() == ["select", "test", *["unlabelled"] * 2]
    assert scores.ids.tolist()[-1] == "new:1"
    assert scores.views == ["AB", "BA"]
    assert scores.meta["classes"] == ["first", "second", "tie"]
    assert scores.meta["adapter"] == file_digest(student / "adapter_model.safetensors")
    assert not (world["folder"] / "scratch" / "predictions").exists()

"""The mains of the engine's scripts on toy files, one feeding the next."""

import csv
import json

import check_models
import distill_student
import infer_logits
import numpy as np
import post_pretrain
import pyarrow as pa
import pytest
import train_teacher
import two_processes
from safetensors.numpy import load_file
from two_processes import DISTILLATION, SETTINGS, TEXT

from prefdistill.errors import UserError
from prefdistill.settings import (
    DistillationSettings,
    LoraSettings,
    PostPretrainSettings,
    ScoringSettings,
    TextSettings,
    TrainingSettings,
    read,
)
from prefdistill.storage.digests import file_digest
from prefdistill.storage.logits import read_logits
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.tables import FOLD_SCHEMA, write_table
from prefdistill.training.run import TrainingJob
from prefdistill.training.teachers import TeacherFiles

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


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model_folder):
    """Tables and manifests, a Llama teacher and a Gemma-2 student."""
    folder = tmp_path_factory.mktemp("world")
    splits = ["train"] * 8 + ["dev"] * 3 + ["select", "test"]
    write_table(folder / "fold0.parquet", table_of(splits), FOLD_SCHEMA)
    write_table(folder / "ultra.parquet", table_of(["train"] * 6, "ultra"), FOLD_SCHEMA)
    write_table(folder / "empty.parquet", table_of([]), FOLD_SCHEMA)
    write_table(
        folder / "unlabelled.parquet",
        table_of(["unlabelled"] * 2, "new"),
        FOLD_SCHEMA,
    )
    return {
        "folder": folder,
        "llama": tiny_model_folder("llama") / "manifest.json",
        "gemma2": tiny_model_folder("gemma2") / "manifest.json",
    }


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


@pytest.fixture(scope="module")
def teacher(world):
    init = run_post_pretrain(world, "llama_init", "llama")
    train_teacher.main(
        pairs=world["folder"] / "fold0.parquet",
        job=job_of(world, "teacher", "llama", init),
        training=read(TrainingSettings, TRAINING | {"n_rows": 6}),
    )
    return world["folder"] / "teacher"


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


def lora_part(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return {name: value for name, value in tensors.items() if "lora_" in name}


def head(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return tensors["base_model.model.score.weight"]


def test_post_pretraining(world):
    seeded = run_post_pretrain(world, "none", "gemma2", objective="none")
    empty = run_post_pretrain(world, "empty", "gemma2", table="empty.parquet")
    trained = run_post_pretrain(world, "trained", "gemma2")
    fresh_head = run_post_pretrain(world, "fresh", "gemma2", keep_head=False)
    language = run_post_pretrain(world, "lm", "gemma2", objective="causal_lm")
    assert (seeded / "train.jsonl").read_text() == ""
    assert len((trained / "train.jsonl").read_text().splitlines()) == 2
    whole = (seeded / "adapter_model.safetensors").read_bytes()
    assert (empty / "adapter_model.safetensors").read_bytes() == whole
    for folder in (trained, fresh_head, language):
        moved = [
            not np.array_equal(value, lora_part(seeded)[name])
            for name, value in lora_part(folder).items()
        ]
        assert any(moved)
    assert not np.array_equal(head(trained), head(seeded))
    assert np.array_equal(head(fresh_head), head(seeded))
    assert np.array_equal(head(language), head(seeded))
    assert (language / "adapter_config.json").read_text() == (
        seeded / "adapter_config.json"
    ).read_text()


def test_teacher_and_logits(world, teacher):
    assert len((teacher / "train.jsonl").read_text().splitlines()) == 2
    scores = run_infer_logits(world, teacher)
    assert scores.logits.shape == (13, 2, 3)
    assert scores.meta["max_length"] == 80
    assert len(scores.meta["adapter"]) == 64
    some = run_infer_logits(world, teacher, rows=[2, 4])
    assert some.ids.tolist() == [f"train:{n}" for n in (2, 3, *range(8, 13))]
    np.testing.assert_allclose(
        some.logits, scores.select(scores.rows_of(some.ids)).logits, atol=1e-5
    )
    merged = run_infer_logits(world, teacher, weights="merged")
    np.testing.assert_allclose(merged.logits, scores.logits, atol=1e-5)


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


def test_predicting_with_a_whole_model(world, tmp_path):
    from prefdistill.models.loading import load_classifier, load_tokenizer

    model = load_classifier(world["gemma2"].parent, "fp32", head_seed=1)
    model.save_pretrained(tmp_path)
    load_tokenizer(world["gemma2"].parent).save_pretrained(tmp_path)
    weights, logits = tmp_path / "model.safetensors", tmp_path / "logits.npz"
    arguments = {
        "pairs": [world["folder"] / "fold0.parquet"],
        "weights": weights,
        "base": None,
        "logits": logits,
        "text": read(TextSettings, TEXT),
        "scratch": tmp_path / "scratch",
        "code": "c",
    }
    options = {"splits": ["test"], "token_budget": 512}
    one_view = ScoringSettings("auto", views=["BA"], **options)
    infer_logits.main(**arguments, scoring=one_view)
    scores = read_logits(logits)
    assert (scores.logits.shape, scores.views) == ((1, 1, 3), ["BA"])
    assert scores.meta["adapter"] is None
    assert scores.meta["base"] == file_digest(weights)
    infer_logits.main(**arguments, scoring=ScoringSettings("auto", **options))
    both = read_logits(logits).logits
    np.testing.assert_allclose(both[:, 1:], scores.logits, atol=1e-5)
    arguments["pairs"] *= 2
    with pytest.raises(UserError, match="a row id occurs twice"):
        infer_logits.main(**arguments, scoring=one_view)


def test_check_models(world, tmp_path):
    settings = {
        "base": "tiny",
        "precision": "nf4",
        "lora": LORA,
        "training": TRAINING,
        "post_pretrain": POST,
    }
    pair = {"prompt": "Which?", "response_a": "yes", "response_b": "no"}
    check_models.main(
        models=["llama", "student"],
        bases=[world["llama"], world["gemma2"]],
        settings={"llama": settings, "student": settings | {"precision": "fp32"}},
        text=read(TextSettings, TEXT),
        pairs=[pair, pair],
        table=tmp_path / "models.csv",
    )
    rows = list(csv.DictReader((tmp_path / "models.csv").read_text().splitlines()))
    assert [row["architecture"] for row in rows] == [
        "LlamaForSequenceClassification",
        "Gemma2ForSequenceClassification",
    ]
    assert rows[0]["head_shape"] == "3x32"
    probs = np.array(rows[1]["pair2_BA"].split(), dtype=float)
    assert probs.sum() == pytest.approx(1, abs=1e-3)

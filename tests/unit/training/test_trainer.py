import json
import logging
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from two_processes import LORA, N_PAIRS, SETTINGS, encoded_pairs, settings_of

from prefdistill.errors import Interrupted, UserError
from prefdistill.models.loading import load_classifier
from prefdistill.models.lora import add_adapter, save_adapter
from prefdistill.settings import (
    LoraSettings,
    read,
    result_settings,
)
from prefdistill.storage.checkpoints import Checkpoints
from prefdistill.training import trainer as training
from prefdistill.training.objectives import label_objective
from prefdistill.training.trainer import (
    Trainer,
    choose_rows,
    train_rows,
)

TARGETS = np.eye(3, dtype=np.float32)[np.arange(N_PAIRS) % 3]


@pytest.fixture(scope="module")
def encoded(tiny_model_folder):
    return encoded_pairs(tiny_model_folder("gemma2"))


@pytest.fixture
def start(tiny_model_folder, encoded, tmp_path):
    """Function that starts a trainer on a fresh model; its folder is shared."""

    def start(
        precision="fp32", lora=LORA, objective=None, folder="job", decay=0.0, **changes
    ):
        model = load_classifier(tiny_model_folder("gemma2"), precision)
        model = add_adapter(model, read(LoraSettings, lora), seed=1)
        return Trainer(
            model,
            encoded,
            objective or label_objective(TARGETS),
            settings_of(**changes),
            3.0,
            Checkpoints(tmp_path / folder, "abc"),
            decay,
        )

    return start


def stop_at(monkeypatch, trainer, step):
    monkeypatch.setattr(training, "stop_requested", lambda: trainer.step == step)


def adapter_bytes(trainer, folder):
    save_adapter(trainer.model, folder)
    return (folder / "adapter_model.safetensors").read_bytes()


def test_it_learns_and_logs(start, tmp_path):
    trainer = start(lora=LORA | {"dropout": 0.0}, schedule="constant", max_steps=None)
    trainer.run(tmp_path / "train.jsonl")
    trainer.finish()
    curve = [json.loads(x) for x in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [record["step"] for record in curve] == list(range(1, 11))
    assert set(curve[0]) == {"step", "loss", "lr", "grad_norm", "n_tokens", "seconds"}
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert not (tmp_path / "job").exists()


def test_the_fused_optimiser_of_gpus_takes_the_same_steps(start, tmp_path):
    # It says nothing to autograd of what it changes, from which the engine knows.
    trainers = [start(folder=name) for name in ("plain", "fused")]
    trainers[1].optimizer = torch.optim.AdamW(
        trainers[1].weights.values(), weight_decay=SETTINGS["weight_decay"], fused=True
    )
    for trainer, name in zip(trainers, ("plain", "fused"), strict=True):
        trainer.run(tmp_path / f"{name}.jsonl")
    losses = [[record["loss"] for record in trainer.curve] for trainer in trainers]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    for name, weight in trainers[0].weights.items():
        torch.testing.assert_close(weight, trainers[1].weights[name])


def test_the_step_does_not_depend_on_the_token_budget(start):
    weights = []
    for budget in (40, 4096):
        trainer = start(lora=LORA | {"dropout": 0.0}, token_budget=budget)
        record = trainer._take_step()
        weights.append((record["loss"], record["grad_norm"]))
    assert weights[0] == pytest.approx(weights[1], rel=1e-5)


@pytest.mark.parametrize("shares", [True, False])
def test_a_step_computes_prompts_once(start, encoded, monkeypatch, shares):
    """The loss and the reported tokens are the same without sharing, as for a language
    model.
    """
    monkeypatch.setattr(training, "shares_prompts", lambda model: shares)
    good, sizes = label_objective(TARGETS), []

    def row_losses(model, batch, rows, views):
        sizes.append(batch.input_ids.size)
        return good(model, batch, rows, views)

    settings = {"lora": LORA | {"dropout": 0.0}, "token_budget": 4096}
    trainer, other = start(objective=row_losses, **settings), start(**settings)
    other.common = other.common * 0
    pairs = trainer.plan.pairs(0)
    n_tokens = 2 * int(encoded.lengths[pairs].sum())
    record, expected = trainer._take_step(), other._take_step()
    assert sizes == [n_tokens - int(encoded.prefix_lengths[pairs].sum()) * shares]
    assert record["n_tokens"] == expected["n_tokens"] == n_tokens
    assert record["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


def test_a_long_training_pads_to_more_shapes(start, monkeypatch):
    trainer = start()
    monkeypatch.setattr(training, "device_of", lambda _: SimpleNamespace(type="cuda"))
    trainer.token_budget = 8192
    monkeypatch.setattr(trainer, "_tokens_per_step", lambda: 50_000.0)
    steps = []
    for trainer.n_operations in (1e15, 1e19):
        steps.append(trainer.shape_step())
    assert steps == [2048, 1024]


def test_recomputation_changes_nothing(start):
    one, two = start(), start(recompute="full")
    for trainer in (one, two):
        trainer.model.train()
    records = [trainer._take_step() for trainer in (one, two)]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-6)
    assert records[0]["grad_norm"] == pytest.approx(records[1]["grad_norm"], rel=1e-5)


def test_the_gradient_is_that_of_the_mean_loss_over_both_orders(start, encoded):
    from prefdistill.engine.packing import collate

    trainer = start(lora=LORA | {"dropout": 0.0}, max_grad_norm=1e9)
    trainer.model.zero_grad()
    pairs = trainer.plan.pairs(0)
    for view, name in enumerate(("AB", "BA")):
        batch = collate([encoded.tokens(pair, name) for pair in pairs])
        losses = trainer.row_losses(
            trainer.model, batch, pairs, np.full(len(pairs), view)
        )
        (losses.sum() / 8).backward()
    norm = torch.nn.utils.clip_grad_norm_(trainer.weights.values(), 1e9)
    trainer.model.zero_grad()
    assert trainer._take_step()["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
@pytest.mark.parametrize("step", [1, 5, 9])
def test_a_resumed_run_is_byte_identical(start, precision, step, tmp_path, monkeypatch):
    whole = start(precision, folder="whole")
    whole.run(tmp_path / "whole.jsonl")
    first = start(precision)
    stop_at(monkeypatch, first, step)
    with pytest.raises(Interrupted, match=f"saved at step {step} of 10"):
        first.run(tmp_path / "train.jsonl")
    assert not (tmp_path / "train.jsonl").exists()
    monkeypatch.undo()
    second = start(precision)
    second.run(tmp_path / "train.jsonl")
    assert adapter_bytes(second, tmp_path / "a") == adapter_bytes(whole, tmp_path / "b")
    curves = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (tmp_path / name).read_text().splitlines()
        ]
        for name in ("whole.jsonl", "train.jsonl")
    ]
    assert curves[0] == curves[1]


def average_bytes(trainer, folder):
    with trainer.average.in_place():
        return adapter_bytes(trainer, folder)


def test_a_running_mean_changes_no_step_and_survives_a_stop(
    start, tmp_path, monkeypatch
):
    plain, whole = start(folder="plain"), start(folder="whole", decay=0.8)
    for trainer in (plain, whole):
        trainer.run(tmp_path / "whole.jsonl")
    last = adapter_bytes(whole, tmp_path / "a")
    assert last == adapter_bytes(plain, tmp_path / "b")
    mean = average_bytes(whole, tmp_path / "c")
    assert mean != last
    assert adapter_bytes(whole, tmp_path / "d") == last
    first = start(decay=0.8)
    stop_at(monkeypatch, first, 5)
    with pytest.raises(Interrupted):
        first.run(tmp_path / "train.jsonl")
    monkeypatch.undo()
    second = start(decay=0.8)
    second.run(tmp_path / "train.jsonl")
    assert average_bytes(second, tmp_path / "e") == mean


def test_a_skipped_step_leaves_the_mean_alone(start, tmp_path):
    trainer = start(objective=broken_at({0}), token_budget=4096, decay=0.5)
    before = {name: mean.clone() for name, mean in trainer.average.means.items()}
    trainer.model.train()
    trainer._take_step()
    for name, mean in trainer.average.means.items():
        assert torch.equal(mean, before[name])
    trainer._take_step()
    assert any(not torch.equal(m, before[n]) for n, m in trainer.average.means.items())


def test_a_truncated_checkpoint_resumes_from_the_one_before(
    start, tmp_path, monkeypatch
):
    whole = start(folder="whole")
    whole.run(tmp_path / "whole.jsonl")
    first = start()
    stop_at(monkeypatch, first, 8)
    with pytest.raises(Interrupted):
        first.run(tmp_path / "train.jsonl")
    newest = tmp_path / "job" / "abc-step-000000008.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    monkeypatch.undo()
    second = start()
    second.run(tmp_path / "train.jsonl")
    assert adapter_bytes(second, tmp_path / "a") == adapter_bytes(whole, tmp_path / "b")
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 10


def broken_at(steps):
    """The label objective, not finite at the n-th calls given."""
    good, calls = label_objective(TARGETS), iter(range(1000))

    def row_losses(*arguments):
        factor = float("nan") if next(calls) in steps else 1.0
        return good(*arguments) * factor

    return row_losses


def test_a_step_without_finite_loss_is_skipped(start, tmp_path, caplog):
    trainer = start(objective=broken_at({2}), token_budget=4096)
    with caplog.at_level(logging.WARNING):
        trainer.run(tmp_path / "train.jsonl")
    assert "step 3 skipped: loss nan" in caplog.text
    assert f"train:{trainer.plan.pairs(2)[0]}" in caplog.text
    assert trainer.n_updates == 9
    assert all(torch.isfinite(weight).all() for weight in trainer.weights.values())
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    assert json.loads(lines[2])["loss"] is None


def test_five_bad_steps_in_a_row_end_the_job(start, tmp_path):
    trainer = start(objective=broken_at(set(range(2, 7))), token_budget=4096)
    with pytest.raises(UserError, match="steps 3 to 7 had no finite loss"):
        trainer.run(tmp_path / "train.jsonl")


def out_of_memory_at(call):
    """The label objective, out of memory at its n-th call and only there."""
    good, calls = label_objective(TARGETS), iter(range(1000))

    def row_losses(*arguments):
        if next(calls) == call:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return good(*arguments)

    return row_losses


@pytest.mark.parametrize("call", range(24))
def test_half_the_token_budget_gives_the_same_steps(start, tmp_path, call, caplog):
    """24 calls reach the first, middle and last passes of several steps."""
    settings = {"lora": LORA | {"dropout": 0.0}, "token_budget": 160}
    whole = start(folder="whole", **settings)
    whole.run(tmp_path / "whole.jsonl")
    halved = start(objective=out_of_memory_at(call), **settings)
    with caplog.at_level(logging.WARNING):
        halved.run(tmp_path / "train.jsonl")
    assert "token_budget lowered to 80" in caplog.text
    assert halved.token_budget == 80
    for first, second in zip(whole.curve, halved.curve, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-6)
        assert second["n_tokens"] == first["n_tokens"]


def test_a_halved_budget_is_kept_over_an_interruption(start, tmp_path, monkeypatch):
    objective = out_of_memory_at(0)
    whole = start(folder="whole", objective=objective, token_budget=160)
    whole.run(tmp_path / "whole.jsonl")
    first = start(objective=out_of_memory_at(0), token_budget=160)
    stop_at(monkeypatch, first, 2)
    with pytest.raises(Interrupted):
        first.run(tmp_path / "train.jsonl")
    monkeypatch.undo()
    second = start(token_budget=160)
    second.run(tmp_path / "train.jsonl")
    assert second.token_budget == 80
    assert adapter_bytes(second, tmp_path / "a") == adapter_bytes(whole, tmp_path / "b")


def test_memory_that_is_short_for_one_row_is_one_line(start, tmp_path):
    def never_enough(*_):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB\nmore\nlines")

    trainer = start(objective=never_enough)
    with pytest.raises(UserError, match=r"out of memory with one row of .* recompute"):
        trainer.run(tmp_path / "train.jsonl")


def test_a_stop_before_the_first_step_made_no_progress(start, tmp_path, monkeypatch):
    trainer = start()
    stop_at(monkeypatch, trainer, 0)
    with pytest.raises(Interrupted) as stop:
        trainer.run(tmp_path / "train.jsonl")
    assert not stop.value.progressed
    assert not trainer.checkpoints.folder.exists()


def test_a_weight_that_is_not_finite_is_never_saved(start, tmp_path):
    def poison(*arguments):
        if trainer.step == 4:
            next(iter(trainer.weights.values())).data[0, 0] = float("inf")
        return label_objective(TARGETS)(*arguments)

    trainer = start(objective=poison, checkpoint_steps=1)
    trainer._skip = lambda *_: None
    with pytest.raises(UserError, match=r"step 5: .* is not finite, so"):
        trainer.run(tmp_path / "train.jsonl")
    assert trainer.checkpoints.load()[0] == 4
    assert not (tmp_path / "train.jsonl").exists()


def test_choose_rows_is_seeded_and_sorted():
    rows = choose_rows(100, 10, 3)
    assert len(set(rows.tolist())) == 10
    assert (np.sort(rows) == rows).all()
    assert (rows == choose_rows(100, 10, 3)).all()
    assert (choose_rows(5, 10, 3) == np.arange(5)).all()
    assert (choose_rows(5, None, 3) == np.arange(5)).all()


def test_train_rows(tmp_path):
    table = pa.table({"id": ["a", "b"], "split": ["dev", "train"]})
    assert train_rows(table, tmp_path).column("id").to_pylist() == ["b"]
    with pytest.raises(UserError, match="no row has split train"):
        train_rows(table.slice(0, 1), tmp_path)


def test_how_a_job_runs_is_not_its_result():
    kept = result_settings(settings_of())
    assert kept == result_settings(SETTINGS)
    assert set(SETTINGS) - set(kept) == {
        "token_budget",
        "recompute",
        "compile",
        "checkpoint_steps",
    }

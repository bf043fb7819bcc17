"""One job in two processes on the CPU (gloo): the same results, ends and errors."""

import json
import shutil

import numpy as np
import pytest
import torch
import two_processes
from process_samples import end, start
from safetensors.numpy import load_file
from two_processes import MODELS

from prefdistill.engine.packing import pack_shares
from prefdistill.errors import UserError
from prefdistill.running.processes import own_share, sum_over_processes
from prefdistill.training import trainer as training

ADAPTER = "adapter_model.safetensors"
# Seen: losses 2e-7 apart, relative, and weights 1.3e-5 where a gradient is near zero,
# as Adam divides by its size; the bound is a hundredth of one of its ten steps.
LOSS_RTOL, WEIGHT_ATOL = 1e-6, 1e-4
RUNS = [f"{model}-{kind}" for model in MODELS for kind in ("whole", "sharded")]


def train_alone(folder, name, run):
    """One process; with dropout, which is seeded by the bin, on the bins of two."""

    def bins_of_two(lengths, token_budget, common, n_shares):
        assert n_shares == 1
        shares = pack_shares(lengths, token_budget, common, 2)
        return [[members for share in shares for members in share]]

    trainer = two_processes.trainer_of(folder, name, folder / "scratch" / run)
    with pytest.MonkeyPatch.context() as patch:
        if two_processes.LORAS[name]["dropout"]:
            patch.setattr(training, "pack_shares", bins_of_two)
        two_processes.outcome_of(folder, trainer, run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_folder):
    """Results of two processes, and beside them, as ``{name}-alone``, of this one."""
    folder = tmp_path_factory.mktemp("two")
    for name in MODELS:
        shutil.copytree(tiny_model_folder(name), folder / name)
    process = start(folder, "work")
    for name in MODELS:
        train_alone(folder, name, f"{name}-alone")
    status, output = end(process)
    assert status == 0, output
    return folder


def curve(folder, run):
    return [json.loads(x) for x in (folder / run / "train.jsonl").open()]


def assert_same_training(folder, run, other):
    """Curves and weights of two runs agree to rounding."""
    for one, two in zip(curve(folder, run), curve(folder, other), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=LOSS_RTOL)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-5)
        assert one["n_tokens"] == two["n_tokens"]  # the same pairs
    weights = load_file(folder / run / ADAPTER)
    for name, weight in load_file(folder / other / ADAPTER).items():
        np.testing.assert_allclose(weights[name], weight, rtol=0, atol=WEIGHT_ATOL)


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_take_the_steps_of_one(folder, run):
    assert len(curve(folder, run)) == 10
    assert_same_training(folder, run, f"{run.partition('-')[0]}-alone")


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_score_as_one(folder, run):
    alone = np.load(folder / f"{run.partition('-')[0]}-alone" / "logits.npy")
    np.testing.assert_allclose(np.load(folder / run / "logits.npy"), alone, atol=5e-6)


def test_all_processes_stop_at_the_same_step(folder):
    texts = [(folder / f"stop-{rank}.txt").read_text() for rank in range(2)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("saved at step 5 of 10")
    assert texts[0].endswith("True")


def test_a_resumed_run_is_byte_identical(folder):
    whole = (folder / "llama-whole" / ADAPTER).read_bytes()
    assert (folder / "resumed" / ADAPTER).read_bytes() == whole


def test_one_process_goes_on_from_the_checkpoint_of_two(folder):
    scratch = folder / "scratch" / "left"
    assert (scratch / "abc-step-000000005.safetensors").exists()
    train_alone(folder, "llama", "left")
    assert_same_training(folder, "left", "llama-alone")


def test_memory_short_in_one_process_halves_the_budget_of_both(folder):
    budget = json.loads((folder / "short" / "end.json").read_text())["token_budget"]
    assert budget == two_processes.SETTINGS["token_budget"] // 2
    assert len(curve(folder, "short")) == 10


@pytest.mark.parametrize(
    ("rank", "own", "again"), [(0, [0, 1], 0), (1, [2], 1), (2, [], 2)]
)
def test_in_step_every_process_makes_as_many_passes(monkeypatch, rank, own, again):
    monkeypatch.setattr("prefdistill.running.processes.rank", lambda: rank)
    own = [(index, 1.0) for index in own]
    assert own_share([9, 2, 7], [2, 1, 0], in_step=False) == own
    assert own_share([9, 2, 7], [2, 1, 0], in_step=True) == own + again * [(1, 0.0)]


def test_large_sums_go_in_several_buckets(monkeypatch):
    sizes = []

    def double(flat):
        sizes.append(len(flat))
        flat.mul_(2)

    monkeypatch.setattr("prefdistill.running.processes.n_processes", lambda: 2)
    monkeypatch.setattr("prefdistill.running.processes.BUCKET_NUMBERS", 5)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    monkeypatch.setattr("torch.distributed.all_reduce", double)
    tensors = [torch.full(shape, 1.5) for shape in [(), (2, 2), (3,), (1,)]]
    sum_over_processes(tensors)
    assert sizes == [5, 4]
    assert [tensor.shape for tensor in tensors] == [(), (2, 2), (3,), (1,)]
    assert all((tensor == 3).all() for tensor in tensors)


def test_more_processes_than_gpus_is_one_line(monkeypatch):
    from prefdistill.running.processes import connect

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match="gpus: 2 asked for, but the job sees 1"):
        connect()

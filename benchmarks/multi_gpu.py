"""Train and score on one GPU and on two, with random weights of real shapes.

An 8B Llama takes a few steps on one repeated batch, on one GPU and then on two, and the
losses must agree. It runs in bf16 and NF4, whole in both processes, and in NF4 sharded.
Then a 70B Llama in NF4 runs sharded over both. Each result prints one JSON line; a
result with ``"ok": false`` makes the exit status 1.

    python -m benchmarks.multi_gpu             # starts two processes
    torchrun --nproc-per-node 2 -m benchmarks.multi_gpu   # the same
    python -m benchmarks.multi_gpu --tiny      # tiny shapes, CPU, a minute
    python -m benchmarks.multi_gpu --only 70b

Timings leave out the first two steps, which compile.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import zlib
from pathlib import Path

from benchmarks import workload
from prefdistill.models.quick_imports import hide_unused_imports
from prefdistill.running.job import set_threads
from prefdistill.running.workers import run_workers

N_PROCESSES = 2
N_STEPS, N_WARM = 6, 2
# Two processes pack the rows in other bins and sum in another order, in bf16 on a GPU.
LOSS_TOLERANCE = {"cuda": 5e-3, "cpu": 1e-5}
# An eighth of a row is its prompt, which both orders share; two pairs fill 3840 tokens.
ROW_LENGTHS = [1536, 512, 1024, 1024]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def build(shape, precision, sharded, device, rank):
    """Build a random judge of a shape with a fresh adapter on all linear layers."""
    import torch
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    from prefdistill.engine import engine
    from prefdistill.engine.attention import register
    from prefdistill.models.head import prepare_head
    from prefdistill.models.lora import add_adapter
    from prefdistill.models.sharding import empty_model, materialise
    from prefdistill.settings import LoraSettings, read

    engine.COMPILE_FLOP = 0.0  # short as the work is here
    register()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=400 if shape == "tiny" else 128256,
        max_position_embeddings=8192,
        pad_token_id=0,
        num_labels=3,
        use_cache=False,
    )

    def tensor_of(name, size):
        if len(size) == 1:
            return torch.ones(size, device=device, dtype=dtype)
        generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        values = torch.empty(size, device=device, dtype=dtype)
        return values.normal_(0, 0.02, generator=generator)

    model = empty_model(AutoModelForSequenceClassification, config, dtype)
    if not hasattr(model, "activation_checkpointing_enable"):  # transformers 5.17
        model.activation_checkpointing_enable = model.gradient_checkpointing_enable
    nf4 = precision == "nf4"
    materialise(model, tensor_of, dtype, device, nf4=nf4, sharded=sharded)
    prepare_head(model, 0)
    # No dropout: it is drawn by the bin, and two processes have other bins than one.
    lora = {"r": rank, "alpha": 2 * rank, "dropout": 0.0}
    lora |= {"targets": TARGETS, "lowest_layer": 0}
    return add_adapter(model.eval(), read(LoraSettings, lora), seed=0)


def measure(shape, precision, *, sharded, tiny, n_pairs=16, rank=64):
    """Take steps, then score; print a result and return its losses and logits."""
    import numpy as np
    import torch

    from prefdistill.models.scoring import score_pairs
    from prefdistill.running.processes import is_first, n_processes
    from prefdistill.settings import OptimisationSettings, read
    from prefdistill.storage.checkpoints import Checkpoints
    from prefdistill.training.objectives import label_objective
    from prefdistill.training.trainer import Trainer

    cuda = torch.cuda.is_available()
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    model = build("tiny" if tiny else shape, precision, sharded, device, rank)
    build_s = time.monotonic() - started
    build_gib = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    scale, vocabulary = (16, 400) if tiny else (1, 128256)
    lengths = np.resize(ROW_LENGTHS, n_pairs) // scale
    encoded = workload.random_pairs(lengths, lengths // 8, vocabulary)
    budget = 3840 // scale  # no pass of an 8B is short of memory, so bins are alike
    changes = {
        "learning_rate": 3e-4,
        "max_steps": N_STEPS,
        "pairs_per_step": n_pairs,
        "token_budget": budget,
    }
    settings = read(OptimisationSettings, workload.STEADY | changes)
    targets = np.eye(3, dtype=np.float32)[np.arange(n_pairs) % 3]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            encoded,
            label_objective(targets),
            settings,
            float(N_STEPS),
            Checkpoints(Path(folder, "checkpoints"), "bench"),
        )
        trainer.run(Path(folder, "curve.jsonl"))
    logits = score_pairs(model, encoded, token_budget=budget)
    losses = [record["loss"] for record in trainer.curve]
    warm = trainer.curve[N_WARM:]
    result = {
        "shape": shape,
        "precision": precision,
        "processes": n_processes(),
        "sharded": sharded,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "losses": losses,
        "ok": bool(None not in losses and losses[-1] < losses[0])
        and bool(np.isfinite(logits).all()),
        "tokens_per_s": round(
            sum(record["n_tokens"] for record in warm)
            / sum(record["seconds"] for record in warm)
        ),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else 0,
        "build_s": round(build_s, 1),
        "build_peak_gib": round(build_gib, 2),
        "seconds": round(time.monotonic() - started, 1),
    }
    del trainer, model
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    if is_first():
        print(json.dumps(result), flush=True)
    return result | {"logits": logits}


def compare(one, two, tolerance):
    """Print how far two processes are from one; return whether it is near enough."""
    import numpy as np

    losses = np.array([one["losses"], two["losses"]], dtype=float)
    worst = float(np.max(np.abs(losses[0] - losses[1])))
    apart = np.abs(one["logits"] - two["logits"]).max()
    result = {
        "compared": f"{two['shape']} {two['precision']}",
        "sharded": two["sharded"],
        "loss_difference": worst,
        "tolerance": tolerance,
        "ok": worst <= tolerance,
        "largest_logit_difference": round(float(apart), 6),
        "speed_up": round(two["tokens_per_s"] / one["tokens_per_s"], 3),
    }
    print(json.dumps(result), flush=True)
    return result["ok"]


def work(tiny, only):
    """Do one process's share; the first works alone until the other joins."""
    import torch

    from prefdistill.running.processes import connect, disconnect, is_first

    hide_unused_imports()
    tolerance = LOSS_TOLERANCE["cuda" if torch.cuda.is_available() else "cpu"]
    alone, ok = {}, True
    if os.environ["RANK"] == "0" and "8b" in only:
        for precision in ("bf16", "nf4"):
            alone[precision] = measure("8b", precision, sharded=False, tiny=tiny)
            ok &= alone[precision]["ok"]
    connect()
    for precision, sharded in (("bf16", False), ("nf4", False), ("nf4", True)):
        if "8b" in only:
            two = measure("8b", precision, sharded=sharded, tiny=tiny)
            ok &= two["ok"]
            if is_first():
                ok &= compare(alone[precision], two, tolerance)
    if "70b" in only:
        ok &= measure("70b", "nf4", sharded=True, tiny=tiny, n_pairs=8)["ok"]
    disconnect()
    return ok


def main():
    """Start the processes, or work as one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="+", default=["8b", "70b"])
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        sys.exit(0 if work(arguments.tiny, arguments.only) else 1)
    set_threads(1 if arguments.tiny else 8)
    with tempfile.TemporaryFile() as lock:
        outcome = run_workers(N_PROCESSES, lock.fileno(), lambda: False)
    sys.exit(0 if outcome is None else f"error: {outcome.text}")


if __name__ == "__main__":
    main()

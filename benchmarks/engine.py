"""Time the public recipe and this engine on the same work, in one run: `make bench`.

Models of real shapes with random weights train LoRA adapters and score rows of real
lengths. The variant `recipe` follows the public notebooks: plain transformers and PEFT,
an NF4 base, eager attention, checkpointing, padded batches. The variant `engine` is
this project, on bases of bf16, NF4 and fp8. Each result is one printed line and one
stored row.

    python -m benchmarks.engine --models gemma-2-9b --lengths data/train.csv
    python -m benchmarks.engine --modes train --variants engine --bases bf16 --profile
    python -m benchmarks.engine --gpus 2 --variants engine
    python -m benchmarks.engine --tiny                # tiny shapes, CPU, seconds

Useful tokens are all tokens of all rows, without padding; a prompt that is computed
once for both orders of a pair counts twice. Useful operations are those of useful
tokens, without recomputation and without the adapter's own products. Compilation and
warm-up are not timed. `first_step_s` is the time until the end of the first step,
including the random weights. A case that fails is stored with its error, the other
cases continue, and the exit status is 1.
"""

import argparse
import gc
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import workload
from benchmarks.result_rows import Row, gpu_name, ratio_to_recipe, store_row
from prefdistill.errors import UserError
from prefdistill.models.quick_imports import hide_unused_imports
from prefdistill.running.job import set_threads
from prefdistill.running.workers import run_workers
from prefdistill.settings import LoraSettings, OptimisationSettings, read

MODES = ("train", "infer")
BASES = ("bf16", "nf4", "fp8")
VARIANTS = (
    *("recipe", "engine"),
    *("recipe_dropout", "engine_dropout"),
    *("recipe_upper", "engine_upper"),
    *("recipe_adapter", "engine_adapter"),
)
TRAIN_BATCH, INFER_BATCH = 4, 8  # rows of the recipe's padded batches
N_WARM = 2  # steps of the engine that compile
MATRIX_SIDE = 8192
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "triton")


class Unsupported(Exception):
    """Raised if the engine or the machine has no such base."""


@dataclass(frozen=True)
class Case:
    """The work of one row: model, mode, base and variant."""

    model: str
    mode: str
    base: str
    variant: str

    @property
    def is_recipe(self) -> bool:
        """Tell whether the public recipe does the work."""
        return self.variant.startswith("recipe")

    @property
    def shape(self) -> dict[str, Any]:
        """Return the model's shape."""
        return workload.SHAPES[self.model]

    @property
    def lora(self) -> dict[str, Any] | None:
        """Return the adapter's settings."""
        n_layers = self.shape["num_hidden_layers"]
        return workload.lora_settings(self.variant, self.mode, n_layers)


@dataclass(frozen=True)
class Amount:
    """The amount of work that is timed, and how it is split.

    Attributes:
        pairs: Pairs of a training step, each in both orders.
        repeats: Timed steps, each on other pairs. Scoring repeats all their pairs as
            often.
        seconds: Time after which the recipe and scoring stop repeating, once they have
            done two repeats.
        max_length: Longest row in tokens.
        shorten: Divisor of all lengths, for the CPU.
        lengths_from: A CSV file, or None for simulated lengths.
        token_budget: Tokens in the engine's training passes.
        infer_budget: Tokens in its scoring passes.
        recompute: As in a configuration's ``training.recompute``.
        attention: The recipe's attention.
        checkpointing: Whether the recipe recomputes activations in training.
        profile: Whether to print the kernels of one repeat instead of timing.
    """

    pairs: int = 32
    repeats: int = 3
    seconds: float = 15.0
    max_length: int = 2048
    shorten: int = 1
    lengths_from: Path | None = None
    token_budget: int = 8192
    infer_budget: int = 16896
    recompute: str = "auto"
    attention: str = "eager"
    checkpointing: bool = True
    profile: bool = False


# --- models ------------------------------------------------------------------------


def configuration(shape: dict[str, Any]) -> Any:
    """Make the transformers configuration of a three-class judge."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        **shape, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        use_cache=False,
    )  # fmt: skip


def random_weight(name: str, size: Any, device: Any, dtype: Any) -> Any:
    """Draw a weight, seeded by its name: initial norms, else N(0, 0.02²)."""
    import torch

    values = torch.empty(size, device=device, dtype=dtype)
    if len(size) == 1:
        return values.fill_(0.0 if name.endswith("bias") else 1.0)
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return values.normal_(0, 0.02, generator=generator)


def compute_dtype(device: Any) -> Any:
    """Choose the dtype of products: bf16, on the CPU float32."""
    import torch

    return torch.bfloat16 if device.type == "cuda" else torch.float32


def build_engine(case: Case, device: Any) -> Any:
    """Build the engine's judge with random weights, and its adapter."""
    from transformers import AutoModelForSequenceClassification

    from prefdistill.engine import engine
    from prefdistill.engine.attention import register
    from prefdistill.models.head import prepare_head
    from prefdistill.models.lora import add_adapter
    from prefdistill.models.sharding import empty_model

    engine.COMPILE_FLOP = 0.0  # compile even for this short work, as a real run does
    register()
    dtype = compute_dtype(device)
    config = configuration(case.shape)
    model = empty_model(AutoModelForSequenceClassification, config, dtype)
    if not hasattr(model, "activation_checkpointing_enable"):  # transformers 5.17
        model.activation_checkpointing_enable = model.gradient_checkpointing_enable
    fill(model, case.base, dtype, device)
    prepare_head(model, 0)
    model.eval()
    if case.lora:
        model = add_adapter(model, read(LoraSettings, case.lora), seed=0)
    return model if case.mode == "train" else model.requires_grad_(False)


def fill(model: Any, base: str, dtype: Any, device: Any) -> None:
    """Give an empty model of the engine random weights, stored as the base says."""
    from prefdistill.engine.engine import quantise_to_fp8
    from prefdistill.models.sharding import materialise

    def tensor_of(name: str, size: Any) -> Any:
        return random_weight(name, size, device, dtype)

    materialise(model, tensor_of, dtype, device, nf4=base == "nf4", sharded=False)
    if base == "fp8":
        quantise_to_fp8(model)


def build_recipe(case: Case, amount: Amount, device: Any) -> Any:
    """Build the recipe's judge: plain transformers, bitsandbytes and PEFT."""
    # The notebooks call `prepare_model_for_kbit_training`, which upcasts the norms and
    # the embedding and forces a backward pass below the lowest adapter. Both cost time
    # and memory, so leaving them out favours the recipe.
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification
    from transformers.initialization import no_init_weights

    from prefdistill.models.lora_targets import find_targets

    dtype = compute_dtype(device)
    with torch.device(device), no_init_weights():
        model = AutoModelForSequenceClassification.from_config(
            configuration(case.shape), dtype=dtype, attn_implementation=amount.attention
        )
    model.requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.data.copy_(random_weight(name, weight.shape, device, dtype))
    if case.base == "nf4":
        _store_in_nf4(model, dtype, device)
    if case.lora:
        lora, n_layers = case.lora, model.config.num_hidden_layers
        lowest = lora["lowest_layer"]
        targets, _ = find_targets(model.base_model, tuple(lora["targets"]), lowest)
        config = LoraConfig(
            task_type="SEQ_CLS",
            r=lora["r"],
            lora_alpha=lora["alpha"],
            lora_dropout=lora["dropout"],
            target_modules=targets,
            layers_to_transform=list(range(lowest, n_layers)),
        )
        model = get_peft_model(model, config)
    if case.mode == "train" and amount.checkpointing:
        core = model.get_base_model()
        name = "activation_checkpointing_enable"  # transformers 5.17 lacks it
        enable = getattr(core, name, None) or core.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model.train(case.mode == "train")


def _store_in_nf4(model: Any, dtype: Any, device: Any) -> None:
    """Replace the decoder's linear layers as transformers does for bitsandbytes."""
    from bitsandbytes.nn import Linear4bit, Params4bit
    from torch import nn

    nf4 = {"compress_statistics": True, "quant_type": "nf4"}
    for name, old in list(model.model.layers.named_modules()):
        if type(old) is not nn.Linear:
            continue
        new = Linear4bit(
            old.in_features, old.out_features, bias=False, compute_dtype=dtype,
            device="meta", **nf4,
        )  # fmt: skip
        new.weight = Params4bit(old.weight.data, requires_grad=False, **nf4).to(device)
        new.bias = old.bias
        model.model.layers.set_submodule(name, new)
    model.is_loaded_in_4bit = True  # for PEFT, as transformers sets it


# --- timing ------------------------------------------------------------------------


class Clock:
    """A clock that records when repeats begin, and the tokens until then.

    Call ``tick`` before each repeat and after the last. A profiler records the first
    repeat after the warm-up.

    Args:
        model: The model; tokens are counted at its embedding, where 0 is padding.
        n_warm: Repeats that are not timed.
        profiler: A profiler of torch, or None.
    """

    def __init__(self, model: Any, n_warm: int, profiler: Any = None) -> None:
        from prefdistill.models.forward import core_model

        self.n_warm, self.profiler = n_warm, profiler
        self.token_budget: int | None = None  # that the work chose
        self.recompute: str | None = None
        self.times: list[float] = []
        self.computed: list[int] = []
        self.padding: list[int] = []
        self._seen: list[tuple[int, Any]] = []
        embedding = core_model(model).model.embed_tokens
        embedding.register_forward_hook(self._count)

    def _count(self, _module: Any, inputs: Any, _output: Any) -> None:
        (tokens,) = inputs
        self._seen.append((tokens.numel(), (tokens == 0).sum()))

    def tick(self) -> None:
        """End a repeat and begin another, with the device idle."""
        synchronise()
        if self.profiler and len(self.times) == self.n_warm:
            self.profiler.start()
        if self.profiler and len(self.times) == self.n_warm + 1:
            self.profiler.stop()
        self.times.append(time.perf_counter())
        self.computed.append(sum(size for size, _ in self._seen))
        self.padding.append(sum(int(size) for _, size in self._seen))
        self._seen = []

    @property
    def seconds(self) -> np.ndarray:
        """Return the seconds of each timed repeat."""
        return np.diff(self.times)[self.n_warm :]

    @property
    def n_computed(self) -> tuple[int, int]:
        """Count tokens that the timed repeats computed, and the padding among them."""
        first = self.n_warm + 1
        return sum(self.computed[first:]), sum(self.padding[first:])

    def enough(self, seconds: float) -> bool:
        """Tell whether two repeats are timed and enough seconds have passed."""
        return len(self.seconds) >= 2 and self.seconds.sum() >= seconds


def synchronise() -> None:
    """Wait until the GPU is idle, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _ticked(clock: Clock, repeats: int, seconds: float) -> Iterator[int]:
    """Yield numbers of timed repeats, with a tick before each and after the last."""
    from prefdistill.running.processes import any_process

    for repeat in range(repeats):
        clock.tick()
        if any_process(clock.enough(seconds)):
            return
        yield repeat
    clock.tick()


# --- the work ----------------------------------------------------------------------


def training_settings(amount: Amount) -> OptimisationSettings:
    """Build the settings of a training that compiles its layers."""
    changes = {
        "learning_rate": 1e-5,
        "max_steps": N_WARM + amount.repeats,
        "pairs_per_step": amount.pairs,
        "token_budget": amount.token_budget,
        "recompute": amount.recompute,
        "compile": "always",
    }
    return read(OptimisationSettings, workload.STEADY | changes)


def row_tokens(encoded: Any, row: int) -> np.ndarray:
    """Return a row's tokens: pair ``row // 2``, second order if ``row`` is odd."""
    return encoded.tokens(row // 2, ("AB", "BA")[row % 2])


def step_rows(pairs: np.ndarray, seed: int) -> np.ndarray:
    """Shuffle the rows of a step's pairs, both orders, as in a shuffled file."""
    rows = np.concatenate([2 * pairs, 2 * pairs + 1])
    return np.random.default_rng(seed).permutation(rows)


def warm_shapes(trainer: Any) -> None:
    """Compile for every length that the passes of a training run may have."""
    from prefdistill.engine.packing import collate
    from prefdistill.models.forward import classify

    step = trainer.shape_step()
    if step == 1:
        return
    for n_tokens in range(step, trainer.token_budget + 1, step):
        rows = np.split(np.zeros(n_tokens, np.int64), range(512, n_tokens, 512))
        classify(trainer.model, collate(rows)).sum().backward()
    trainer.optimizer.zero_grad(set_to_none=True)


def train_engine(model: Any, encoded: Any, amount: Amount, clock: Clock) -> list:
    """Train through ``Trainer``, and return the pairs of each timed step."""
    from prefdistill.models.forward import engine_of
    from prefdistill.storage.checkpoints import Checkpoints
    from prefdistill.training import trainer as training
    from prefdistill.training.objectives import label_objective

    def asked_to_stop() -> bool:  # the trainer asks before every step
        clock.tick()
        if len(clock.times) == 2:
            warm_shapes(trainer)
        return False

    n_pairs = len(encoded.ids)
    targets = np.eye(3, dtype=np.float32)[np.arange(n_pairs) % 3]
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(training, "stop_requested", asked_to_stop),
        mock.patch.object(training, "MANY_SHAPES_FLOP", 0.0),  # as in a long training
    ):
        trainer = training.Trainer(
            model,
            encoded,
            label_objective(targets),
            training_settings(amount),
            1.0,
            Checkpoints(Path(folder, "checkpoints"), "bench"),
        )
        clock.token_budget = trainer.token_budget
        clock.recompute = engine_of(model).recompute
        trainer.run(Path(folder, "curve.jsonl"))
    clock.tick()
    if len(clock.times) != N_WARM + amount.repeats + 1:
        raise RuntimeError("the trainer no longer asks once a step whether to stop")
    if trainer.token_budget != clock.token_budget:
        raise UserError(f"out of memory at a token budget of {clock.token_budget}")
    if any(record["loss"] is None for record in trainer.curve):
        raise UserError("a loss was not finite")
    return [trainer.plan.pairs(step) for step in range(N_WARM, N_WARM + amount.repeats)]


def train_recipe(model: Any, encoded: Any, amount: Amount, clock: Clock) -> list:
    """Train on padded batches of the same steps' pairs, and return them."""
    import torch

    from prefdistill.training.steps import Plan

    settings = training_settings(amount)
    plan = Plan.from_settings(settings, len(encoded.ids), 1.0)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate)

    def step(rows: np.ndarray) -> None:
        lengths = encoded.lengths[rows // 2]
        for batch in workload.padded_batches(lengths, TRAIN_BATCH, by_length=False):
            loss = _padded_forward(model, encoded, rows[batch], labels=True).loss
            (loss * len(batch) / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    clock.tick()
    warm = step_rows(plan.pairs(0), 0)
    step(warm[np.argsort(-encoded.lengths[warm // 2])][:TRAIN_BATCH])
    done = []
    for repeat in _ticked(clock, amount.repeats, amount.seconds):
        done.append(plan.pairs(N_WARM + repeat))
        step(step_rows(done[-1], repeat))
    return done


def infer_engine(model: Any, encoded: Any, amount: Amount, clock: Clock) -> list:
    """Score through ``score_pairs``, and return the pairs of each timed repeat."""
    from prefdistill.models.scoring import score_pairs

    def score() -> None:
        score_pairs(model, encoded, token_budget=amount.infer_budget)

    clock.tick()
    score()
    n_done = 0
    for _ in _ticked(clock, amount.repeats, amount.seconds):
        score()
        n_done += 1
    return [np.arange(len(encoded.ids))] * n_done


def infer_recipe(model: Any, encoded: Any, amount: Amount, clock: Clock) -> list:
    """Score padded batches sorted by length, and return the pairs of each repeat."""
    import torch

    lengths = np.repeat(encoded.lengths, 2)
    batches = workload.padded_batches(lengths, INFER_BATCH, by_length=True)

    def score(batches: list[np.ndarray]) -> None:
        with torch.inference_mode():
            for rows in batches:
                _padded_forward(model, encoded, rows).logits.float().cpu()

    clock.tick()
    score(batches[:1])
    n_done = 0
    for _ in _ticked(clock, amount.repeats, amount.seconds):
        score(batches)
        n_done += 1
    return [np.arange(len(encoded.ids))] * n_done


def _padded_forward(
    model: Any, encoded: Any, rows: np.ndarray, *, labels: bool = False
) -> Any:
    """Compute the model's output on a padded batch of rows."""
    import torch

    device = model.device
    tokens, mask = workload.pad_rows([row_tokens(encoded, row) for row in rows])
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if labels:
        inputs["labels"] = rows % 3
    tensors = {key: torch.from_numpy(each).to(device) for key, each in inputs.items()}
    with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
        return model(**tensors)


WORK: dict[tuple[str, bool], Callable[..., list]] = {
    ("train", False): train_engine,
    ("train", True): train_recipe,
    ("infer", False): infer_engine,
    ("infer", True): infer_recipe,
}


def measure(case: Case, amount: Amount, device: Any) -> Row:
    """Build a model, do the work, and describe it as a row.

    Returns:
        The row. ``useful_tokens_per_s`` and ``useful_tflops`` are medians over the
        repeats, ``spread`` is the lowest and highest tokens/s, and ``peak_gib`` is the
        peak memory after the model was built.
    """
    import torch

    from prefdistill.running.processes import n_processes, sum_over_processes

    cuda = device.type == "cuda"
    started = time.perf_counter()
    extra = N_WARM if case.mode == "train" else 0
    n_pairs = amount.pairs * (extra + amount.repeats)
    lengths, prefixes, lengths_said = workload.draw_lengths(
        n_pairs, amount.max_length, amount.lengths_from
    )
    if amount.shorten > 1:
        lengths, prefixes = lengths // amount.shorten, prefixes // amount.shorten
        lengths_said += ", shortened"
    encoded = workload.random_pairs(lengths, prefixes, case.shape["vocab_size"])
    if case.is_recipe:
        model = build_recipe(case, amount, device)
    else:
        model = build_engine(case, device)
    synchronise()
    build_s = time.perf_counter() - started
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    is_warm_step = case.mode == "train" and not case.is_recipe
    profiler = _profiler(cuda) if amount.profile else None
    clock = Clock(model, N_WARM if is_warm_step else 1, profiler)
    clock.token_budget = amount.infer_budget
    pairs = WORK[case.mode, case.is_recipe](model, encoded, amount, clock)
    if profiler:
        print(describe_kernels(profiler, cuda), flush=True)
    lowest = case.lora["lowest_layer"] if case.lora else 0
    rows = [np.repeat(lengths[each], 2) for each in pairs]
    n_tokens = np.array([each.sum() for each in rows])
    flops = np.array(
        [
            workload.useful_flops(
                case.shape, each, train=case.mode == "train", lowest_layer=lowest
            )
            for each in rows
        ]
    )
    speeds = n_tokens / clock.seconds
    counts = torch.tensor(clock.n_computed, dtype=torch.float32, device=device)
    sum_over_processes([counts])
    n_computed, n_padding = counts.tolist()
    return vars(case) | {
        "gpus": n_processes(),
        "lora_r": case.lora["r"] if case.lora else 0,
        "targets": case.lora["targets"] if case.lora else [],
        "lowest_layer": lowest,
        "useful_tokens_per_s": round(float(np.median(speeds)), 1),
        "spread": [round(float(speed), 1) for speed in (speeds.min(), speeds.max())],
        "useful_tflops": float(f"{np.median(flops / clock.seconds) / 1e12:.4g}"),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if cuda
        else None,
        "fill": round(1 - n_padding / n_computed, 4),
        "shared": round(1 - (n_computed - n_padding) / int(n_tokens.sum()), 4),
        "first_step_s": round(clock.times[1] - started, 1),
        "build_s": round(build_s, 1),
        "timed_s": round(float(clock.seconds.sum()), 2),
        "repeats": len(pairs),
        "pairs": int(sum(map(len, pairs))),
        "tokens": int(n_tokens.sum()),
        "pairs_per_step": amount.pairs if case.mode == "train" else None,
        "token_budget": None if case.is_recipe else clock.token_budget,
        "recompute": clock.recompute,
        "lengths": lengths_said,
        "max_length": amount.max_length,
    }


# --- the machine -------------------------------------------------------------------


def matrix_peaks(device: Any) -> dict[str, float]:
    """Measure TFLOP/s of large products: bf16 (CPU: fp32), and fp8 if possible."""
    import torch

    cuda = device.type == "cuda"
    side, n_runs = (MATRIX_SIDE, 30) if cuda else (512, 3)
    dtype = compute_dtype(device)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in "ab")

    def rate(product: Callable[[], Any]) -> float:
        for _ in range(3):
            product()
        synchronise()
        start = time.perf_counter()
        for _ in range(n_runs):
            product()
        synchronise()
        seconds = (time.perf_counter() - start) / n_runs
        return round(2 * side**3 / seconds / 1e12, 3)

    peaks = {"bf16": rate(lambda: left @ right.t())}
    if cuda and torch.cuda.get_device_capability() >= (8, 9):
        fp8 = [each.to(torch.float8_e4m3fn) for each in (left, right)]
        scales = torch.ones(side, 1, device=device)
        peaks["fp8"] = rate(
            lambda: torch._scaled_mm(
                fp8[0],
                fp8[1].t(),
                scale_a=scales,
                scale_b=scales.t(),
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )
        )
    return peaks


def describe_machine(device: Any) -> Row:
    """Describe device, driver, package versions and measured peaks."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    name = "cpu"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False)
        versions["driver"] = (driver.stdout.splitlines() or [None])[0]
        versions["cuda"] = torch.version.cuda
    return {
        "machine": name,
        "matmul_tflops": matrix_peaks(device),
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
    }


def peak_fractions(row: Row, peaks: dict[str, float]) -> Row:
    """Divide a row's speed by the measured peak of its own products, and of bf16's."""
    speed = row["useful_tflops"]
    own = peaks.get("fp8" if row["base"] == "fp8" else "bf16")
    shares = {"peak_fraction": own, "bf16_peak_fraction": peaks["bf16"]}
    return {
        name: round(speed / peak / row["gpus"], 4) if speed and peak else None
        for name, peak in shares.items()
    }


def _profiler(cuda: bool) -> Any:
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    return profile(activities=[kind], acc_events=True)


def describe_kernels(profiler: Any, cuda: bool, n_kernels: int = 25) -> str:
    """List the longest kernels of a repeat: milliseconds, share, calls, name."""
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    totals = [
        (getattr(event, key) / 1e3, event.count, event.key)
        for event in profiler.key_averages()
        if getattr(event, key) > 0
    ]
    whole = sum(each[0] for each in totals) or 1.0
    lines = [f"{'ms':>10} {'share':>6} {'calls':>7}  of {whole:.1f} ms in all"]
    for milliseconds, count, name in sorted(totals, reverse=True)[:n_kernels]:
        name = re.sub(r"^(void )?(at::native::)?", "", name)[:90]
        lines.append(
            f"{milliseconds:>10.2f} {milliseconds / whole:>6.3f} {count:>7}  {name}"
        )
    return "\n".join(lines)


# --- the run -----------------------------------------------------------------------


def plan_cases(
    models: list[str], modes: list[str], bases: list[str], variants: list[str],
    recipe_base: str,
) -> list[Case]:  # fmt: skip
    """List the possible cases, with each model's recipe first."""
    cases = []
    for model in models:
        for mode in modes:
            for variant in sorted(variants, key=lambda name: "recipe" not in name):
                is_recipe = variant.startswith("recipe")
                for base in [recipe_base] if is_recipe else bases:
                    case = Case(model, mode, base, variant)
                    try:
                        _ = case.lora
                    except ValueError:
                        continue
                    cases.append(case)
    return cases


def attempt(case: Case, amount: Amount, device: Any, gpus: int) -> Row | None:
    """Measure a case on a clean device.

    Returns:
        A row, which holds the error if the case failed; None if it is unsupported.
    """
    import torch

    error = None
    try:
        return measure(case, amount, device)
    except Unsupported as reason:
        print(f"skipped {' '.join(vars(case).values())}: {reason}", flush=True)
        return None
    except torch.OutOfMemoryError:
        error = "out of memory"
    except Exception as failure:
        if gpus > 1:
            raise  # the processes of a case cannot continue without each other
        text = " ".join(str(failure).split())[:200]
        error = "out of memory" if "out of memory" in text else text
        if error != "out of memory":
            traceback.print_exc()
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch._dynamo.reset()
    nothing = dict.fromkeys(
        ("lora_r", "targets", "lowest_layer", "useful_tokens_per_s", "useful_tflops",
         "peak_gib", "first_step_s", "fill", "shared", "spread")
    )  # fmt: skip
    return vars(case) | {"gpus": gpus} | nothing | {"error": error}


def say(row: Row) -> str:
    """Write a row in one line."""
    name = " ".join(str(row[key]) for key in ("model", "mode", "base", "variant"))
    if row.get("error"):
        return f"{name}: {row['error']}"
    parts = [
        f"{row['useful_tokens_per_s']:,.0f} tokens/s"
        f" ({row['spread'][0]:,.0f} to {row['spread'][1]:,.0f})",
        f"{row['useful_tflops']:.4g} TFLOP/s",
        f"{row['peak_fraction']} of peak",
        f"{row['peak_gib']} GiB",
        f"fill {row['fill']}, shared {row['shared']}",
        f"first step {row['first_step_s']} s",
    ]
    if row["ratio_to_recipe"]:
        parts.append(f"{row['ratio_to_recipe']} x recipe")
    return f"{name}: " + ", ".join(parts)


def run(arguments: argparse.Namespace) -> bool:
    """Measure all cases that time allows; return True if none failed."""
    import torch

    from prefdistill.running.processes import connect, disconnect, is_first

    if arguments.gpus > 1:
        connect()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    started, longest, rows = time.monotonic(), 0.0, []
    machine = describe_machine(device)
    out = arguments.out
    if out is None:
        folder = Path(__file__).parent / "results"
        out = folder / f"{gpu_name(machine['machine'])}.json"
    if is_first():
        print(f"{machine['machine']}: {machine['matmul_tflops']} TFLOP/s", flush=True)
    for case in arguments.cases:
        begun = time.monotonic()
        if begun - started + longest > 60 * arguments.minutes:
            print(f"no time left for {' '.join(vars(case).values())}", flush=True)
            continue
        row = attempt(case, arguments.amount, device, arguments.gpus)
        longest = max(longest, time.monotonic() - begun)
        if row is None:
            continue
        row |= machine | peak_fractions(row, machine["matmul_tflops"])
        row["ratio_to_recipe"] = None if case.is_recipe else ratio_to_recipe(row, rows)
        rows.append(row)
        if is_first():
            print(say(row), flush=True)
            if not arguments.amount.profile:
                store_row(out, row)
    disconnect()
    return not any(row.get("error") for row in rows)


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line into ``cases`` and ``amount``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Amount()
    parser.add_argument("--models", nargs="+", choices=workload.SHAPES)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=["recipe", "engine"],
        help="dropout: LoRA with dropout; upper: LoRA r 16 on q, k, v of the upper "
        "layers; adapter: scoring with an unmerged adapter of r 64",
    )  # fmt: skip
    parser.add_argument("--gpus", type=int, default=1, help="processes, one per GPU")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, help="benchmarks/results/GPU.json")
    parser.add_argument("--lengths", type=Path, help="a CSV file of pairs")
    parser.add_argument("--pairs", type=int, help="pairs of a training step")
    parser.add_argument("--repeats", type=int, help="timed steps, or scorings")
    parser.add_argument("--seconds", type=float, default=default.seconds)
    parser.add_argument("--token-budget", type=int, help="tokens in training passes")
    parser.add_argument("--infer-budget", type=int, help="tokens in scoring passes")
    parser.add_argument(
        "--recompute", default="auto", choices=["auto", "none", "selective", "full"]
    )
    parser.add_argument("--profile", action="store_true", help="print kernels instead")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
    read = parser.parse_args(arguments)
    amount = default
    if read.tiny:
        amount = replace(
            amount, pairs=4, repeats=2, shorten=16, token_budget=256, infer_budget=512
        )  # fmt: skip
    amount = replace(
        amount,
        pairs=read.pairs or amount.pairs,
        repeats=1 if read.profile else read.repeats or amount.repeats,
        seconds=read.seconds,
        lengths_from=read.lengths,
        token_budget=read.token_budget or amount.token_budget,
        infer_budget=read.infer_budget or amount.infer_budget,
        recompute=read.recompute,
        profile=read.profile,
    )
    read.amount = amount
    models = read.models or list(workload.TINY if read.tiny else workload.PUBLISHED)
    variants = read.variants
    if read.gpus > 1:  # the recipe uses one GPU
        variants = [name for name in variants if "recipe" not in name]
    has_nf4 = importlib.util.find_spec("bitsandbytes") is not None
    if not has_nf4:
        print(
            "no bitsandbytes: the recipe's base is bf16, and NF4 is left out",
            flush=True,
        )
        read.bases = [base for base in read.bases if base != "nf4"]
    recipe_base = "nf4" if has_nf4 else "bf16"
    read.cases = plan_cases(models, read.modes, read.bases, variants, recipe_base)
    return read


def main() -> None:
    """Measure in this process, or start one process per GPU."""
    arguments = read_arguments()
    if arguments.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    hide_unused_imports()
    if "RANK" in os.environ or arguments.gpus == 1:
        sys.exit(0 if run(arguments) else 1)
    set_threads(1 if arguments.tiny else 8)
    with tempfile.TemporaryFile() as lock:
        outcome = run_workers(arguments.gpus, lock.fileno(), lambda: False)
    sys.exit(0 if outcome is None else f"error: {outcome.text}")


if __name__ == "__main__":
    main()

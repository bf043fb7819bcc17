"""What a job asks for: threads, memory and minutes, from its model and settings.

The cost model. A parameter costs two floating-point operations a token in a forward
pass; training an adapter costs four, as the frozen weights need no gradient, and six
with `recompute: full`. Minutes follow from the operations, the GPUs, and what one GPU
sustains of them (`gpu_tflops`). Time limits, the hours of `make plan` and of `make
status`, and those predicted in docs/performance.md come from here. A base counts with
all of its parameters, where the embedding is only looked up: 7 to 15 % too much for
models of 7 to 9 billion parameters.

Imported by the Snakefile, so it stays light.
"""

import math
from dataclasses import dataclass
from typing import Any

from prefdistill.pipeline.sizes import (
    BYTES_PER_PAIR,
    COMPRESSION,
    count_tokens,
    trained_pairs,
)

# Parameters from which a job is worth several cores. Smaller models run on one, where
# their results are the same bit by bit on any machine.
LARGE_PARAMETERS = 1e8
THREADS_PER_GPU = 4

# GB of a process: Python, torch and CUDA's libraries; without a model, the tables' own.
MODEL_GB = 4.0
LIGHT_GB = 2.0
# The data stages took 0.71 GB for a million pairs of 683 bytes; thrice that a byte.
GB_PER_MILLION_PAIRS = 10.0
# An id, a split and three logits, in a view.
BYTES_PER_SCORE = 40
# An adapter of rank r has about r / 2400 of the parameters of a 7 to 9 billion base.
RANK_OF_WHOLE = 2_400

START_MINUTES = 15.0
# Two cores gave 0.14 TFLOP/s on a model of 135 million parameters.
CPU_TFLOPS = 0.1
# From a shared disk, and from the hub.
DISK_GB_PER_MINUTE = 5.0
DOWNLOAD_GB_PER_MINUTE = 1.0
# fit_baselines, the slowest, took 6 s for the demo's 4,600 pairs, 22 minutes a million;
# texts of people are longer.
LIGHT_MINUTES_PER_MILLION_PAIRS = 60.0
# What a tiny model is pre-trained on.
PRETRAIN_PAIRS_PER_STEP = 16
# "175 billion parameters in approximately four GPU hours" (arXiv 2210.17323).
GPTQ_MINUTES_PER_BILLION = 1.5


@dataclass(frozen=True)
class Size:
    """A model as its jobs feel it.

    Attributes:
        parameters: Of its base.
        gpus: GPUs of a job; 0 for the CPU, where weights take 32 bits instead of 16.
        rank: Of its adapter.
    """

    parameters: float
    gpus: int
    rank: int

    @property
    def weights_gb(self) -> float:
        """GB of the base's weights as a job loads them."""
        return self.parameters * (2 if self.gpus else 4) / 1e9

    @property
    def adapter_gb(self) -> float:
        """GB of an adapter in float32."""
        return 4 * self.parameters * self.rank / RANK_OF_WHOLE / 1e9

    @property
    def threads(self) -> int:
        """Cores of a job: some for each GPU of a large model, one for a tiny model."""
        if self.parameters < LARGE_PARAMETERS:
            return 1
        return THREADS_PER_GPU * max(self.gpus, 1)


@dataclass(frozen=True)
class Work:
    """What a job holds and does.

    Attributes:
        gigabytes: Of main memory.
        minutes: That no GPU makes shorter.
        tflop: 10^12 floating-point operations.
        gpus: That share the operations; 0 for the CPU.
        n_tokens: That go through the model.
        disk_gb: Of the files that it writes.
        scratch_gb: Of its checkpoints, while it runs.
    """

    gigabytes: float
    minutes: float = 0.0
    tflop: float = 0.0
    gpus: int = 0
    n_tokens: float = 0.0
    disk_gb: float = 0.0
    scratch_gb: float = 0.0

    def memory_mb(self, attempt: int) -> int:
        """MB of main memory, as often as there are attempts."""
        return round(1000 * attempt * self.gigabytes)

    def hours(self, config: dict[str, Any]) -> float:
        """Hours that the work takes, without start-up and without a margin.

        Args:
            config: Has ``gpu_tflops``.
        """
        rate = self.gpus * config["gpu_tflops"] or CPU_TFLOPS
        return (self.minutes + self.tflop / rate / 60) / 60

    def gpu_hours(self, config: dict[str, Any]) -> float:
        """Hours times GPUs."""
        return self.gpus * self.hours(config)

    def time_limit(self, attempt: int, config: dict[str, Any]) -> int:
        """Minutes for start-up and work, as often as there are attempts.

        Args:
            attempt: 1, 2, ...
            config: Has ``gpu_tflops``, ``runtime_safety`` and ``max_runtime``.
        """
        work = config["runtime_safety"] * 60 * self.hours(config)
        minutes = math.ceil(attempt * (START_MINUTES + work))
        return min(minutes, config["max_runtime"] or minutes)


def light_work(n_pairs: float) -> Work:
    """A job on tables, without a model; it writes no more than it reads."""
    minutes = n_pairs / 1e6 * LIGHT_MINUTES_PER_MILLION_PAIRS
    table_gb = n_pairs * BYTES_PER_PAIR / COMPRESSION / 1e9
    return Work(LIGHT_GB + _pairs_gb(n_pairs), minutes, disk_gb=table_gb)


def base_work(parameters: float, base: dict[str, Any], max_length: int) -> Work:
    """Getting a base model: downloaded and hashed, converted, or tiny and trained."""
    weights_gb = 2 * parameters / 1e9
    converted = base["source"] == "package"  # held in 32 and in 16 bits
    steps = base["pretrain_steps"] if base["source"] == "tiny" else 0
    n_tokens = count_tokens(PRETRAIN_PAIRS_PER_STEP * steps, max_length)
    return Work(
        MODEL_GB + (3 * weights_gb if converted else 0),
        minutes=weights_gb / DOWNLOAD_GB_PER_MINUTE,
        tflop=6 * parameters * n_tokens / 1e12,
        disk_gb=0 if base["source"] == "path" else weights_gb,
    )


def check_work(sizes: list[Size]) -> Work:
    """A look at each model, one after the other."""
    gigabytes = max(_model_gb(size, copies=1, adapters=1) for size in sizes)
    return Work(gigabytes, sum(map(_loading_minutes, sizes)))


def training_work(
    size: Size, settings: dict[str, Any], n_pairs: int, max_length: int
) -> Work:
    """Training by a ``training`` or ``post_pretrain`` section on some of the pairs.

    Memory holds the adapter, its two moments, and what is being saved of them; scratch
    two checkpoints of all three. ``recompute: auto`` is taken to recompute as little as
    what ``gpu_tflops`` was measured with.
    """
    n_tokens = count_tokens(trained_pairs(settings, n_pairs), max_length)
    per_token = (6 if settings["recompute"] == "full" else 4) * size.parameters
    return Work(
        _model_gb(size, copies=1, adapters=4) + _pairs_gb(n_pairs),
        minutes=_loading_minutes(size),
        tflop=per_token * n_tokens / 1e12,
        gpus=size.gpus,
        n_tokens=n_tokens,
        disk_gb=size.adapter_gb,
        scratch_gb=2 * 3 * size.adapter_gb,
    )


def scoring_work(size: Size, n_pairs: int, max_length: int, n_views: int = 2) -> Work:
    """Scoring of pairs."""
    n_tokens = count_tokens(n_pairs, max_length, n_views)
    return Work(
        _model_gb(size, copies=1, adapters=1) + _pairs_gb(n_pairs),
        minutes=_loading_minutes(size),
        tflop=_forward_tflop(size, n_tokens),
        gpus=size.gpus,
        n_tokens=n_tokens,
        disk_gb=n_pairs * n_views * BYTES_PER_SCORE / 1e9,
    )


def average_work(size: Size, n_folds: int) -> Work:
    """Averaging of the folds' adapters: B A is multiplied out for the exact mean.

    Memory holds the folds' adapters, all of their ranks in one, and the mean factors.
    """
    return Work(
        _model_gb(size, copies=0, adapters=2 * n_folds + 1),
        tflop=_forward_tflop(size, (n_folds + 1) * size.rank),
        disk_gb=n_folds * size.adapter_gb,
    )


def merge_work(size: Size, n_folds: int) -> Work:
    """Merging into the weights, which are read, written and hashed.

    It is done tensor by tensor, but one embedding of 256,000 tokens in float32, with
    its rounded copy and error, takes most of what 16-bit weights of 9 billion take.
    """
    return Work(
        _model_gb(size, copies=1, adapters=n_folds),
        minutes=3 * _loading_minutes(size),
        tflop=_forward_tflop(size, n_folds * size.rank),
        disk_gb=2 * size.parameters / 1e9,
    )


def quantise_work(
    size: Size, n_calibration_pairs: int, max_length: int, bits: int = 8
) -> Work:
    """GPTQ; memory holds the weights twice, before and after.

    On the disk an embedding stays in 16 bits, which for a tenth of the parameters, with
    the scales of the others, is about two more bits each.
    """
    n_tokens = count_tokens(n_calibration_pairs, max_length)
    gptq = size.parameters / 1e9 * GPTQ_MINUTES_PER_BILLION
    return Work(
        _model_gb(size, copies=2),
        minutes=_loading_minutes(size) + gptq,
        tflop=_forward_tflop(size, n_tokens),
        gpus=size.gpus,
        n_tokens=n_tokens,
        disk_gb=size.parameters * (bits + 2) / 8 / 1e9,
    )


def _pairs_gb(n_pairs: float) -> float:
    return n_pairs / 1e6 * GB_PER_MILLION_PAIRS


def _model_gb(size: Size, *, copies: float, adapters: float = 0) -> float:
    """GB of all processes; they share the pages of the weights that they read."""
    processes = MODEL_GB * max(size.gpus, 1)
    return processes + copies * size.weights_gb + adapters * size.adapter_gb


def _loading_minutes(size: Size) -> float:
    return size.weights_gb / DISK_GB_PER_MINUTE


def _forward_tflop(size: Size, n_tokens: float) -> float:
    """Of a forward pass; of an adapter's B A too, at as many tokens as its rank."""
    return 2 * size.parameters * n_tokens / 1e12

"""Estimate what a job needs: threads, memory, minutes and disk.

In a forward pass a parameter costs two floating-point operations per token. Training an
adapter costs four, because frozen weights need no gradient, and six with
`recompute: full`. Minutes follow from the operations, the number of GPUs and what one
GPU sustains (`gpu_tflops`). The time limits of jobs, the hours that `make plan` and
`make status` show, and the hours predicted in docs/performance.md come from here.

All parameters of a base count, although its embedding is only looked up: that is 7 to
15 % too much for models of 7 to 9 billion parameters.

Imported by the Snakefile, so it stays light.
"""

import math
from dataclasses import dataclass

from prefdistill.pipeline.pair_counts import (
    BYTES_PER_PAIR,
    COMPRESSION,
    count_tokens,
    trained_pairs,
)
from prefdistill.settings import (
    BaseModelSettings,
    PostPretrainSettings,
    TrainingSettings,
)

# Models with fewer parameters run on one core, where their results are bit by bit the
# same on any machine; larger ones are worth several.
LARGE_PARAMETERS = 1e8
THREADS_PER_GPU = 4

# GB of a process: Python, torch and CUDA's libraries; without a model, the tables' own.
MODEL_GB = 4.0
LIGHT_GB = 2.0
# The data stages took 0.71 GB for a million pairs of 683 bytes. Pairs of 3,200 bytes
# would take 3.3 GB; this is three times as much.
GB_PER_MILLION_PAIRS = 10.0
# An id, a split and three logits, in one view.
BYTES_PER_SCORE = 40
# An adapter of rank r has about r / 2400 of the parameters of a base of 7 to 9 billion.
RANK_OF_WHOLE = 2_400

START_MINUTES = 15.0
# Two cores gave 0.14 TFLOP/s on a model of 135 million parameters.
CPU_TFLOPS = 0.1
# From a shared disk, and from the hub.
DISK_GB_PER_MINUTE = 5.0
DOWNLOAD_GB_PER_MINUTE = 1.0
# fit_baselines, the slowest job, took 6 s for the demo's 4,600 pairs: 22 minutes for a
# million. Texts that people write are longer.
LIGHT_MINUTES_PER_MILLION_PAIRS = 60.0
# Pairs per step of a tiny model's pre-training.
PRETRAIN_PAIRS_PER_STEP = 16
# "175 billion parameters in approximately four GPU hours" (arXiv 2210.17323).
GPTQ_MINUTES_PER_BILLION = 1.5


@dataclass(frozen=True)
class Size:
    """Hold what sets the cost of a model's jobs.

    Attributes:
        parameters: Parameters of its base.
        gpus: GPUs of a job; 0 for the CPU, where weights take 32 bits instead of 16.
        rank: Rank of its adapter.
    """

    parameters: float
    gpus: int
    rank: int

    @property
    def weights_gb(self) -> float:
        """Return GB of the base's weights as a job loads them."""
        return self.parameters * (2 if self.gpus else 4) / 1e9

    @property
    def adapter_gb(self) -> float:
        """Return GB of an adapter in float32."""
        return 4 * self.parameters * self.rank / RANK_OF_WHOLE / 1e9

    @property
    def threads(self) -> int:
        """Return the cores of a job: four per GPU, or one if the model is tiny."""
        if self.parameters < LARGE_PARAMETERS:
            return 1
        return THREADS_PER_GPU * max(self.gpus, 1)


@dataclass(frozen=True)
class Work:
    """Hold what a job needs and does.

    Attributes:
        gigabytes: GB of main memory.
        minutes: Minutes that no GPU makes shorter.
        tflop: Floating-point operations, in units of 10^12.
        gpus: GPUs that share the operations; 0 for the CPU.
        n_tokens: Tokens that go through the model.
        disk_gb: GB of the files that the job writes.
        scratch_gb: GB of its checkpoints, while it runs.
    """

    gigabytes: float
    minutes: float = 0.0
    tflop: float = 0.0
    gpus: int = 0
    n_tokens: float = 0.0
    disk_gb: float = 0.0
    scratch_gb: float = 0.0

    def memory_mb(self, attempt: int) -> int:
        """Return the MB of main memory to ask for: the estimate times the attempt."""
        return round(1000 * attempt * self.gigabytes)

    def hours(self, gpu_tflops: float) -> float:
        """Estimate the hours of the work, without start-up and without a margin.

        Args:
            gpu_tflops: TFLOP/s that one GPU sustains.
        """
        rate = self.gpus * gpu_tflops or CPU_TFLOPS
        return (self.minutes + self.tflop / rate / 60) / 60

    def gpu_hours(self, gpu_tflops: float) -> float:
        """Estimate the hours times the GPUs."""
        return self.gpus * self.hours(gpu_tflops)

    def time_limit(
        self,
        attempt: int,
        *,
        gpu_tflops: float,
        runtime_safety: float,
        max_runtime: int | None,
    ) -> int:
        """Return the minutes to ask for, start-up included, times the attempt.

        Args:
            attempt: 1, 2, ...
            gpu_tflops: TFLOP/s that one GPU sustains.
            runtime_safety: Time limit over estimated time of the work.
            max_runtime: The longest limit to ask for, in minutes; None for any.
        """
        work = runtime_safety * 60 * self.hours(gpu_tflops)
        minutes = math.ceil(attempt * (START_MINUTES + work))
        return min(minutes, max_runtime or minutes)


def light_work(n_pairs: float) -> Work:
    """Estimate a job on tables, without a model; it writes no more than it reads."""
    minutes = n_pairs / 1e6 * LIGHT_MINUTES_PER_MILLION_PAIRS
    table_gb = n_pairs * BYTES_PER_PAIR / COMPRESSION / 1e9
    return Work(LIGHT_GB + _pairs_gb(n_pairs), minutes, disk_gb=table_gb)


def base_work(parameters: float, base: BaseModelSettings, max_length: int) -> Work:
    """Estimate the download and hashing, conversion or training of a base model."""
    weights_gb = 2 * parameters / 1e9
    converted = base.source == "package"  # held in 32 and in 16 bits
    steps = base.pretrain_steps if base.source == "tiny" else 0
    n_tokens = count_tokens(PRETRAIN_PAIRS_PER_STEP * steps, max_length)
    return Work(
        MODEL_GB + (3 * weights_gb if converted else 0),
        minutes=weights_gb / DOWNLOAD_GB_PER_MINUTE,
        tflop=6 * parameters * n_tokens / 1e12,
        disk_gb=0 if base.source == "path" else weights_gb,
    )


def check_work(sizes: list[Size]) -> Work:
    """Estimate the loading of each model, one after the other."""
    gigabytes = max(_model_gb(size, copies=1, adapters=1) for size in sizes)
    return Work(gigabytes, sum(map(_loading_minutes, sizes)))


def training_work(
    size: Size,
    settings: TrainingSettings | PostPretrainSettings,
    n_pairs: int,
    max_length: int,
) -> Work:
    """Estimate a training.

    Memory holds the adapter, its two moments and a copy that is being saved; scratch
    holds two checkpoints of adapter and moments. ``recompute: auto`` is assumed to
    recompute as little as the runs in which ``gpu_tflops`` was measured.

    Args:
        size: Of the model.
        settings: Of the training.
        n_pairs: Pairs that there are; the settings may show fewer.
        max_length: Longest row in tokens.
    """
    n_tokens = count_tokens(trained_pairs(settings, n_pairs), max_length)
    per_token = (6 if settings.recompute == "full" else 4) * size.parameters
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
    """Estimate the scoring of pairs in ``n_views`` orders."""
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
    """Estimate the averaging of the folds' adapters.

    B A is multiplied out for the exact mean. Memory holds the folds' adapters, one
    adapter of all their ranks, and the mean's factors.
    """
    return Work(
        _model_gb(size, copies=0, adapters=2 * n_folds + 1),
        tflop=_forward_tflop(size, (n_folds + 1) * size.rank),
        disk_gb=n_folds * size.adapter_gb,
    )


def merge_work(size: Size, n_folds: int) -> Work:
    """Estimate the merging into the weights, which are read, written and hashed.

    One tensor is merged at a time. Yet an embedding of 256,000 tokens in float32, with
    its rounded copy and error, takes nearly as much as 9 billion weights in 16 bits.
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
    """Estimate GPTQ; memory holds the weights twice, before and after.

    The file takes about two more bits a parameter than ``bits``: the embedding, a tenth
    of the parameters, stays in 16 bits, and the other weights have scales.
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
    """Return GB of all processes, which share the pages of the weights they read."""
    processes = MODEL_GB * max(size.gpus, 1)
    return processes + copies * size.weights_gb + adapters * size.adapter_gb


def _loading_minutes(size: Size) -> float:
    return size.weights_gb / DISK_GB_PER_MINUTE


def _forward_tflop(size: Size, n_tokens: float) -> float:
    """Count a forward pass; B A of an adapter counts as one over `rank` tokens."""
    return 2 * size.parameters * n_tokens / 1e12

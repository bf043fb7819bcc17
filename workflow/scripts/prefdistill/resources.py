"""What a job asks for: threads, memory and minutes, from its model and settings.

The cost model. A parameter costs two floating-point operations a token in a forward
pass; training an adapter costs four, as the frozen weights need no gradient, and six
where activations are recomputed. Minutes follow from the operations, the GPUs, and what
one GPU sustains. A base counts with all of its parameters, where the embedding is only
looked up: 7 to 15 % too much for models of 7 to 9 billion parameters.

All of this is known before any data are read, so pairs are estimated from file sizes.
Imported by the Snakefile, so it stays light.
"""

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdistill.config import SIMULATED_FOLDER
from prefdistill.job import UserError

# A pair of the LMSYS competition: its train.csv has 184 MB for 57,477 pairs.
BYTES_PER_PAIR = 3_200
TOKENS_PER_PAIR = 800
# Text in parquet and .gz takes about a third.
COMPRESSION = 3
# Pairs of a source whose size is not known, such as a Hub data set.
UNKNOWN_PAIRS = 60_000

# Parameters from which a job is worth several cores. Smaller models run on one, where
# their results are the same bit by bit on any machine.
LARGE_PARAMETERS = 1e8
THREADS_PER_GPU = 4

# GB of a process: Python, torch and CUDA's libraries; without a model, the tables' own.
MODEL_GB = 4.0
LIGHT_GB = 2.0
# The data stages took 0.71 GB for a million pairs of 683 bytes; thrice that a byte.
GB_PER_MILLION_PAIRS = 10.0
# An adapter of rank r has about r / 2400 of the parameters of a 7 to 9 billion base.
RANK_OF_WHOLE = 2_400

START_MINUTES = 15.0
# Two cores gave 0.14 TFLOP/s on a model of 135 million parameters.
CPU_TFLOPS = 0.1
# From a shared disk, and from the hub.
DISK_GB_PER_MINUTE = 5.0
DOWNLOAD_GB_PER_MINUTE = 1.0
# fit_baselines, the slowest, took 6 s for 4,600 pairs of a fifth of the usual length.
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


# --- how large a base is ------------------------------------------------------------


def base_parameters(name: str, base: dict[str, Any]) -> float:
    """The parameters of a base model, before it is fetched.

    They are ``billions`` if set; else what the shape of a tiny model or a local
    config.json gives; else the size in the name of the repository, package or folder,
    such as 8B or 135m, or in the name that the configuration gives the base.

    Raises:
        UserError: If none of them says it.
    """
    if "billions" in base:
        return base["billions"] * 1e9
    shape = _tiny_shape(base) if base["source"] == "tiny" else _saved_shape(base)
    if shape is not None:
        return shape_parameters(shape)
    places = [base.get(key, "") for key in ("repo", "package", "path")]
    for place in [*places, name]:
        found = re.search(
            r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", place.lower()
        )
        if found:
            return float(found[1]) * {"b": 1e9, "m": 1e6}[found[2]]
    raise UserError(
        f"config: base_models.{name}: its size shows in no name; set "
        f"base_models.{name}.billions, its parameters in billions such as 0.135"
    )


def _tiny_shape(base: dict[str, Any]) -> dict[str, int]:
    return {
        "hidden_size": base["hidden_size"],
        "intermediate_size": 3 * base["hidden_size"],
        "num_hidden_layers": base["n_layers"],
        "num_attention_heads": base["n_heads"],
        "num_key_value_heads": max(base["n_heads"] // 2, 1),
        "vocab_size": 1024,
    }


def _saved_shape(base: dict[str, Any]) -> dict[str, Any] | None:
    """The config.json of a local model, if it names a shape."""
    try:
        text = Path(base["path"], "config.json").read_text(encoding="utf-8")
        shape = json.loads(text)
    except (KeyError, OSError, ValueError):
        return None
    wanted = {"hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"}
    return shape if wanted <= shape.keys() else None


def shape_parameters(shape: dict[str, Any]) -> int:
    """Parameters of the linear layers and the embedding, by the keys of config.json."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    head = shape.get("head_dim") or hidden // heads
    both_heads = heads + (shape.get("num_key_value_heads") or heads)
    attention = 2 * hidden * head * both_heads
    layer = attention + 3 * hidden * shape["intermediate_size"]
    return shape["num_hidden_layers"] * layer + shape["vocab_size"] * hidden


# --- how much a job processes ---------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Estimated numbers of pairs.

    Attributes:
        train: On the train side of a fold.
        dev: Of a fold.
        held_out: In select and test.
        post_pretrain: For post-pretraining.
        unlabelled: To predict for the submission.
    """

    train: int
    dev: int
    held_out: int
    post_pretrain: int
    unlabelled: int

    @property
    def all(self) -> int:
        """All that the data stages read."""
        own = self.train + self.dev + self.held_out
        return own + self.post_pretrain + self.unlabelled


def count_pairs(config: dict[str, Any]) -> Pairs:
    """Estimate the pairs of a configuration from its settings and file sizes."""
    data, folds, simulation = config["data"], config["folds"], config["simulation"]

    def total(entries: Iterable[str | dict[str, Any]]) -> int:
        return sum(_source_pairs(entry, simulation) for entry in entries)

    n_own = total(data["train"])
    n_held_out = round(n_own * (folds["select_fraction"] + folds["test_fraction"]))
    n_dev = (n_own - n_held_out) // folds["n"]
    return Pairs(
        train=n_own - n_held_out - n_dev + total(data["extra"]),
        dev=n_dev,
        held_out=n_held_out,
        post_pretrain=total(data["ultra"]),
        unlabelled=total([data["test"]] if data["test"] else []),
    )


def _source_pairs(entry: str | dict[str, Any], simulation: dict[str, Any]) -> int:
    if isinstance(entry, dict):
        return UNKNOWN_PAIRS
    if entry.startswith(SIMULATED_FOLDER):
        return simulation.get(f"n_{Path(entry).stem}", UNKNOWN_PAIRS)
    try:
        n_bytes = os.stat(entry).st_size
    except OSError:
        return UNKNOWN_PAIRS
    plain = entry.endswith(".csv")
    return math.ceil(n_bytes * (1 if plain else COMPRESSION) / BYTES_PER_PAIR)


def trained_pairs(settings: dict[str, Any], n_pairs: int) -> float:
    """Pairs that a training shows, each epoch anew.

    Args:
        settings: A ``training`` or ``post_pretrain`` section.
        n_pairs: Pairs that there are.
    """
    if settings.get("objective") == "none":
        return 0.0
    epochs = settings.get("epochs", settings.get("fraction_of_epoch"))
    shown = min(settings.get("n_rows") or n_pairs, n_pairs) * epochs
    if settings["max_steps"] is None:
        return shown
    return min(shown, settings["max_steps"] * settings["pairs_per_step"])


def scored_pairs(settings: dict[str, Any], pairs: Pairs) -> int:
    """Pairs that a teacher scores by its ``inference`` section."""
    start, end = settings["rows"] or (0, settings["n_rows"] or pairs.train)
    n_train = min(end, pairs.train) - min(start, pairs.train)
    return n_train + pairs.dev + pairs.held_out


def count_tokens(n_pairs: float, max_length: int, n_views: int = 2) -> float:
    """Tokens of pairs, each in so many views."""
    return n_pairs * n_views * min(TOKENS_PER_PAIR, max_length)


# --- what it asks for -----------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a job holds and does.

    Attributes:
        gigabytes: Of main memory.
        minutes: That no GPU makes shorter.
        tflop: 10^12 floating-point operations.
        gpus: That share the operations; 0 for the CPU.
    """

    gigabytes: float
    minutes: float = 0.0
    tflop: float = 0.0
    gpus: int = 0

    def memory_mb(self, attempt: int) -> int:
        """MB of main memory, as often as there are attempts."""
        return round(1000 * attempt * self.gigabytes)

    def time_limit(self, attempt: int, config: dict[str, Any]) -> int:
        """Minutes for start-up and work, as often as there are attempts.

        Args:
            attempt: 1, 2, ...
            config: Has ``gpu_tflops``, ``runtime_safety`` and ``max_runtime``.
        """
        rate = self.gpus * config["gpu_tflops"] or CPU_TFLOPS
        work = config["runtime_safety"] * (self.minutes + self.tflop / rate / 60)
        minutes = math.ceil(attempt * (START_MINUTES + work))
        return min(minutes, config["max_runtime"] or minutes)


def light_work(n_pairs: float) -> Work:
    """A job on tables, without a model."""
    minutes = n_pairs / 1e6 * LIGHT_MINUTES_PER_MILLION_PAIRS
    return Work(LIGHT_GB + _pairs_gb(n_pairs), minutes)


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
    )


def check_work(sizes: list[Size]) -> Work:
    """A look at each model, one after the other."""
    gigabytes = max(_model_gb(size, copies=1, adapters=1) for size in sizes)
    return Work(gigabytes, sum(map(_loading_minutes, sizes)))


def training_work(
    size: Size, settings: dict[str, Any], n_pairs: int, max_length: int
) -> Work:
    """Training by a ``training`` or ``post_pretrain`` section on some of the pairs.

    Memory holds the adapter, its two moments, and what is being saved of them.
    ``recompute: auto`` is taken to recompute.
    """
    n_tokens = count_tokens(trained_pairs(settings, n_pairs), max_length)
    per_token = (4 if settings["recompute"] == "none" else 6) * size.parameters
    return Work(
        _model_gb(size, copies=1, adapters=4) + _pairs_gb(n_pairs),
        minutes=_loading_minutes(size),
        tflop=per_token * n_tokens / 1e12,
        gpus=size.gpus,
    )


def scoring_work(size: Size, n_pairs: int, max_length: int, n_views: int = 2) -> Work:
    """Scoring of pairs."""
    n_tokens = count_tokens(n_pairs, max_length, n_views)
    return Work(
        _model_gb(size, copies=1, adapters=1) + _pairs_gb(n_pairs),
        minutes=_loading_minutes(size),
        tflop=_forward_tflop(size, n_tokens),
        gpus=size.gpus,
    )


def average_work(size: Size, n_folds: int) -> Work:
    """Averaging of the folds' adapters: B A is multiplied out for the exact mean.

    Memory holds the folds' adapters, all of their ranks in one, and the mean factors.
    """
    return Work(
        _model_gb(size, copies=0, adapters=2 * n_folds + 1),
        tflop=_forward_tflop(size, (n_folds + 1) * size.rank),
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
    )


def quantise_work(size: Size, n_calibration_pairs: int, max_length: int) -> Work:
    """GPTQ; memory holds the weights twice, before and after."""
    n_tokens = count_tokens(n_calibration_pairs, max_length)
    gptq = size.parameters / 1e9 * GPTQ_MINUTES_PER_BILLION
    return Work(
        _model_gb(size, copies=2),
        minutes=_loading_minutes(size) + gptq,
        tflop=_forward_tflop(size, n_tokens),
        gpus=size.gpus,
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

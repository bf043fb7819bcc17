"""How large models and data are, estimated before either is there.

A base's size follows from its name or shape, the number of pairs from file sizes.
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

from prefdistill.errors import UserError

SIMULATED_FOLDER = "results/simulated/"
# A pair of the LMSYS competition: its train.csv has 184 MB for 57,477 pairs.
BYTES_PER_PAIR = 3_200
TOKENS_PER_PAIR = 800
# Text in parquet, .gz and .zst takes about a third.
COMPRESSION = 3
# Pairs of a source whose size is not known, such as a Hub data set.
UNKNOWN_PAIRS = 60_000


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
    shape = base_shape(base)
    if shape is not None:
        return shape_parameters(shape)
    places = [base.get(key, "") for key in ("repo", "package", "path")]
    for place in [*places, name]:
        last = Path(place).name.lower()
        found = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", last)
        if found:
            return float(found[1]) * {"b": 1e9, "m": 1e6}[found[2]]
    raise UserError(
        f"config: base_models.{name}: its size shows in no name; set "
        f"base_models.{name}.billions, its parameters in billions such as 0.135"
    )


def base_shape(base: dict[str, Any]) -> dict[str, Any] | None:
    """Sizes of a base by the keys of config.json, if they are known before it is there.

    They are for a tiny model, and for a local one whose config.json has them.
    """
    return _tiny_shape(base) if base["source"] == "tiny" else _saved_shape(base)


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
    wanted = (
        *("hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "vocab_size"),
    )
    known = isinstance(shape, dict) and all(
        isinstance(shape.get(key), int) and shape[key] > 0 for key in wanted
    )
    return shape if known else None


def shape_parameters(shape: dict[str, Any]) -> int:
    """Parameters of the linear layers and the embedding, by the keys of config.json."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    head = shape.get("head_dim") or hidden // heads
    both_heads = heads + (shape.get("num_key_value_heads") or heads)
    attention = 2 * hidden * head * both_heads
    layer = attention + 3 * hidden * shape["intermediate_size"]
    return shape["num_hidden_layers"] * layer + shape["vocab_size"] * hidden


@dataclass(frozen=True)
class Pairs:
    """Estimated numbers of pairs.

    Attributes:
        train: On the train side of a fold.
        dev: Of a fold.
        held_out: In select and test.
        post_pretrain: For post-pretraining.
        unlabelled: To predict for the submission.
        pseudo: To learn from without a verdict.
    """

    train: int
    dev: int
    held_out: int
    post_pretrain: int
    unlabelled: int
    pseudo: int = 0

    @property
    def all(self) -> int:
        """All that the data stages read."""
        own = self.train + self.dev + self.held_out
        return own + self.post_pretrain + self.unlabelled + self.pseudo


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
        pseudo=total(data["unlabelled"]),
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
    plain = entry.lower().endswith((".csv", ".jsonl"))
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

"""Estimate a base model's size before it is there, from its name or its shape.

Imported by the Snakefile, so it stays light.
"""

import json
import re
from pathlib import Path
from typing import Any

from prefdistill.errors import UserError
from prefdistill.settings import BaseModelSettings

# Sizes by the keys of a model's config.json.
Shape = dict[str, Any]


def base_parameters(name: str, base: BaseModelSettings) -> float:
    """Estimate the parameters of a base model, before it is fetched.

    Take ``billions`` if set. Else count by the shape of a tiny model or a local
    config.json. Else read the size, such as 8B or 135m, from the name of the
    repository, package or folder, or from the base's name in the configuration.

    Args:
        name: The base's key in ``base_models``.
        base: Its settings.

    Raises:
        UserError: If nothing says the size.
    """
    if base.billions is not None:
        return base.billions * 1e9
    shape = base_shape(base)
    if shape is not None:
        return shape_parameters(shape)
    for place in (base.repo or "", base.package or "", base.path or "", name):
        last = Path(place).name.lower()
        found = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", last)
        if found:
            return float(found[1]) * {"b": 1e9, "m": 1e6}[found[2]]
    raise UserError(
        f"config: base_models.{name}: its size shows in no name; set "
        f"base_models.{name}.billions, its parameters in billions such as 0.135"
    )


def base_shape(base: BaseModelSettings) -> Shape | None:
    """Return a base's sizes by the keys of config.json, if known before any job.

    They are known for a tiny model, and for a local one whose config.json has them.
    """
    return _tiny_shape(base) if base.source == "tiny" else _saved_shape(base.path)


def _tiny_shape(base: BaseModelSettings) -> Shape:
    return {
        "hidden_size": base.hidden_size,
        "intermediate_size": 3 * base.hidden_size,
        "num_hidden_layers": base.n_layers,
        "num_attention_heads": base.n_heads,
        "num_key_value_heads": max(base.n_heads // 2, 1),
        "vocab_size": 1024,
    }


def _saved_shape(path: str | None) -> Shape | None:
    """Read the config.json of a local model, if it names a shape."""
    if path is None:
        return None
    try:
        shape = json.loads(Path(path, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = (
        *("hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "vocab_size"),
    )
    known = isinstance(shape, dict) and all(
        isinstance(shape.get(key), int) and shape[key] > 0 for key in wanted
    )
    return shape if known else None


def shape_parameters(shape: Shape) -> int:
    """Count the parameters of the linear layers and the embedding."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    head = shape.get("head_dim") or hidden // heads
    both_heads = heads + (shape.get("num_key_value_heads") or heads)
    attention = 2 * hidden * head * both_heads
    layer = attention + 3 * hidden * shape["intermediate_size"]
    return shape["num_hidden_layers"] * layer + shape["vocab_size"] * hidden

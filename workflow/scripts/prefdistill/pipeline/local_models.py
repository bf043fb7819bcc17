"""What a base model's shape and a local folder's files say before any job.

Imported by the Snakefile, so it stays light: ``bases`` checks the weights themselves.
"""

import json
from math import gcd
from pathlib import Path
from typing import Any

from prefdistill.errors import UserError
from prefdistill.pipeline.sizes import base_shape

ARCHITECTURES = ("ForCausalLM", "ForSequenceClassification")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
RESULTS = Path("results")
PACK_WIDTH = 32  # GPTQ packs 32-bit words along both sides of a weight


def check_local_model(name: str, path: str, *, is_merged: bool) -> None:
    """Check that a folder holds a model that the pipeline can start from.

    Args:
        name: Of the base model.
        path: Its folder.
        is_merged: Whether adapters will be merged into its weights.

    Raises:
        UserError: One line with the key, its value and what is allowed.
    """
    folder, key = Path(path), f"config: base_models.{name}.path: {path!r}"
    if folder.resolve().is_relative_to(RESULTS.resolve()):
        raise UserError(
            f"{key} lies in results, where this workflow writes; name a model that it "
            "does not make"
        )
    if not folder.is_dir():
        raise UserError(f"{key} is no folder (seen from {Path.cwd()})")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            raise UserError(f"{key} has no {file}; name a folder with a saved model")
    config = _read_object(folder / "config.json", key)
    names = config.get("architectures") or ["none"]
    if not str(names[0]).endswith(ARCHITECTURES):
        raise UserError(
            f"{key}: architecture {names[0]} is not allowed; it must be a causal "
            f"language model or a classifier (a name in {' or '.join(ARCHITECTURES)})"
        )
    if is_merged and "quantization_config" in config:
        raise UserError(
            f"{key} is quantised; the student's adapters are merged into 16- or 32-bit "
            "weights: name those"
        )
    _check_weights(folder, key)


def _read_object(path: Path, key: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f"{key}: {path.name} is not a JSON object; save the model again"
        )
    return found


def _check_weights(folder: Path, key: str) -> None:
    if (folder / WEIGHTS).is_file():
        return
    if not (folder / INDEX).is_file():
        other = sorted(each.name for each in folder.glob("*.bin"))
        other += sorted(each.name for each in folder.glob("*.gguf"))
        found = f" ({other[0]} is not read)" if other else ""
        raise UserError(
            f"{key} has no weights: neither {WEIGHTS} nor {INDEX}{found}; save the "
            "model as safetensors"
        )
    shards = _read_object(folder / INDEX, key).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{key}: {INDEX} has no weight_map; save the model again")
    for shard in sorted({str(each) for each in shards.values()}):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise UserError(
                f"{key}: {INDEX} names {shard!r}, which is no file of the folder; save "
                "the model again"
            )


def check_shapes(config: dict[str, Any]) -> None:
    """Check adapters and quantisation against the shapes of bases that are known.

    Those are tiny models, and local ones whose config.json tells.

    Raises:
        UserError: One line with the key, its value and what is allowed.
    """
    models = {f"teachers.{name}": each for name, each in config["teachers"].items()}
    models["student"] = config["student"]
    shapes = {
        place: base_shape(config["base_models"][model["base"]])
        for place, model in models.items()
    }
    for place, shape in shapes.items():
        lowest = models[place]["lora"]["lowest_layer"]
        if shape and lowest >= shape["num_hidden_layers"]:
            raise UserError(
                f"config: {place}.lora.lowest_layer: {lowest} is not allowed; the "
                f"base has layers 0 to {shape['num_hidden_layers'] - 1}"
            )
    if shapes["student"]:
        _check_groups(shapes["student"], config["quantisation"]["group_size"])


def _check_groups(shape: dict[str, Any], group_size: int) -> None:
    """Check that GPTQ can pack and group every linear layer of the student."""
    heads = shape["num_attention_heads"]
    head = shape.get("head_dim") or shape["hidden_size"] // heads
    sides = {
        "hidden size": shape["hidden_size"],
        "intermediate size": shape["intermediate_size"],
        "attention width": heads * head,
    }
    for what, size in sides.items():
        if size % group_size:
            raise UserError(
                f"config: quantisation.group_size: {group_size} does not divide the "
                f"student's {what} {size}; choose a divisor such as "
                f"{gcd(size, group_size)}"
            )
    sides["key and value width"] = (shape.get("num_key_value_heads") or heads) * head
    for what, size in sides.items():
        if size % PACK_WIDTH:
            raise UserError(
                f"config: student.base: its {what} {size} is not a multiple of "
                f"{PACK_WIDTH}, as GPTQ needs; choose another base"
            )

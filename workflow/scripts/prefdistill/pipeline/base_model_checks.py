"""Check base models before any job: their keys, local files and shapes.

Imported by the Snakefile, so it stays light: the job that links a local model checks
its weights.
"""

import json
from collections.abc import Mapping
from math import gcd
from pathlib import Path
from typing import Any

from prefdistill.errors import UserError
from prefdistill.pipeline.model_sizes import Shape, base_shape
from prefdistill.settings import BaseModelSettings, ModelSettings
from prefdistill.storage.whole_files import read_text

KEYS_OF_SOURCE = {
    "tiny": ("architecture",),
    "package": ("package", "version"),
    "hub": ("repo",),
    "path": ("path",),
}
ARCHITECTURES = ("ForCausalLM", "ForSequenceClassification")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
RESULTS = Path("results")
PACK_WIDTH = 32  # GPTQ packs 32-bit words along both sides of a weight


def check_bases(bases: Mapping[str, BaseModelSettings], merged: str) -> None:
    """Check that each base has the keys of its source, and local ones their files.

    Args:
        bases: The base models by name.
        merged: Name of the base that the student's adapters are merged into.

    Raises:
        UserError: One line with the key, its value and what is allowed.
    """
    owners: dict[Path, str] = {}
    for name, base in bases.items():
        for key in KEYS_OF_SOURCE[base.source]:
            if getattr(base, key) is None:
                raise UserError(
                    f"config: base_models.{name}: source {base.source!r} needs "
                    f"the key {key!r}"
                )
        if base.source == "tiny" and base.hidden_size % (2 * base.n_heads):
            raise UserError(
                f"config: base_models.{name}.hidden_size: {base.hidden_size} must "
                f"be a multiple of twice n_heads ({base.n_heads})"
            )
        if base.path is not None and base.source == "path":
            _check_local_model(name, base.path, is_merged=name == merged)
            owner = owners.setdefault(Path(base.path).resolve(), name)
            if owner != name:
                raise UserError(
                    f"config: base_models.{name}.path: {base.path!r} is the folder "
                    f"of base_models.{owner} too; name one base in both places"
                )


def _check_local_model(name: str, path: str, *, is_merged: bool) -> None:
    """Check that a folder holds a model that the pipeline can start from.

    Args:
        name: The base model's key in ``base_models``.
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
        found = json.loads(read_text(path))
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


def check_shapes(
    models: Mapping[str, ModelSettings],
    bases: Mapping[str, BaseModelSettings],
    group_size: int,
) -> None:
    """Check adapters and quantisation against the shapes of bases that are known.

    Those are tiny models, and local ones whose config.json has a shape.

    Args:
        models: Teachers and the student by key path, such as ``teachers.llama``.
        bases: The base models by name.
        group_size: Weights that share a scale in GPTQ.

    Raises:
        UserError: One line with the key, its value and what is allowed.
    """
    shapes = {place: base_shape(bases[model.base]) for place, model in models.items()}
    for place, shape in shapes.items():
        lowest = models[place].lora.lowest_layer
        if shape and lowest >= shape["num_hidden_layers"]:
            raise UserError(
                f"config: {place}.lora.lowest_layer: {lowest} is not allowed; the "
                f"base has layers 0 to {shape['num_hidden_layers'] - 1}"
            )
    if shapes["student"]:
        _check_groups(shapes["student"], group_size)


def _check_groups(shape: Shape, group_size: int) -> None:
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

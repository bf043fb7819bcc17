"""Read and write LoRA adapters as plain tensors, in PEFT's file format.

No model is loaded. ``models.lora`` adds the same files to a loaded model, through PEFT.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefdistill.errors import DamagedFile
from prefdistill.models.head import Head, take_head
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.tensors import check_finite, read_tensors, write_tensors
from prefdistill.storage.whole_files import reading

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
# Adapter variants whose delta is not (alpha / r) B A on an unchanged base.
UNSUPPORTED = {
    "use_rslora": "rsLoRA (use_rslora)",
    "use_dora": "DoRA (use_dora)",
    "lora_bias": "a bias in lora_B (lora_bias)",
    "rank_pattern": "ranks that differ by layer (rank_pattern)",
    "alpha_pattern": "alphas that differ by layer (alpha_pattern)",
    "layer_replication": "replicated layers (layer_replication)",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out)",
}
# Keys that a plain adapter may set. Any other key that holds a value changes the delta,
# or makes PEFT import the module that it names.
PLAIN = frozenset(
    {
        *("peft_type", "peft_version", "task_type", "inference_mode", "revision"),
        *("base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "bias"),
        *("target_modules", "modules_to_save", "layers_to_transform"),
        *("layers_pattern", "init_lora_weights"),
        *("megatron_core", "qalora_group_size"),  # defaults without an effect
    }
)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter of a sequence classifier, in float32.

    Attributes:
        name: Where it came from, for error messages.
        config: The content of adapter_config.json.
        layers: ``{module: (A, B)}``, float32 ``(r, in)`` and ``(out, r)``. Modules are
            named as in the base model, such as ``model.layers.0.self_attn.q_proj``.
        head: The score head.
        scaling: ``alpha / r``.
    """

    name: str
    config: dict[str, Any]
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]]
    head: Head
    scaling: float

    @property
    def rank(self) -> int:
        """Return the rank r."""
        return self.config["r"]

    def delta(self, module: str) -> torch.Tensor:
        """Return what the adapter adds to a module's weight, ``(out, in)`` float32."""
        a, b = self.layers[module]
        return self.scaling * (b @ a)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read a PEFT adapter's settings, and check that it is plain LoRA.

    Raises:
        UserError: For rsLoRA, DoRA, biases and other variants, or a damaged file.
    """
    path = Path(folder) / ADAPTER_CONFIG
    config = read_json(path, ["peft_type", "r", "lora_alpha"])
    found = [text for key, text in UNSUPPORTED.items() if config.get(key)]
    found += [key for key, value in config.items() if value and key not in PLAIN]
    if config.get("bias", "none") != "none":
        found.append(f"trained biases (bias: {config['bias']})")
    if str(config.get("init_lora_weights", True)).lower() not in (
        "true",
        "false",
        "gaussian",
    ):
        found.append(f"init_lora_weights: {config['init_lora_weights']}")
    if config.get("peft_type") != "LORA" or found:
        what = found[0] if found else f"peft_type {config.get('peft_type')}"
        raise DamagedFile(
            path,
            f"{what} cannot be averaged or merged exactly; it must be a plain LoRA "
            "adapter",
        )
    with reading(path, "an adapter's settings"):
        if not (isinstance(config["r"], int) and config["r"] > 0):
            raise ValueError(f"rank {config['r']!r}")
        float(config["lora_alpha"])
    return config


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT adapter, and check that its delta is plain ``(alpha / r) B A``.

    Raises:
        UserError: For rsLoRA, DoRA, biases and other variants, a missing score head, a
            lone A or B, or a file that is not whole.
    """
    config = read_adapter_config(folder)
    path = folder / ADAPTER_WEIGHTS
    saved = read_tensors(path)
    with reading(path, "a plain LoRA adapter with its score head"):
        return _assemble(str(folder), config, saved)


def _assemble(
    name: str, config: dict[str, Any], saved: dict[str, torch.Tensor]
) -> Adapter:
    """Build an adapter from the tensors in its file.

    Raises:
        ValueError: If the tensors are not those of a plain LoRA adapter.
    """
    tensors = {key: tensor.float() for key, tensor in saved.items()}
    check_finite(tensors)
    head = take_head(tensors, PREFIX)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, part = key.removeprefix(PREFIX).partition(".lora_")
        if part not in ("A.weight", "B.weight") or tensor.ndim != 2:
            raise ValueError(
                f"tensor {key} {tuple(tensor.shape)} is not part of a plain adapter"
            )
        pairs.setdefault(module, {})[part[0]] = tensor
    for module, pair in pairs.items():
        ranks = [pair["A"].shape[0], pair["B"].shape[1]] if len(pair) == 2 else []
        if ranks != [config["r"], config["r"]]:
            raise ValueError(f"{module} lacks lora_A or lora_B of rank {config['r']}")
    layers = {module: (pairs[module]["A"], pairs[module]["B"]) for module in pairs}
    scaling = config["lora_alpha"] / config["r"]
    return Adapter(name, config, dict(sorted(layers.items())), head, scaling)


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write a float32 PEFT adapter that ``PeftModel.from_pretrained`` loads.

    Raises:
        UserError: If a weight is NaN or infinite.
    """
    tensors = {
        PREFIX + name: weight.contiguous()
        for name, weight in adapter.head.tensors.items()
    }
    for module, (a, b) in adapter.layers.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.contiguous()
    write_json(folder / ADAPTER_CONFIG, adapter.config)
    # The weights last: whoever finds them finds the settings too.
    write_tensors(folder / ADAPTER_WEIGHTS, tensors)

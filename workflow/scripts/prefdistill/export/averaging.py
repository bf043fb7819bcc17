"""Averaging of LoRA adapters, exactly.

The mean of models is the mean of their *deltas*, ``sum_k w_k (alpha_k / r_k) B_k A_k``.
Averaging ``lora_A`` and ``lora_B`` on their own, as public code does, gives
``mean(B) mean(A)``, which differs; PEFT's ``add_weighted_adapter`` refuses adapters
that carry a score head. The exact mean is again a LoRA adapter whose rank is the sum
of the ranks, so it works unmerged too.

Only torch and safetensors are needed: no model is loaded. ``peft_adapters`` puts the
same files on a loaded model, through PEFT.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefdistill.errors import DamagedFile, UserError
from prefdistill.storage.tables import read_json, write_json
from prefdistill.storage.tensors import check_finite, read_tensors, write_tensors
from prefdistill.storage.whole_files import reading

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
SCORE = "score.weight"
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
# Keys that a plain adapter may set. Any other key of PEFT's that holds a value makes
# another delta, or has PEFT import what it names.
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
        name: Where it came from, for messages.
        config: The content of adapter_config.json.
        layers: ``{module: (A (r, in), B (out, r))}``, modules as named in the base
            model, such as ``model.layers.0.self_attn.q_proj``.
        score: ``(n_classes, hidden)`` head.
        scaling: ``alpha / r``.
    """

    name: str
    config: dict[str, Any]
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]]
    score: torch.Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.config["r"]

    def delta(self, module: str) -> torch.Tensor:
        """``(out, in)`` float32: what the adapter adds to a module's weight."""
        a, b = self.layers[module]
        return self.scaling * (b @ a)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read a PEFT adapter's settings and check that it is plain LoRA.

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
    """Read a PEFT adapter and check that its delta is plain ``(alpha / r) B A``.

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
    """An adapter of the tensors in its file.

    Raises:
        ValueError: If they are not those of a plain LoRA adapter.
    """
    tensors = {key: tensor.float() for key, tensor in saved.items()}
    check_finite(tensors)
    score = tensors.pop(PREFIX + SCORE, None)
    if score is None or score.ndim != 2:
        raise ValueError(f"no score head ({PREFIX + SCORE})")
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, part = key.removeprefix(PREFIX).partition(".lora_")
        if part not in ("A.weight", "B.weight") or tensor.ndim != 2:
            raise ValueError(f"tensor {key} {tuple(tensor.shape)} is none of its parts")
        pairs.setdefault(module, {})[part[0]] = tensor
    for module, pair in pairs.items():
        ranks = [pair["A"].shape[0], pair["B"].shape[1]] if len(pair) == 2 else []
        if ranks != [config["r"], config["r"]]:
            raise ValueError(f"{module} lacks lora_A or lora_B of rank {config['r']}")
    layers = {module: (pairs[module]["A"], pairs[module]["B"]) for module in pairs}
    scaling = config["lora_alpha"] / config["r"]
    return Adapter(name, config, dict(sorted(layers.items())), score, scaling)


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write a PEFT adapter (float32) that ``PeftModel.from_pretrained`` loads.

    The weights, which readers ask for, appear last.

    Raises:
        UserError: If a weight is NaN or infinite.
    """
    tensors = {PREFIX + SCORE: adapter.score.contiguous()}
    for module, (a, b) in adapter.layers.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.contiguous()
    write_json(folder / ADAPTER_CONFIG, adapter.config)
    write_tensors(folder / ADAPTER_WEIGHTS, tensors)


def _check_alike(adapters: list[Adapter], weights: list[float]) -> None:
    first = adapters[0]
    if len(weights) != len(adapters):
        raise UserError(f"{len(weights)} fold weights for {len(adapters)} adapters")
    if not all(math.isfinite(w) and w >= 0 for w in weights):
        raise UserError(f"fold weights {weights}: each must be finite and at least 0")
    if abs(sum(weights) - 1) > 1e-6:
        raise UserError(f"fold weights {weights}: they sum to {sum(weights)}, not 1")
    for other in adapters[1:]:
        key = "base_model_name_or_path"
        if other.config.get(key) != first.config.get(key):
            raise UserError(
                f"{other.name}: trained on base {other.config.get(key)}, but "
                f"{first.name} on {first.config.get(key)}"
            )
        differing = sorted(set(first.layers) ^ set(other.layers))
        if differing:
            raise UserError(
                f"{other.name} and {first.name} adapt different modules, such as "
                f"{differing[0]}; train all folds with the same lora targets"
            )
        for module, (a, b) in first.layers.items():
            a_other, b_other = other.layers[module]
            if a.shape[1] != a_other.shape[1] or b.shape[0] != b_other.shape[0]:
                raise UserError(f"{other.name}: {module} has another shape of base")
        if other.score.shape != first.score.shape:
            raise UserError(f"{other.name}: score head {tuple(other.score.shape)}")


def _with_rank(config: dict[str, Any], rank: int, alpha: float) -> dict[str, Any]:
    return {**config, "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0}


def delta_mean(adapters: list[Adapter], weights: list[float]) -> Adapter:
    """The exact weighted mean of deltas, as one adapter of concatenated rank.

    ``A = [A_1; A_2; ..]`` and ``B = [w_1 s_1 B_1, w_2 s_2 B_2, ..]`` with ``s_k =
    alpha_k / r_k``; alpha equals the total rank, so that PEFT scales by 1. Ranks and
    alphas may differ between adapters. Score heads are averaged.

    Raises:
        UserError: If weights are not finite, non-negative and summing to 1, or the
            adapters differ in base or targets.
    """
    _check_alike(adapters, weights)
    rank = sum(adapter.rank for adapter in adapters)
    layers = {
        module: (
            torch.cat([adapter.layers[module][0] for adapter in adapters]),
            torch.cat(
                [
                    weight * adapter.scaling * adapter.layers[module][1]
                    for adapter, weight in zip(adapters, weights, strict=True)
                ],
                dim=1,
            ),
        )
        for module in adapters[0].layers
    }
    config = _with_rank(adapters[0].config, rank, rank)
    return Adapter("delta_mean", config, layers, _mean_score(adapters, weights), 1.0)


def factor_mean(adapters: list[Adapter], weights: list[float]) -> Adapter:
    """A and B averaged on their own: BlackPearl's way, kept for comparison.

    Raises:
        UserError: As ``delta_mean``, and if ranks or alphas differ.
    """
    _check_alike(adapters, weights)
    first = adapters[0]
    if {(a.rank, a.scaling) for a in adapters} != {(first.rank, first.scaling)}:
        raise UserError("factor_mean needs one rank and alpha; use delta_mean")
    layers = {
        module: tuple(
            sum(
                weight * adapter.layers[module][part]
                for adapter, weight in zip(adapters, weights, strict=True)
            )
            for part in (0, 1)
        )
        for module in first.layers
    }
    config = _with_rank(first.config, first.rank, first.config["lora_alpha"])
    score = _mean_score(adapters, weights)
    return Adapter("factor_mean", config, layers, score, first.scaling)


def _mean_score(adapters: list[Adapter], weights: list[float]) -> torch.Tensor:
    pairs = zip(adapters, weights, strict=True)
    return sum(weight * adapter.score for adapter, weight in pairs)


def squared_norm(b: torch.Tensor, a: torch.Tensor) -> float:
    """Squared Frobenius norm of ``b @ a`` from the two Gram matrices, in float64.

    ``|BA|^2 = tr(B'B AA')`` costs rank x rank memory rather than out x in.
    """
    a, b = a.double(), b.double()
    return max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0)


def relative_errors(approximate: Adapter, exact: Adapter) -> dict[str, float | str]:
    """Relative Frobenius error of one adapter's deltas against another's.

    Returns:
        ``overall`` over all modules together, ``max_layer`` the largest of a single
        module and ``layer`` its name. Below about 1e-7 it is rounding.
    """
    errors, total, total_exact = {}, 0.0, 0.0
    for module, (a, b) in exact.layers.items():
        a_other, b_other = approximate.layers[module]
        norm = squared_norm(exact.scaling * b, a)
        difference = squared_norm(
            torch.cat([exact.scaling * b, -approximate.scaling * b_other], dim=1),
            torch.cat([a, a_other]),
        )
        errors[module] = math.sqrt(difference / norm) if norm else 0.0
        total, total_exact = total + difference, total_exact + norm
    worst = max(errors, key=errors.__getitem__)
    overall = math.sqrt(total / total_exact) if total_exact else 0.0
    return {"overall": overall, "max_layer": errors[worst], "layer": worst}

"""Average LoRA adapters exactly.

The mean of models is the mean of their *deltas*, ``sum_k w_k (alpha_k / r_k) B_k A_k``.
Averaging ``lora_A`` and ``lora_B`` separately, as public code does, gives
``mean(B) mean(A)``, which differs. The exact mean is again a LoRA adapter, whose rank
is the sum of the ranks. PEFT's ``add_weighted_adapter`` cannot make it: it refuses
adapters with a score head.
"""

import math
from typing import Any

import torch

from prefdistill.errors import UserError
from prefdistill.models.adapter_files import Adapter
from prefdistill.models.head import mean_head


def _check_alike(adapters: list[Adapter], weights: list[float]) -> None:
    """Check the weights, and that all adapters have one base, targets and shapes.

    Raises:
        UserError: If they do not.
    """
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
        if other.head.shapes != first.head.shapes:
            shapes = ", ".join(map(str, other.head.shapes))
            raise UserError(f"{other.name}: score head {shapes}")


def _with_rank(config: dict[str, Any], rank: int, alpha: float) -> dict[str, Any]:
    return {**config, "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0}


def delta_mean(adapters: list[Adapter], weights: list[float]) -> Adapter:
    """Compute the exact weighted mean of deltas, as one adapter of concatenated rank.

    ``A = [A_1; A_2; ..]`` and ``B = [w_1 s_1 B_1, w_2 s_2 B_2, ..]`` with ``s_k =
    alpha_k / r_k``. Alpha equals the total rank, so that PEFT scales by 1. Ranks and
    alphas may differ between adapters. Score heads are averaged.

    Args:
        adapters: The adapters.
        weights: One per adapter; not negative, and their sum is 1.

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
    head = mean_head([adapter.head for adapter in adapters], weights)
    return Adapter("delta_mean", config, layers, head, 1.0)


def factor_mean(adapters: list[Adapter], weights: list[float]) -> Adapter:
    """Average A and B separately, as BlackPearl did; kept for comparison.

    Args:
        adapters: The adapters, of one rank and alpha.
        weights: See ``delta_mean``.

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
    head = mean_head([adapter.head for adapter in adapters], weights)
    return Adapter("factor_mean", config, layers, head, first.scaling)


def squared_norm(b: torch.Tensor, a: torch.Tensor) -> float:
    """Compute the squared Frobenius norm of ``b @ a`` in float64.

    Args:
        b: ``(out, rank)``.
        a: ``(rank, in)``.
    """
    # |BA|^2 = tr(B'B AA') takes rank x rank memory, and not out x in.
    a, b = a.double(), b.double()
    return max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0)


def relative_errors(approximate: Adapter, exact: Adapter) -> dict[str, float | str]:
    """Measure the relative Frobenius error of an adapter's deltas against another's.

    Returns:
        ``overall``, the error over all modules; ``max_layer``, the largest error of one
        module; and ``layer``, that module's name. Errors below about 1e-7 are rounding.
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

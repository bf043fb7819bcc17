"""Check a GPTQ model on disk, with plain transformers and plain arithmetic.

Loaders of quantised models are known to drop the score head, or to misread zero points,
without an error. So a written model is reloaded as a user would do it. Its quantised
layers are compared with the weights in the files, everything else with the 16-bit
model. The gap between the two models' logits is measured.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from scipy.special import log_softmax
from torch.nn.functional import linear

from prefdistill.errors import UserError
from prefdistill.models.gptq_kernels import use_eager_kernels, use_torch_kernels
from prefdistill.models.head import classifier_class

N_CHECKED_ROWS = 2
# Largest relative error of a layer's output. On SmolLM2, correct kernels had at most
# 0.005 in float32 and bf16; zero points that are off by one had 0.08 with 8 bits and 15
# with 4 bits. Logits would show less: through 30 layers, bf16 changes them as much as
# GPTQ-8 does, by a thirtieth of their standard deviation.
KERNEL_TOLERANCE = 0.02
# Keys in which a quantised model's configuration may differ.
UNCOMPARED = {"_name_or_path", "quantization_config", "transformers_version"}


@dataclass(frozen=True)
class LogitGap:
    """The distance of a quantised model's logits from the 16-bit model's.

    Attributes:
        n_rows: Rows compared; each order of a pair is one.
        mean_abs: Mean absolute difference of a logit.
        max_abs: The largest one.
        relative: ``mean_abs`` over the standard deviation of the 16-bit logits.
        mean_kl: Mean KL(16-bit || quantised) of the class probabilities, in nats.
        agreement: Share of rows with the same most probable class.
    """

    n_rows: int
    mean_abs: float
    max_abs: float
    relative: float
    mean_kl: float
    agreement: float


def default_dtype() -> torch.dtype:
    """Return bf16 on a GPU; float32 on a CPU, where 16 bits are ten times slower."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def load_plain(folder: Path) -> torch.nn.Module:
    """Load a classifier with plain transformers; every weight must fit.

    Raises:
        UserError: If a weight is missing or left over.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if getattr(config, "quantization_config", None) is not None:
        use_torch_kernels(config)
    model, info = classifier_class().from_pretrained(
        folder,
        config=config,
        dtype=default_dtype(),
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    wrong = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} weights do not fit, such as {wrong[0]}"
        )
    use_eager_kernels(model)
    return model.eval()


@torch.inference_mode()
def row_logits(model: torch.nn.Module, rows: list[np.ndarray]) -> np.ndarray:
    """Compute the logits of rows one by one.

    Args:
        model: A classifier with the attention of plain transformers.
        rows: Tokens of each row, ``(length,)`` integer.

    Returns:
        ``(n, 3)`` float32.
    """
    device = next(model.parameters()).device
    batches = (torch.from_numpy(row.astype(np.int64))[None].to(device) for row in rows)
    return np.stack([model(batch).logits[0].float().cpu().numpy() for batch in batches])


def logit_gap(reference: np.ndarray, quantised: np.ndarray) -> LogitGap:
    """Compare the logits of two models on the same rows.

    Args:
        reference: ``(n, 3)`` logits of the 16-bit model.
        quantised: ``(n, 3)`` logits of the quantised model.
    """
    difference = np.abs(reference - quantised)
    log_p, log_q = log_softmax(reference, axis=1), log_softmax(quantised, axis=1)
    return LogitGap(
        n_rows=len(reference),
        mean_abs=float(difference.mean()),
        max_abs=float(difference.max()),
        relative=float(difference.mean() / max(reference.std(), 1e-12)),
        mean_kl=float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()),
        agreement=float((reference.argmax(axis=1) == quantised.argmax(axis=1)).mean()),
    )


def dequantise(packed: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
    """Compute the weight that a GPTQ layer stores.

    Args:
        packed: ``qweight`` int32 ``(in * bits / 32, out)``, ``qzeros`` int32
            ``(n_groups, out * bits / 32)``, ``scales`` ``(n_groups, out)`` and
            ``g_idx`` ``(in,)``, the group of each in-feature.
        bits: 4 or 8.

    Returns:
        ``(out, in)`` float32.
    """
    # The low bits of a word come first. Zero points are stored minus 1.
    shifts = torch.arange(0, 32, bits, device=packed["qweight"].device)
    mask = 2**bits - 1
    words = packed["qweight"].unsqueeze(1) >> shifts.view(1, -1, 1)
    values = (words & mask).flatten(0, 1)
    zeros = ((packed["qzeros"].unsqueeze(2) >> shifts & mask) + 1 & mask).flatten(1, 2)
    group = packed["g_idx"].long()
    return (packed["scales"].float()[group] * (values - zeros[group])).T


@torch.inference_mode()
def kernel_errors(
    model: torch.nn.Module, folder: Path, rows: list[np.ndarray], bits: int
) -> dict[str, float]:
    """Compare each GPTQ layer's output with the product of the weights on disk.

    Args:
        model: The model as loaded from the folder, with GPTQ kernels.
        folder: Where the packed weights are.
        rows: Tokens to run, ``(length,)`` each.
        bits: 4 or 8.

    Returns:
        For each layer, the largest relative error of a row: the norm of the difference
        from a float32 product with the dequantised weight, over that product's norm.
        NaN if the error of any row is NaN.
    """
    errors: dict[str, float] = {}
    with ExitStack() as stack:
        archive = stack.enter_context(
            safe_open(folder / "model.safetensors", framework="pt")
        )

        def measure(name: str, module: Any, inputs: tuple, output: Any) -> None:
            packed = {
                part: archive.get_tensor(f"{name}.{part}").to(output.device)
                for part in ("qweight", "qzeros", "scales", "g_idx")
            }
            bias = None if module.bias is None else module.bias.float()
            exact = linear(inputs[0].float(), dequantise(packed, bits), bias)
            error = (output.float() - exact).norm() / exact.norm().clamp(min=1e-12)
            # np.maximum keeps a NaN, which max would drop.
            errors[name] = float(np.maximum(float(error), errors.get(name, 0.0)))

        for key in archive.keys():  # noqa: SIM118
            if key.endswith(".qweight"):
                name = key.removesuffix(".qweight")
                layer = model.get_submodule(name)
                hook = layer.register_forward_hook(partial(measure, name))
                stack.callback(hook.remove)
        row_logits(model, rows)
    return errors


def compare(
    source: Path, target: Path, rows: list[np.ndarray], bits: int
) -> tuple[LogitGap, float]:
    """Reload a quantised model, and compare it with its files and its source.

    Each GPTQ layer is compared with its weight in the files, dequantised by
    ``dequantise``. All other weights and settings are compared with the source's. A
    difference means a broken file or kernel, not rounding.

    Args:
        source: The 16-bit classifier.
        target: The GPTQ one.
        rows: Tokens to compare on, ``(length,)`` each.
        bits: Width of ``target``.

    Returns:
        The gap to the 16-bit model, and the largest relative error of a layer.

    Raises:
        UserError: If the reloaded model differs from the files or from the source.
    """
    quantised = load_plain(target)
    logits = row_logits(quantised, rows)
    errors = kernel_errors(quantised, target, rows[:N_CHECKED_ROWS], bits)
    if not errors:
        raise UserError(f"{target}: no layer of the reloaded model is a GPTQ one")
    worst = list(errors)[int(np.argmax(list(errors.values())))]  # a NaN comes first
    if not errors[worst] <= KERNEL_TOLERANCE:
        raise UserError(
            f"{target}: {worst} of the reloaded model is {errors[worst]:.2g} off its "
            "dequantised weights; check the versions of gptqmodel and transformers"
        )
    plain = load_plain(source)
    changed = [
        name
        for name, weight in plain.state_dict().items()
        if name.removesuffix(".weight") not in errors
        and not torch.equal(weight, quantised.state_dict().get(name, torch.empty(0)))
    ]
    settings = [model.config.to_dict() for model in (plain, quantised)]
    changed += [
        f"{key} in config.json"
        for key in sorted({*settings[0], *settings[1]} - UNCOMPARED)
        if settings[0].get(key) != settings[1].get(key)
    ]
    if changed:
        raise UserError(
            f"{target}: {changed[0]} of the reloaded model is not that of {source}; "
            "check the versions of gptqmodel and transformers"
        )
    return logit_gap(row_logits(plain, rows), logits), errors[worst]

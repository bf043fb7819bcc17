"""Checks of a GPTQ model on disk, by plain transformers and by plain arithmetic.

Quantised loaders are known to drop the score head or to misread zero points without a
word. So a written model is reloaded as a user would, its logits are held against the
weights that the files stand for, and its gap to the 16-bit model is measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from scipy.special import log_softmax

from prefdistill.job import UserError

N_RELOAD_ROWS = 8
# Share of the largest logit by which kernels may differ from plain products.
RELOAD_TOLERANCE = {torch.float32: 0.02, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class LogitGap:
    """How far a quantised model's logits are from the 16-bit model's.

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
    """bf16 on a GPU; float32 on a CPU, whose 16-bit products are ten times slower."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def use_torch_kernels(config: Any) -> None:
    """Have a GPTQ model computed by PyTorch's own products on a GPU, in place.

    GPTQModel would take kernels made for a few tokens, which it compiles for minutes
    first, where there is a compiler. Here a pass holds thousands of tokens, so that
    dequantising each layer for it costs little.

    Args:
        config: The model's transformers configuration.
    """
    if torch.cuda.is_available():
        config.quantization_config["backend"] = "gptq_torch"


def use_eager_kernels(model: torch.nn.Module) -> None:
    """Undo GPTQModel's ``torch.compile`` of dequantisation, in place.

    Compiling takes half a minute before the first 8-bit logits are there, which a few
    thousand rows never earn back.
    """
    for module in model.modules():
        vars(module).pop("dequantize_weight", None)


def load_plain(folder: Path) -> torch.nn.Module:
    """Load a classifier by plain transformers, refusing missing or unexpected weights.

    Raises:
        UserError: If a weight is missing or left over.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if getattr(config, "quantization_config", None) is not None:
        use_torch_kernels(config)
    model, info = AutoModelForSequenceClassification.from_pretrained(
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
    """Logits of rows run one by one: ``(n, 3)`` float32."""
    device = next(model.parameters()).device
    batches = (torch.from_numpy(row.astype(np.int64))[None].to(device) for row in rows)
    return np.stack([model(batch).logits[0].float().cpu().numpy() for batch in batches])


def logit_gap(reference: np.ndarray, quantised: np.ndarray) -> LogitGap:
    """Compare two ``(n, 3)`` arrays of logits."""
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
    """The weight that a GPTQ layer stands for: ``(out, in)`` float32.

    Args:
        packed: ``qweight`` int32 ``(in * bits / 32, out)``, ``qzeros`` int32
            ``(n_groups, out * bits / 32)``, ``scales`` ``(n_groups, out)`` and
            ``g_idx`` ``(in,)``, the group of each in-feature.
        bits: 4 or 8; the low bits of a word come first. Zero points are stored minus 1.
    """
    shifts = torch.arange(0, 32, bits, device=packed["qweight"].device)
    mask = 2**bits - 1
    words = packed["qweight"].unsqueeze(1) >> shifts.view(1, -1, 1)
    values = (words & mask).flatten(0, 1)
    zeros = ((packed["qzeros"].unsqueeze(2) >> shifts & mask) + 1 & mask).flatten(1, 2)
    group = packed["g_idx"].long()
    return (packed["scales"].float()[group] * (values - zeros[group])).T


def _restore_weights(model: torch.nn.Module, folder: Path, bits: int) -> None:
    """Put the weights that a GPTQ folder stands for into a plain model, in place."""
    with safe_open(folder / "model.safetensors", framework="pt") as archive:
        names = [n for n in archive.keys() if n.endswith(".qweight")]  # noqa: SIM118
        for module in (name.removesuffix(".qweight") for name in names):
            weight = model.get_submodule(module).weight
            packed = {
                part: archive.get_tensor(f"{module}.{part}").to(weight.device)
                for part in ("qweight", "qzeros", "scales", "g_idx")
            }
            weight.data.copy_(dequantise(packed, bits))


def compare(
    source: Path, target: Path, rows: list[np.ndarray], bits: int
) -> tuple[LogitGap, float]:
    """Reload a quantised model and compare it with the model that it came from.

    The reload is held against the plain model with weights dequantised from the files
    by our own arithmetic: a difference there is a broken file or kernel, not rounding.

    Args:
        source: The 16-bit classifier.
        target: The GPTQ one.
        rows: Tokens to compare on, ``(length,)`` each.
        bits: Width of ``target``.

    Returns:
        The gap to the 16-bit model, and the largest difference of a logit between
        GPTQ kernels and dequantised weights, over the first rows.

    Raises:
        UserError: If the reloaded model is not what the files stand for.
    """
    quantised = row_logits(load_plain(target), rows)
    plain = load_plain(source)
    gap = logit_gap(row_logits(plain, rows), quantised)
    _restore_weights(plain, target, bits)
    restored = row_logits(plain, rows[:N_RELOAD_ROWS])
    difference = float(np.abs(restored - quantised[:N_RELOAD_ROWS]).max())
    tolerance = RELOAD_TOLERANCE[default_dtype()] * float(np.abs(restored).max())
    if not difference <= tolerance + 1e-4:
        raise UserError(
            f"{target}: the reloaded model's logits are {difference:.3g} off those of "
            "its dequantised weights; check the versions of gptqmodel and transformers"
        )
    return gap, difference

"""Choose how weights are stored and computed with, and tell how they are stored."""

from pathlib import Path

import torch

from prefdistill.errors import UserError, printable
from prefdistill.storage.records import read_json
from prefdistill.storage.whole_files import reading

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def default_device() -> torch.device:
    """Return the process's GPU if there is one, otherwise the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def find_device(name: str | torch.device | None) -> torch.device:
    """Return the device of a name, or the default one without a name.

    Raises:
        UserError: If this machine has no such device; it lists those that it has.
    """
    if name is None:
        return default_device()
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(f"cuda:{number}" for number in range(n_gpus))]
    if str(name) not in (there if n_gpus == 0 else [*there, "cuda"]):
        raise UserError(
            f"device {printable(str(name))!r}: is not here; this machine has "
            f"{', '.join(there)}"
        )
    return torch.device(name)


def resolve_precision(precision: str, device: torch.device) -> tuple[torch.dtype, bool]:
    """Choose the dtype to compute in, and whether to quantise the base to NF4.

    ``auto`` and ``nf4`` compute in bf16 on GPUs that have it, in fp16 on older ones.

    Args:
        precision: fp32, bf16, fp16, nf4, fp8 or auto.
        device: Where the model computes.

    Raises:
        UserError: If the GPU lacks the precision.
    """
    if device.type == "cpu":  # its 16-bit products are about ten times slower
        return torch.float32, precision == "nf4"
    if precision == "fp8" and torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError("precision fp8: this GPU has no fp8; use auto, bf16 or nf4")
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision in ("bf16", "fp8") and not has_bf16:
        raise UserError("precision bf16: this GPU has no bf16; use auto, fp16 or nf4")
    auto = torch.bfloat16 if has_bf16 else torch.float16
    return DTYPES.get(precision, auto), precision == "nf4"


def base_precision(core: torch.nn.Module) -> str:
    """Return how a loaded model's base is stored: nf4, fp8, bf16, fp16 or fp32.

    Args:
        core: The transformers model, without PEFT around it.
    """
    if getattr(core, "is_loaded_in_4bit", False):
        return "nf4"
    if any(hasattr(module, "fp8_weight") for module in core.base_model.modules()):
        return "fp8"
    return next(name for name, dtype in DTYPES.items() if dtype == core.dtype)


def is_gptq(folder: Path) -> bool:
    """Tell whether a model folder holds a GPTQ checkpoint."""
    path = Path(folder) / "config.json"
    config = read_json(path, ["model_type"])
    with reading(path, "settings of a model that is known here"):
        return (config.get("quantization_config") or {}).get("quant_method") == "gptq"

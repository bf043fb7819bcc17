"""Choose the kernels that compute a GPTQ model's layers."""

from typing import Any

import torch


def use_torch_kernels(config: Any) -> None:
    """Choose PyTorch's own matrix products for a GPTQ model on a GPU, in place.

    Args:
        config: The model's transformers configuration.
    """
    # GPTQModel would choose kernels for a few tokens, and compile them for minutes if
    # there is a compiler. A pass here holds thousands of tokens, so dequantising each
    # layer once per pass costs little.
    if torch.cuda.is_available():
        config.quantization_config["backend"] = "gptq_torch"


def use_eager_kernels(model: torch.nn.Module) -> None:
    """Undo GPTQModel's ``torch.compile`` of dequantisation, in place."""
    # Compiling delays the first 8-bit logits by half a minute, which scoring a few
    # thousand rows never saves.
    for module in model.modules():
        vars(module).pop("dequantize_weight", None)

"""Choose the kernels that compute a GPTQ model's layers."""

from typing import Any

import torch


def use_torch_kernels(config: Any) -> None:
    """Choose PyTorch's own products for a GPTQ model on a GPU, in place.

    GPTQModel would choose kernels made for a few tokens and, where there is a compiler,
    compile them for minutes first. Here a pass holds thousands of tokens, so that
    dequantising each layer for it costs little.

    Args:
        config: The model's transformers configuration.
    """
    if torch.cuda.is_available():
        config.quantization_config["backend"] = "gptq_torch"


def use_eager_kernels(model: torch.nn.Module) -> None:
    """Undo GPTQModel's ``torch.compile`` of dequantisation, in place.

    Compiling takes half a minute before the first 8-bit logits are there. A few
    thousand rows never save that much.
    """
    for module in model.modules():
        vars(module).pop("dequantize_weight", None)

"""Copy arrays to a device, and mark a model whose weights no process holds whole."""

import numpy as np
import torch

# Attribute of a transformers model whose weights are spread over a job's processes.
# The engine leaves such a model to transformers, as FSDP gathers weights in the hooks
# of its layers.
SHARDED = "is_sharded_over_processes"


def to_device(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy an array of the host to a device without waiting for the copy."""
    tensor = torch.as_tensor(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

"""Copy arrays to a device, and name the mark of a sharded model."""

import numpy as np
import torch

# Attribute of a transformers model whose weights are sharded over a job's processes.
# transformers computes such a model, and not the engine, as FSDP gathers weights in the
# hooks of transformers' layers.
SHARDED = "is_sharded_over_processes"


def to_device(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy an array from the host to a device, without waiting for the copy.

    Args:
        array: Any shape and dtype.
        device: Where it goes.
    """
    tensor = torch.as_tensor(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

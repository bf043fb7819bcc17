"""Compute a loaded model's logits, and tell how the model is loaded."""

import numpy as np
import torch

from prefdistill.engine.attention import is_packed
from prefdistill.engine.device import SHARDED, to_device
from prefdistill.engine.engine import Engine
from prefdistill.engine.packing import PackedBatch

# The number of scored rows is rounded up to a multiple of this: every other number
# would cost another compilation.
ROWS_STEP = 64


def classify(model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
    """Compute the logits of a packed batch's rows, at the last token of each row.

    Returns:
        ``(n_rows, 3)`` float32, classes (first, second, tie) as shown.
    """
    n_rows = len(batch.last)
    keep = np.pad(batch.last, (0, -n_rows % ROWS_STEP), mode="edge")
    states = engine_of(model).forward(batch, to_device(keep, device_of(model)))
    return core_model(model).score(states[:n_rows].float())


def engine_of(model: torch.nn.Module) -> Engine:
    """Return the engine that computes a model's decoder; the first call makes it.

    The model keeps its engine when adapters are added or removed.
    """
    core = core_model(model)
    if not hasattr(core, "engine"):
        core.engine = Engine(core)
    return core.engine


def core_model(model: torch.nn.Module) -> torch.nn.Module:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device that holds a model's weights."""
    return next(model.parameters()).device


def is_sharded(model: torch.nn.Module) -> bool:
    """Tell whether each process holds only one shard of the model's base."""
    return getattr(core_model(model), SHARDED, False)


def shares_prompts(model: torch.nn.Module) -> bool:
    """Tell whether the two orders of a pair may share the tokens of their prompt."""
    core = core_model(model)
    # A language model's loss reads every token of a row, so its rows must be whole.
    return hasattr(core, "score") and is_packed(core)

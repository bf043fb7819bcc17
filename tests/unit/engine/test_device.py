"""Copies of arrays to devices."""

import numpy as np
import pytest
import torch

from prefdistill.engine.device import to_device


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "bool"])
def test_a_copy_keeps_values_shape_and_dtype(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    tensor = to_device(array, torch.device("cpu"))
    assert tensor.numpy().dtype == array.dtype
    assert (tensor.numpy() == array).all()
    assert to_device(tensor, torch.device("cpu")) is tensor
    moved = to_device(array, torch.device("meta"))
    assert (moved.shape, moved.dtype, moved.is_meta) == ((2, 3), tensor.dtype, True)


@pytest.mark.parametrize(("device", "n_pinned"), [("cuda", 1), ("cpu", 0)])
def test_only_a_copy_to_a_gpu_starts_from_pinned_memory(monkeypatch, device, n_pinned):
    """Otherwise the host would wait for the copy."""
    calls = []

    def pin(tensor):
        calls.append("pin")
        return tensor

    def copy(tensor, target, *, non_blocking):
        calls.append((target, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    to_device(np.zeros(3), torch.device(device))
    assert calls == [*["pin"] * n_pinned, (torch.device(device), True)]

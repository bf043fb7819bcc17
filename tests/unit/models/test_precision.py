"""The precision that a device computes in."""

import pytest
import torch

from prefdistill.errors import UserError
from prefdistill.models.precision import find_device, resolve_precision


def test_the_cpu_computes_in_float32():
    for precision in ("auto", "bf16", "fp16", "fp32"):
        dtype, nf4 = resolve_precision(precision, torch.device("cpu"))
        assert dtype == torch.float32
        assert not nf4
    assert resolve_precision("nf4", torch.device("cpu")) == (torch.float32, True)


@pytest.mark.parametrize("name", ["gpu", "0", "", "mps", "meta", "cuda:99", "cuda:-1"])
def test_a_device_that_is_not_here_is_one_line_with_those_that_are(name):
    with pytest.raises(
        UserError, match=r"is not here; this machine has cpu"
    ) as refused:
        find_device(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("n_gpus", [0, 2])
def test_devices_are_found(n_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    assert find_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        if n_gpus:
            assert find_device(name) == torch.device(name)
        else:
            with pytest.raises(UserError, match=r"this machine has cpu$"):
                find_device(name)

"""The precision that a device computes in."""

import torch

from prefdistill.models.precision import resolve_precision


def test_the_cpu_computes_in_float32():
    for precision in ("auto", "bf16", "fp16", "fp32"):
        dtype, nf4 = resolve_precision(precision, torch.device("cpu"))
        assert dtype == torch.float32
        assert not nf4
    assert resolve_precision("nf4", torch.device("cpu")) == (torch.float32, True)

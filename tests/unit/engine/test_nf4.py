"""NF4 weights that the engine can and cannot read."""

import pytest
import torch

from prefdistill.engine import frozen


def test_nf4_of_another_block_size_is_not_known():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for blocks, kind in ((64, "nf4"), (128, None)):
        layer = bitsandbytes.nn.Linear4bit(128, 64, bias=False, quant_type="nf4")
        layer.weight = bitsandbytes.nn.Params4bit(
            torch.randn(64, 128), requires_grad=False, quant_type="nf4",
            blocksize=blocks, compress_statistics=True,
        ).to("cpu")  # fmt: skip
        assert frozen.kind_of(layer) == kind

"""The kernels that are chosen for GPTQ models."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prefdistill.models.gptq_kernels import use_eager_kernels, use_torch_kernels


@pytest.mark.parametrize(
    ("has_gpu", "chosen"), [(True, {"backend": "gptq_torch"}), (False, {})]
)
def test_a_gpu_computes_with_torchs_own_products(monkeypatch, has_gpu, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    given = {"bits": 4, "quant_method": "gptq"}
    config = SimpleNamespace(quantization_config=dict(given))
    use_torch_kernels(config)
    assert config.quantization_config == given | chosen


class Quantised(nn.Module):
    """A layer whose class says how to dequantise, as GPTQModel's do."""

    def dequantize_weight(self):
        return "eager"


def test_a_compiled_dequantisation_gives_way_to_the_own_of_its_class():
    model = nn.Sequential(Quantised(), nn.Sequential(Quantised(), nn.Linear(2, 2)))
    compiled, untouched = model[0], model[1][0]
    compiled.dequantize_weight = lambda: "compiled"
    weight = model[1][1].weight
    assert compiled.dequantize_weight() == "compiled"
    use_eager_kernels(model)
    assert compiled.dequantize_weight() == untouched.dequantize_weight() == "eager"
    assert model[1][1].weight is weight

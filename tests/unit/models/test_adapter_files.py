"""Adapters that cannot be averaged or merged exactly."""

import pytest
from transformers import AutoModelForCausalLM

from prefdistill.errors import UserError
from prefdistill.models.adapter_files import read_adapter
from prefdistill.models.loading import (
    load_classifier,
)
from prefdistill.models.lora import load_adapter


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"use_rslora": True}, "rsLoRA (use_rslora)"),
        ({"use_dora": True}, "DoRA (use_dora)"),
        ({"lora_bias": True}, "a bias in lora_B (lora_bias)"),
        ({"rank_pattern": {"q_proj": 2}}, "ranks that differ by layer (rank_pattern)"),
        ({"bias": "lora_only"}, "trained biases (bias: lora_only)"),
    ],
)
def test_other_adapters_of_peft_are_refused_wherever_they_are_read(
    options, what, tiny_model_folder, tmp_path
):
    """Their mean is not that of A and B, nor of (alpha / r) B A."""
    from peft import LoraConfig, get_peft_model

    kind = {"task_type": "CAUSAL_LM"}
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder("llama"))
    config = LoraConfig(target_modules=["q_proj"], r=4, lora_alpha=8, **kind | options)
    get_peft_model(model, config).save_pretrained(tmp_path)
    base = load_classifier(tiny_model_folder("llama"), "fp32")
    for load in (
        read_adapter,
        lambda folder: load_adapter(base, folder, trainable=False),
    ):
        with pytest.raises(UserError) as caught:
            load(tmp_path)
        assert str(caught.value) == (
            f"{tmp_path / 'adapter_config.json'}: {what} cannot be averaged or merged "
            "exactly; it must be a plain LoRA adapter; copy or fetch it again"
        )

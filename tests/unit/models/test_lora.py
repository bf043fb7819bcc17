"""Adapters through PEFT: added, saved, loaded, merged, and refused."""

import json

import pytest
import torch
from model_samples import BATCH, LORA, scores
from safetensors.torch import load_file, save_file

from prefdistill.errors import UserError
from prefdistill.models.head import seeded_head
from prefdistill.models.loading import (
    load_classifier,
    load_language_model,
    load_merged,
)
from prefdistill.models.lora import (
    adapter_tensors,
    add_adapter,
    load_adapter,
    save_adapter,
)
from prefdistill.settings import LoraSettings, read


@pytest.fixture
def adapted(tiny_model_folder):
    """A Gemma-2 judge with an adapter whose B is not zero."""
    model = load_classifier(tiny_model_folder("gemma2"), "fp32", head_seed=5)
    model = add_adapter(model, read(LoraSettings, LORA), seed=2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model


def test_only_the_adapter_and_the_head_train(adapted):
    names = [n for n, w in adapted.named_parameters() if w.requires_grad]
    assert len(names) == 2 * 2 * 2 + 1
    assert all("lora_" in name or "score.modules_to_save" in name for name in names)


def test_lowest_layer_and_targets(tiny_model_folder):
    model = load_classifier(tiny_model_folder("llama"), "fp32")
    model = add_adapter(model, read(LoraSettings, LORA | {"lowest_layer": 1}), seed=0)
    names = [name for name in adapter_tensors(model) if "lora_" in name]
    assert len(names) == 4
    assert all("layers.1." in name for name in names)
    bare = load_classifier(tiny_model_folder("llama"), "fp32")
    with pytest.raises(UserError, match=r"lora\.lowest_layer: 2"):
        add_adapter(bare, read(LoraSettings, LORA | {"lowest_layer": 2}), seed=0)


def test_the_adapter_is_seeded_and_leaves_the_generator_alone(tiny_model_folder):
    def fresh(seed):
        model = load_classifier(tiny_model_folder("llama"), "fp32")
        return adapter_tensors(add_adapter(model, read(LoraSettings, LORA), seed=seed))

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, same, other = fresh(1), fresh(1), fresh(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    model = load_classifier(tiny_model_folder("llama"), "fp32")
    torch.random.set_rng_state(before)
    add_adapter(model, read(LoraSettings, LORA), seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_adapter_survives_saving(adapted, tiny_model_folder, tmp_path):
    save_adapter(adapted, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert config["lora_alpha"] == 8
    assert config["modules_to_save"] == ["score"]
    assert config["layers_to_transform"] == [0, 1]
    fresh = load_classifier(tiny_model_folder("gemma2"), "fp32", head_seed=99)
    loaded = load_adapter(fresh, tmp_path, trainable=True)
    assert torch.equal(scores(loaded), scores(adapted))
    assert sum(w.requires_grad for w in loaded.parameters()) == 9
    frozen = load_classifier(tiny_model_folder("gemma2"), "fp32")
    frozen = load_adapter(frozen, tmp_path, trainable=False)
    assert not any(w.requires_grad for w in frozen.parameters())


def test_plain_peft_reads_the_adapter(adapted, tiny_model_folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    save_adapter(adapted, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(
        tiny_model_folder("gemma2"), num_labels=3, attn_implementation="eager"
    )
    plain = PeftModel.from_pretrained(plain, tmp_path).eval()
    with torch.no_grad():
        logits = plain(input_ids=torch.from_numpy(BATCH.input_ids[:, :16])).logits
    torch.testing.assert_close(logits[0], scores(adapted)[0], atol=1e-5, rtol=1e-5)


def test_an_adapter_of_another_model_is_refused(adapted, tiny_model_folder, tmp_path):
    save_adapter(adapted, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors.pop(min(tensors))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    model = load_classifier(tiny_model_folder("gemma2"), "fp32")
    with pytest.raises(UserError, match="does not fit this base model"):
        load_adapter(model, tmp_path, trainable=False)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_adapter(model, tmp_path, trainable=False)


def test_merged_weights_score_the_same(adapted, tiny_model_folder, tmp_path):
    save_adapter(adapted, tmp_path)
    merged = load_merged(tiny_model_folder("gemma2"), tmp_path, "nf4")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(scores(merged), scores(adapted), atol=1e-5, rtol=1e-4)


def test_a_language_model_adapter_fits_the_classifier(tiny_model_folder, tmp_path):
    model = load_language_model(tiny_model_folder("gemma2"), "fp32")
    model = add_adapter(model, read(LoraSettings, LORA), seed=2)
    assert not any("score" in name for name in adapter_tensors(model))
    save_adapter(model, tmp_path, head=seeded_head(32, 5))
    judge = load_classifier(tiny_model_folder("gemma2"), "fp32")
    judge = load_adapter(judge, tmp_path, trainable=True)
    fresh = load_classifier(tiny_model_folder("gemma2"), "fp32", head_seed=5)
    fresh = add_adapter(fresh, read(LoraSettings, LORA), seed=2)
    assert torch.equal(scores(judge), scores(fresh))
    one, two = adapter_tensors(judge), adapter_tensors(fresh)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_adapter_of_another_shape_of_base_is_refused(tiny_model_folder, tmp_path):
    lora = LoraSettings(r=2, alpha=4, dropout=0.0, targets=("o_proj",), lowest_layer=0)
    model = load_classifier(tiny_model_folder("llama"), "fp32")
    adapted = add_adapter(model, lora, seed=0)
    save_adapter(adapted, tmp_path)
    other = load_classifier(tiny_model_folder("gemma2"), "fp32")
    with pytest.raises(UserError, match="its shapes are not those of this base model"):
        load_adapter(other, tmp_path, trainable=False)

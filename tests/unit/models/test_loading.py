import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prefdistill.engine.packing import collate
from prefdistill.errors import UserError
from prefdistill.models.forward import classify
from prefdistill.models.head import seeded_head
from prefdistill.models.loading import load_classifier, load_language_model
from prefdistill.models.lora import (
    adapter_tensors,
    add_adapter,
    load_adapter,
    load_merged,
    save_adapter,
)
from prefdistill.models.manifests import base_folder
from prefdistill.models.memory import count_parameters, estimate_memory
from prefdistill.models.precision import is_gptq, resolve_precision
from prefdistill.models.quick_imports import unused_packages
from prefdistill.settings import LoraSettings, read

LORA = {
    "r": 4,
    "alpha": 8,
    "dropout": 0.1,
    "targets": ["q_proj", "down_proj"],
    "lowest_layer": 0,
}
BATCH = collate([np.arange(4, 20), np.arange(30, 33)])


def scores(model):
    with torch.no_grad():
        return classify(model.eval(), BATCH)


@pytest.fixture
def adapted(tiny_model_folder):
    """A Gemma-2 judge with an adapter whose B is not zero."""
    model = load_classifier(tiny_model_folder("gemma2"), "fp32", head_seed=5)
    model = add_adapter(model, read(LoraSettings, LORA), seed=2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model


def test_base_folder(tiny_model_folder, tmp_path):
    folder = tiny_model_folder("llama")
    assert base_folder(folder / "manifest.json") == folder
    manifest = json.loads((folder / "manifest.json").read_text())
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest | {"path": str(folder)}))
    assert base_folder(path) == folder
    assert base_folder(tmp_path / "model.safetensors") == tmp_path


def test_the_head_is_seeded_and_the_rest_frozen(tiny_model_folder):
    folder = tiny_model_folder("llama")
    model = load_classifier(folder, "fp32", head_seed=5)
    assert torch.equal(model.score.weight, seeded_head(32, 5))
    assert not torch.equal(model.score.weight, seeded_head(32, 6))
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.config.id2label == {0: "first", 1: "second", 2: "tie"}


def test_a_saved_head_is_kept(tiny_model_folder, tmp_path):
    model = load_classifier(tiny_model_folder("qwen2"), "fp32", head_seed=5)
    model.save_pretrained(tmp_path)
    again = load_classifier(tmp_path, "fp32", head_seed=6)
    assert torch.equal(scores(model), scores(again))


def test_missing_weights_are_an_error(tiny_model_folder, tmp_path):
    folder = tiny_model_folder("llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"1 weights are missing, such as model\.lay"):
        load_classifier(tmp_path, "fp32")


def test_nf4_quantises_all_but_the_head(tiny_model_folder):
    model = load_classifier(tiny_model_folder("llama"), "nf4")
    kinds = {n: type(m).__name__ for n, m in model.named_modules() if "proj" in n}
    assert set(kinds.values()) == {"Linear4bit"}
    assert model.score.weight.dtype == torch.float32


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


def test_the_cpu_computes_in_float32():
    for precision in ("auto", "bf16", "fp16", "fp32"):
        dtype, nf4 = resolve_precision(precision, torch.device("cpu"))
        assert dtype == torch.float32
        assert not nf4
    assert resolve_precision("nf4", torch.device("cpu")) == (torch.float32, True)


def test_what_a_job_may_hide(tiny_model_folder, tmp_path):
    folder = tiny_model_folder("llama")
    assert not is_gptq(folder)
    assert "bitsandbytes" in unused_packages("fp32", folder)
    assert "bitsandbytes" not in unused_packages("nf4")
    config = {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_gptq(tmp_path)
    assert "gptqmodel" not in unused_packages("auto", tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_parameter_counts(tiny_model_folder, precision):
    model = load_classifier(tiny_model_folder("llama"), precision)
    model = add_adapter(model, read(LoraSettings, LORA), seed=0)
    counts = count_parameters(model)
    assert counts == {
        "embedding": 400 * 32,
        "linear": 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48),
        "other": 5 * 32,
        "head": 3 * 32,
        "lora": 2 * 4 * (32 + 32 + 48 + 32),
    }


MEASURED = [  # on an H100 or H200; r 64 on all linear layers
    # model, base, tokens, recompute, dropout, has AdamW's moments, GiB
    ("gemma2", "bf16", 8192, "none", 0.0, True, 70.0),
    ("gemma2", "fp8", 8192, "none", 0.0, True, 65.5),
    ("gemma2", "nf4", 8192, "none", 0.0, True, 54.0),
    ("llama", "bf16", 8192, "none", 0.0, True, 50.9),
    ("llama", "fp8", 8192, "none", 0.0, True, 47.0),
    ("llama", "nf4", 8192, "none", 0.0, True, 37.3),
    ("gemma2", "bf16", 6144, "none", 0.05, True, 73.6),
    ("gemma2", "fp8", 6144, "none", 0.05, True, 70.4),
    ("gemma2", "nf4", 6144, "none", 0.05, True, 58.6),
    ("llama", "bf16", 8192, "none", 0.05, True, 66.9),
    ("gemma2", "bf16", 16384, "full", 0.0, False, 27.1),
    ("smollm2", "bf16", 8192, "none", 0.05, True, 6.8),
    ("smollm2", "bf16", 29568, "none", 0.05, True, 23.4),
]
SIZES = {
    "gemma2": {"embedding": 917e6, "linear": 8.32e9, "other": 6e5, "head": 1e4},
    "llama": {"embedding": 525e6, "linear": 6.98e9, "other": 3e5, "head": 1e4},
    "smollm2": {"embedding": 28e6, "linear": 106e6, "other": 4e4, "head": 2e3},
}
TRAINED = {"gemma2": 216e6, "llama": 168e6, "smollm2": 19.5e6}


def real_config(name):
    from transformers import Gemma2Config, LlamaConfig

    if name == "smollm2":
        return LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
        )
    if name == "llama":
        return LlamaConfig(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
        )
    return Gemma2Config(
        hidden_size=3584,
        intermediate_size=14336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
    )


@pytest.mark.parametrize(
    ("name", "precision", "tokens", "how", "dropout", "has_moments", "gib"), MEASURED
)
def test_the_memory_estimate_is_within_a_tenth_of_measured_peaks(
    name, precision, tokens, how, dropout, has_moments, gib
):
    counts = SIZES[name] | {"lora": TRAINED[name]}
    estimate = estimate_memory(
        real_config(name), counts, precision, tokens, recompute=how, dropout=dropout
    )
    if not has_moments:
        estimate -= 8 * counts["lora"] / 2**30
    assert estimate == pytest.approx(gib, rel=0.1)


def test_the_memory_estimate_falls_with_recomputation_and_nf4():
    counts = SIZES["gemma2"] | {"lora": 216e6}
    by_how = [
        estimate_memory(real_config("gemma2"), counts, "bf16", 8192, recompute=how)
        for how in ("none", "selective", "full")
    ]
    assert by_how == sorted(by_how, reverse=True)
    less = estimate_memory(real_config("gemma2"), counts, "nf4", 8192, recompute="full")
    assert less < by_how[2] - 10


def test_a_base_is_placed_before_any_model_is_loaded(tiny_model_folder, monkeypatch):
    """A GPU job asks first of all, when no attention has been made known yet."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from prefdistill.models import memory

    folder = tiny_model_folder("gemma2")
    known = ALL_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.delitem(known, "packed", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "available_gib", lambda: 80.0)
    assert memory.place(folder, "auto", 2048, lora_rank=8) == ("auto", False)


@pytest.mark.parametrize(
    ("gib", "chosen"),
    [
        (200, ("none", 16384)),
        (70, ("none", 8192)),
        (45, ("selective", 8192)),
        (30, ("full", 16384)),
        (27, ("full", 8192)),
    ],
)
def test_training_is_fitted_to_the_memory(gib, chosen, monkeypatch):
    from prefdistill.models import memory

    counts = SIZES["llama"] | {"lora": 168e6}
    core = SimpleNamespace(config=real_config("llama"))
    cuda = torch.device("cuda")
    monkeypatch.setattr(memory, "count_parameters", lambda model: counts)
    monkeypatch.setattr(memory, "core_model", lambda model: core)
    monkeypatch.setattr(memory, "base_precision", lambda core: "bf16")
    monkeypatch.setattr(memory, "device_of", lambda model: cuda)
    monkeypatch.setattr(memory, "is_sharded", lambda model: False)
    monkeypatch.setattr(memory, "available_gib", lambda: gib)
    settings = SimpleNamespace(recompute="auto", token_budget=16384)
    model = torch.nn.Linear(1, 1)
    assert memory.fit_training(model, settings, 2048) == chosen
    fixed = SimpleNamespace(recompute="full", token_budget=16384)
    assert memory.fit_training(model, fixed, 2048)[0] == "full"


@pytest.mark.parametrize(
    ("precision", "gib", "expected"),
    [
        ("auto", 80, ("auto", False)),
        ("auto", 1e-5, ("nf4", False)),
        ("bf16", 1e-5, ("bf16", False)),
    ],
)
def test_auto_becomes_nf4_where_16_bit_would_not_fit(
    precision, gib, expected, tiny_model_folder, monkeypatch
):
    from prefdistill.models import memory

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "available_gib", lambda: gib)
    assert memory.place(tiny_model_folder("llama"), precision, 256, 4) == expected

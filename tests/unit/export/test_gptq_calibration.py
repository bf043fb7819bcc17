"""Packed calibration against one row at a time, on the three real architectures."""

import shutil

import numpy as np
import pytest
import torch
import transformers

from prefdistill.export import gptq_calibration
from prefdistill.export.gptq import quantise_classifier
from prefdistill.export.gptq_calibration import packed_passes
from prefdistill.export.gptq_check import load_plain
from prefdistill.export.merging import write_classifier
from prefdistill.models.head import Head
from prefdistill.models.manifests import write_manifest
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.tensors import read_tensors

SHAPE = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
CONFIGS = {
    "llama": ("LlamaConfig", {}),
    "qwen2": (
        "Qwen2Config",  # a window in the upper layer only
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "gemma2": (
        "Gemma2Config",  # a window in the lower layer only; the cap within the scores
        {"head_dim": 16, "sliding_window": 7, "attn_logit_softcapping": 5.0},
    ),
}
OPTIONS = {"group_size": 32, "desc_act": False, "damp_percent": 0.05, "seed": 0}
LENGTHS = (12, 41, 17, 60, 29, 18, 60, 33, 52, 21, 12, 44)


def tokens(length):
    return np.random.default_rng(length).integers(3, 400, length).astype(np.int32)


ROWS = [tokens(length) for length in LENGTHS]


@pytest.fixture(scope="module", autouse=True)
def few_workers():
    """What ``quantise_classifier`` sets, before GPTQModel is first imported."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GPTQMODEL_DISABLE_PACK_EXT", "1")
        environment.setenv("GPTQMODEL_CPU_WORKERS", "2")
        yield


@pytest.fixture(scope="module", params=CONFIGS)
def classifier(request, tmp_path_factory, tiny_tokenizer):
    """A random classifier whose layers are wide enough to be packed into words."""
    name, others = CONFIGS[request.param]
    base, folder = (tmp_path_factory.mktemp(request.param) for _ in range(2))
    config = getattr(transformers, name)(**SHAPE, **others)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    write_manifest(base)
    head = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) / 8
    write_classifier(base, folder, Head({"score.weight": head}))
    return folder


def plain_hessians(folder, rows):
    """2 / n times the sum of x x' over all n tokens, by plain transformers."""
    model = load_plain(folder)
    sums = {}

    def add(name):
        def hook(_module, inputs, _output):
            tokens = inputs[0][0].double()
            sums[name] = sums.get(name, 0) + tokens.T @ tokens

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.register_forward_hook(add(name))
    with torch.inference_mode():
        for row in rows:
            model(torch.from_numpy(row.astype(np.int64))[None])
    return {name: 2 / sum(map(len, rows)) * total for name, total in sums.items()}


def test_hessians_are_those_of_rows_one_by_one(classifier, tmp_path, monkeypatch):
    """Dummy rows in the attention, as a GPU has them, count for nothing.

    Layers keep their weights, or later Hessians would be of rounded layers.
    """
    from gptqmodel.quantization import GPTQ

    quantise, hessians = GPTQ.quantize, {}

    def record(self, *arguments, **settings):
        weight = self.module.weight.detach().clone()
        hessians[self._named_module.full_name] = self.finalize_hessian().double()
        _, *rest = quantise(self, *arguments, **settings)
        return weight, *rest

    monkeypatch.setattr(GPTQ, "quantize", record)
    monkeypatch.setattr(gptq_calibration, "shape_step", lambda _budget, _device: 96)
    rows = [*ROWS, tokens(3)]  # a short row counts too
    quantise_classifier(classifier, tmp_path, rows, bits=8, token_budget=128, **OPTIONS)
    expected = plain_hessians(classifier, rows)
    assert len(expected) == 14
    assert hessians.keys() == expected.keys()
    for name, hessian in expected.items():
        error = (hessians[name] - hessian).norm() / hessian.norm()
        assert error < 1e-5, name


def one_row_at_a_time(folder, target, bits, monkeypatch):
    """GPTQModel's own loop, with the attention that transformers takes by itself."""
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.models.auto import MODEL_MAP

    definition = MODEL_MAP[read_json(folder / "config.json")["model_type"]]
    loader = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(definition, "loader", loader)
    options = {key: value for key, value in OPTIONS.items() if key != "seed"}
    config = QuantizeConfig(bits=bits, **options, offload_to_disk=False)
    model = GPTQModel.load(str(folder), config, dtype=torch.float32)
    examples = [
        {"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ROWS
    ]
    model.quantize(examples, batch_size=1)
    model.save(str(target), max_shard_size=None)
    return read_tensors(target / "model.safetensors")


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_those_of_one_row_at_a_time(classifier, tmp_path, bits, monkeypatch):
    """Without windows, as GPTQModel's loop hands the first layer's mask to all."""
    source = tmp_path / "source"
    shutil.copytree(classifier, source)
    config = read_json(source / "config.json")
    if config.get("sliding_window"):
        write_json(source / "config.json", {**config, "sliding_window": 64})
    quantise_classifier(
        source, tmp_path / "packed", ROWS, bits=bits, token_budget=256, **OPTIONS
    )
    packed = read_tensors(tmp_path / "packed/model.safetensors")
    expected = one_row_at_a_time(source, tmp_path / "rows", bits, monkeypatch)
    assert packed.keys() == expected.keys()
    n_codes = n_different = 0
    for name in (name for name in packed if name.endswith("qweight")):
        # Bytes: two codes each at 4 bits.
        codes, others = (x[name].view(torch.uint8) for x in (packed, expected))
        n_codes += codes.numel()
        n_different += int((codes != others).sum())
    assert n_codes == 2 * (3 * 64 * 128 + 2 * 64 * 64 + 2 * 64 * 32) * bits // 8
    # None was seen; a tie of rounding would move what is rounded after it.
    assert n_different <= 0.001 * n_codes


def test_passes_hold_every_row_once_and_nothing_else():
    passes = packed_passes(ROWS, 128)
    assert len(passes) == 4
    found = []
    for each in passes:
        assert each["input_ids"].shape == each["position_ids"].shape
        assert each["input_ids"].shape == (1, each["packed"].sum())
        assert each["packed"].sum() <= 128
        parts = each["packed"].tolist()
        found += [part.tolist() for part in each["input_ids"][0].split(parts)]
        for part in each["position_ids"][0].split(parts):
            assert part.tolist() == list(range(len(part)))
    assert sorted(found) == sorted(row.tolist() for row in ROWS)

"""Merged models, scored by plain transformers."""

import json

import numpy as np
import pytest
import torch
import transformers
from odd_models import ROWS, TEXT, logits_of, pairs
from safetensors import safe_open

from prefdistill.data.prompts import encode_pairs
from prefdistill.errors import UserError
from prefdistill.export.merging import classifier_config, write_classifier
from prefdistill.models.adapter_files import read_adapter
from prefdistill.models.head import Head
from prefdistill.models.loading import (
    load_tokenizer,
)
from prefdistill.settings import TextSettings, read
from prefdistill.storage.logits import VIEWS
from prefdistill.storage.records import read_json


def test_a_merged_model_without_a_padding_token_is_right_row_by_row(bare, tmp_path):
    """Plain transformers refuses it a padded batch, rather than score a wrong token."""
    _, folder = bare
    head = Head({"score.weight": torch.ones(3, 32)})
    assert classifier_config(json.loads((folder / "config.json").read_text()), "x")[
        "pad_token_id"
    ] in (None, 0)
    write_classifier(folder, tmp_path / "merged", head, dtype="bfloat16")
    ours = logits_of(tmp_path / "merged")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    )
    encoded = encode_pairs(pairs(), load_tokenizer(folder), read(TextSettings, TEXT))
    for row in range(len(ROWS)):
        for place, view in enumerate(VIEWS):
            tokens = torch.from_numpy(encoded.tokens(row, view).astype(np.int64))[None]
            with torch.no_grad():
                expected = plain(tokens).logits[0].numpy()
            assert ours[row, place] == pytest.approx(expected, abs=1e-3)


def test_a_merged_file_is_16_bit_with_a_float32_head_and_no_lm_head(
    pair, tiny_model_folder, tmp_path
):
    adapter = read_adapter(pair[0])
    write_classifier(tiny_model_folder("llama"), tmp_path, adapter.head, adapter)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as archive:
        dtypes = {n: archive.get_slice(n).get_dtype() for n in archive.keys()}  # noqa: SIM118
        score = archive.get_tensor("score.weight")
    torch.testing.assert_close(score, adapter.head.tensors["score.weight"])
    assert dtypes.pop("score.weight") == "F32"
    assert set(dtypes.values()) == {"BF16"}
    assert not any(name.startswith("lm_head") for name in dtypes)
    config = read_json(tmp_path / "config.json")
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "first", "1": "second", "2": "tie"}


def test_sharded_and_single_bases_merge_alike(pair, tiny_model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    single = tiny_model_folder("llama")
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(single).save_pretrained(
        sharded, max_shard_size="20KB"
    )
    assert (sharded / "model.safetensors.index.json").exists()
    adapter = read_adapter(pair[0])
    for source, name in ((single, "a"), (sharded, "b")):
        write_classifier(source, tmp_path / name, adapter.head, adapter)
    one, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")
    )
    assert one == other


def test_an_adapter_of_another_base_is_refused(pair, tiny_model_folder, tmp_path):
    adapter = read_adapter(pair[0])
    a, b = adapter.layers.pop("model.layers.0.mlp.up_proj")
    adapter.layers["model.layers.7.mlp.up_proj"] = (a, b)
    with pytest.raises(UserError, match="no such module"):
        write_classifier(tiny_model_folder("llama"), tmp_path, adapter.head, adapter)


def test_overflow_in_float16_is_named(pair, tiny_model_folder, tmp_path):
    adapter = read_adapter(pair[0])
    a, _ = adapter.layers["model.layers.0.mlp.up_proj"]
    a *= 1e9
    with pytest.raises(UserError, match=r"up_proj.weight: not finite"):
        write_classifier(
            tiny_model_folder("llama"), tmp_path, adapter.head, adapter, "float16"
        )
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_quantised_base_is_refused():
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": {}}
    with pytest.raises(UserError, match="16- or 32-bit"):
        classifier_config(config, "bfloat16")


def test_padding_falls_back_to_the_end_token():
    config = {"architectures": ["LlamaForCausalLM"], "eos_token_id": [7, 8]}
    assert classifier_config(config, "bfloat16")["pad_token_id"] == 7

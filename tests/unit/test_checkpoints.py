import logging

import pytest
import torch

from prefdistill.checkpoints import Checkpoints, identity_of


@pytest.fixture
def saved(tmp_path):
    """Three generations saved, of which two are kept."""
    checkpoints = Checkpoints(tmp_path / "job", "abc")
    for step in (5, 10, 15):
        checkpoints.save(step, {"w": torch.full((3,), float(step))}, {"n": step})
    return checkpoints


def test_two_generations_are_kept_and_the_newest_is_loaded(saved):
    names = sorted(path.name for path in saved.folder.iterdir())
    assert names == [
        f"step-{step:09d}.{suffix}"
        for step in (10, 15)
        for suffix in ("json", "safetensors")
    ]
    step, tensors, info = saved.load()
    assert (step, info) == (15, {"n": 15})
    assert torch.equal(tensors["w"], torch.full((3,), 15.0))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-4])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.unlink()])
def test_a_broken_newest_falls_back_with_one_warning(saved, damage, suffix, caplog):
    damage(saved.folder / f"step-{15:09d}.{suffix}")
    with caplog.at_level(logging.WARNING):
        step, tensors, _ = saved.load()
    assert step == 10
    assert float(tensors["w"][0]) == 10
    assert len(caplog.records) == 1
    assert "passed over" in caplog.text


def test_a_checkpoint_of_other_code_is_not_used(saved, caplog):
    assert Checkpoints(saved.folder, "other").load() is None
    assert "belongs to other code, settings or inputs" in caplog.text


def test_remove_leaves_nothing(saved):
    saved.remove()
    assert not saved.folder.exists()
    assert saved.load() is None
    saved.remove()


def test_identity_depends_on_settings_and_files(tmp_path):
    path = tmp_path / "x"
    path.write_text("one")
    first = identity_of({"a": 1, "b": 2}, path)
    assert first == identity_of({"b": 2, "a": 1}, path)
    assert first != identity_of({"a": 1, "b": 3}, path)
    path.write_text("two")
    assert first != identity_of({"a": 1, "b": 2}, path)

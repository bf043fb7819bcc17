import logging

import pytest
import torch

from prefdistill.errors import UserError
from prefdistill.storage import checkpoints
from prefdistill.storage.checkpoints import Checkpoints, identity_of


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
        f"abc-step-{step:09d}.{suffix}"
        for step in (10, 15)
        for suffix in ("json", "safetensors")
    ]
    step, tensors, info = saved.load()
    assert (step, info) == (15, {"n": 15})
    assert torch.equal(tensors["w"], torch.full((3,), 15.0))


def truncate(share):
    def damage(path):
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return damage


def flip(share, bit):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[int(share * len(data))] ^= 1 << bit
        path.write_bytes(bytes(data))

    return damage


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    **{f"cut at {share}": truncate(share) for share in (0.02, 0.3, 0.6, 0.99)},
    **{
        f"bit {bit} at {share}": flip(share, bit)
        for share in (0, 0.25, 0.5, 0.75, 0.98)
        for bit in (0, 4)
    },
}


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_broken_newest_falls_back_with_one_warning(saved, damage, suffix, caplog):
    damage(saved.folder / f"abc-step-{15:09d}.{suffix}")
    with caplog.at_level(logging.WARNING):
        step, tensors, _ = saved.load()
    assert step == 10
    assert float(tensors["w"][0]) == 10
    assert len(caplog.records) == 1
    assert "skipped" in caplog.text


def test_a_checkpoint_of_other_code_is_not_used(saved, caplog):
    assert Checkpoints(saved.folder, "other").load() is None
    assert "belongs to other code, settings or inputs" in caplog.text


def test_a_longer_run_of_other_settings_is_left_alone(saved, caplog):
    other = Checkpoints(saved.folder, "other")
    for step in (1, 2, 3):
        other.save(step, {"w": torch.ones(3)}, {})
    assert other.load()[0] == 3
    assert len(caplog.records) == 1
    assert saved.load()[0] == 15


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_saved(saved, value):
    with pytest.raises(UserError, match="step 20: w is not finite"):
        saved.save(20, {"w": torch.tensor([1.0, value])}, {})
    assert saved.load()[0] == 15


def leave_unfinished(saved):
    """What a job that is killed in a save leaves behind: a file, or a folder of one."""
    (saved.folder / ".abc-step-000000020.safetensors.1.tmp").touch()
    folder = saved.folder / ".abc-step-000000020.json.host.1.tmp"
    folder.mkdir()
    (folder / "abc-step-000000020.json").touch()


def test_unfinished_files_are_no_checkpoint_of_other_code(saved, caplog):
    leave_unfinished(saved)
    assert saved.load()[0] == 15
    assert not caplog.records


def test_a_removal_that_is_cut_short_leaves_the_newest(saved, monkeypatch):
    removed = []
    monkeypatch.setattr(checkpoints, "_unlink", removed.append)
    saved.remove()
    assert [path.stem for path in removed] == [
        "abc-step-000000010",
        "abc-step-000000015",
    ]


def test_remove_leaves_nothing(saved):
    leave_unfinished(saved)
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

"""A judge's release: whole, without a second copy of the weights, usable alone."""

import json
import subprocess
import sys

import pytest
from judge_samples import PAIRS

from prefdistill.errors import UserError
from prefdistill.export.release import (
    EXAMPLE,
    EXAMPLE_FILE,
    OPTIONAL_FILES,
    RELEASE_FILES,
    link_file,
    release_files,
    write_release,
)


@pytest.fixture(scope="module")
def release(judge_folder):
    target = judge_folder.parent / "release"
    write_release(judge_folder, target, "# Card\n")
    return target


def test_a_release_is_whole_and_its_weights_take_no_room(judge_folder, release):
    assert {path.name for path in release.iterdir()} == set(RELEASE_FILES)
    one, other = (each / "model.safetensors" for each in (judge_folder, release))
    assert one.stat().st_ino == other.stat().st_ino
    before = one.stat().st_mtime_ns
    write_release(judge_folder, release, "# Other card\n")
    assert one.stat().st_mtime_ns == before
    assert (release / "README.md").read_text() == "# Other card\n"


def test_where_links_cannot_be_the_weights_are_copied(
    judge_folder, tmp_path, monkeypatch
):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link", source)

    monkeypatch.setattr("os.link", refuse)
    write_release(judge_folder, tmp_path / "release", "")
    one, other = (
        each / "model.safetensors" for each in (judge_folder, tmp_path / "release")
    )
    assert one.read_bytes() == other.read_bytes()
    assert one.stat().st_ino != other.stat().st_ino


def test_an_unfinished_judge_is_not_released(judge_folder, tmp_path):
    for name in set(RELEASE_FILES) - {"calibration.json"}:
        if (judge_folder / name).exists():
            (tmp_path / name).write_bytes((judge_folder / name).read_bytes())
    with pytest.raises(UserError, match=r"has no calibration\.json"):
        write_release(tmp_path, tmp_path / "release", "")
    assert not (tmp_path / "release").exists()


def test_the_example_needs_no_package_and_gives_the_same(release, judge, tmp_path):
    assert len(EXAMPLE.splitlines()) <= 15
    assert max(map(len, EXAMPLE.splitlines())) <= 125
    done = subprocess.run(
        [sys.executable, "-I", release / EXAMPLE_FILE, *PAIRS[0]],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = judge.compare(*PAIRS[0])._asdict()
    assert json.loads(done.stdout) == pytest.approx(expected, abs=1e-5)
    absent = [sys.executable, "-I", "-c", "import prefdistill"]
    assert subprocess.run(absent, capture_output=True).returncode != 0


def fill(folder, names):
    """Write files that hold their own names."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


def test_files_of_a_release_are_listed_with_those_it_need_not_have(tmp_path):
    fill(tmp_path, [*RELEASE_FILES, OPTIONAL_FILES[-1], "notes.txt"])
    names = [path.name for path in release_files(tmp_path)]
    assert names == [*RELEASE_FILES, OPTIONAL_FILES[-1]]


@pytest.mark.parametrize("name", RELEASE_FILES)
def test_a_release_that_lacks_a_file_is_not_whole(tmp_path, name):
    fill(tmp_path, set(RELEASE_FILES) - {name})
    with pytest.raises(UserError, match=rf"has no {name}, so it is not a whole"):
        release_files(tmp_path)


def test_the_settings_come_last(tmp_path, monkeypatch):
    """A release that was cut short is not taken for a whole one."""
    source = fill(tmp_path / "source", RELEASE_FILES)
    (tmp_path / "release").mkdir()

    def full(path, _text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("prefdistill.export.release.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_release(source, tmp_path / "release", "# Card")
    assert (tmp_path / "release/model.safetensors").exists()
    assert not (tmp_path / "release/judge.json").exists()


def test_the_record_of_a_quantisation_is_released_where_there_is_one(tmp_path):
    source = fill(tmp_path / "source", [*RELEASE_FILES, "quantize_config.json"])
    write_release(source, tmp_path / "release", "# Card")
    found = {path.name for path in release_files(tmp_path / "release")}
    assert found == {*RELEASE_FILES, "quantize_config.json"}
    assert (tmp_path / "release/README.md").read_text() == "# Card"
    assert (tmp_path / "release/example.py").read_text() == EXAMPLE


def test_other_faults_of_a_link_are_no_reason_to_copy(tmp_path):
    with pytest.raises(FileNotFoundError):
        link_file(tmp_path / "none", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_link_replaces_a_former_file(tmp_path):
    for name in ("source", "target"):
        (tmp_path / name).write_text(name)
    link_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "source"
    assert (tmp_path / "target").samefile(tmp_path / "source")

"""The digests of files."""

import hashlib
import json
import os
import shutil

import pytest

from prefdistill.errors import UserError
from prefdistill.storage.digests import KEPT, file_digest, unchanged


@pytest.mark.parametrize("content", [b"", b"abc", b"\r\n\x00", b"x" * 3_000_000])
def test_a_digest_is_the_sha256_of_the_bytes(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert file_digest(path) == file_digest(str(path))
    assert file_digest(path) == hashlib.sha256(content).hexdigest()


def test_a_digest_depends_on_neither_name_nor_time(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"same")
    assert file_digest(tmp_path / "one") == file_digest(tmp_path / "two")
    (tmp_path / "two").write_bytes(b"samE")
    assert file_digest(tmp_path / "one") != file_digest(tmp_path / "two")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        file_digest(tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file whose digest is kept, older than a tick of the clock."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".snakemake").mkdir()
    monkeypatch.setattr("prefdistill.storage.digests.TICK_S", -1)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x" * (1 << 20))
    file_digest(path)
    return path


def spoil_kept(sha256):
    (store,) = KEPT.glob("*.json")
    store.write_text(json.dumps(json.loads(store.read_text()) | {"sha256": sha256}))


def test_a_large_file_is_hashed_once(large):
    spoil_kept("a" * 64)  # so that one sees where the digest comes from
    assert file_digest(large) == "a" * 64


@pytest.mark.parametrize("shift_s", [-1000, 0, 1000])
@pytest.mark.parametrize("how", ["replaced", "in place"])
def test_a_changed_file_is_hashed_again_whatever_its_time(large, how, shift_s):
    before, new = large.stat(), large.with_name("new") if how == "replaced" else large
    new.write_bytes(b"y" * (1 << 20))
    os.replace(new, large)
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns + shift_s * 10**9))
    expected = hashlib.sha256(b"y" * (1 << 20)).hexdigest()
    assert file_digest(large) == expected


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stamp": null, "sha256": 5}'])
def test_a_damaged_kept_digest_is_not_used(large, text):
    (store,) = KEPT.glob("*.json")
    store.write_text(text)
    assert file_digest(large) == hashlib.sha256(b"x" * (1 << 20)).hexdigest()


def test_a_file_that_was_just_written_is_not_kept(large, monkeypatch):
    monkeypatch.setattr("prefdistill.storage.digests.TICK_S", 2.0)
    shutil.rmtree(KEPT)
    large.touch()
    file_digest(large)
    assert not KEPT.exists()


def test_nothing_is_kept_where_snakemake_does_not_work(large):
    shutil.rmtree(".snakemake")
    file_digest(large)
    assert not KEPT.exists()


def replaced(path, other):
    other.replace(path)


def copied_over(path, other):
    shutil.copyfile(other, path)


def copied_with_its_old_time(path, other):
    found = path.stat()
    shutil.copyfile(other, path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def deleted(path, other):
    path.unlink()


@pytest.mark.parametrize(
    "change", [replaced, copied_over, copied_with_its_old_time, deleted]
)
@pytest.mark.parametrize("age_s", [-100, 0, 100])
def test_a_file_that_changes_while_it_is_read_is_refused(change, age_s, tmp_path):
    path, other = tmp_path / "in.csv", tmp_path / "other.csv"
    for each in (path, other):
        each.write_text("content")
    then = path.stat().st_mtime_ns + age_s * 10**9
    os.utime(other, ns=(then, then))
    with pytest.raises(UserError, match=r"in\.csv: changed while"), unchanged(path):
        change(path, other)


def test_what_a_reader_says_about_a_torn_file_is_not_the_cause(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("content")

    def read():
        with unchanged(path):
            path.write_text("other content")
            raise UserError("row 7: has 3 fields")

    with pytest.raises(UserError, match="changed while it was read"):
        read()


def test_a_file_that_stays_is_read(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("content")
    with unchanged(path):
        path.read_text()

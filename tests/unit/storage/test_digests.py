"""The digests of files."""

import hashlib

import pytest

from prefdistill.storage.digests import file_digest


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

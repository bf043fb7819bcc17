"""Compressed files are read to their bound, and no further."""

import gzip

import pyarrow as pa
import pytest

from prefdistill.data.unpacking import MOST_UNPACKED_BYTES, most_unpacked, open_bytes
from prefdistill.errors import UserError

PACK = {
    "gz": gzip.compress,
    "zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACK)
def test_a_file_may_unpack_to_the_bound_exactly(suffix, tmp_path):
    path = tmp_path / f"in.csv.{suffix}"
    path.write_bytes(PACK[suffix](bytes(MOST_UNPACKED_BYTES)))
    with open_bytes(path) as handle:
        assert len(handle.read()) == MOST_UNPACKED_BYTES == most_unpacked(path)
    path.write_bytes(PACK[suffix](bytes(MOST_UNPACKED_BYTES + 1)))
    with open_bytes(path) as handle, pytest.raises(UserError, match="bytes unpack to"):
        handle.read()


def test_a_large_file_may_unpack_to_a_multiple_of_its_size(tmp_path):
    path = tmp_path / "in.csv.gz"
    path.write_bytes(bytes(1 << 20))
    assert most_unpacked(path) == 50 << 20


def test_a_plain_file_has_no_bound(tmp_path):
    path = tmp_path / "in.csv"
    path.write_bytes(bytes(MOST_UNPACKED_BYTES + 1))
    with open_bytes(path) as handle:
        assert len(handle.read()) == MOST_UNPACKED_BYTES + 1

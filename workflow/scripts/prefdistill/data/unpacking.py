"""Open compressed files of rows, and refuse those that would fill the memory."""

import gzip
import io
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from prefdistill.errors import UserError

# A file may always unpack to this many bytes, and otherwise to this multiple of its
# size. Texts of pairs shrink to a third or a tenth.
MOST_UNPACKED_BYTES, MOST_RATIO = 16 << 20, 50


class _Bounded(io.RawIOBase):
    """Stop reading a compressed file that unpacks to far more than its size.

    Args:
        path: The file, for the message and its size.
        stream: Its unpacked bytes.
    """

    def __init__(self, path: Path, stream: Any) -> None:
        self._path, self._stream, self._n_bytes = path, stream, 0
        self._most = most_unpacked(path)

    def readable(self) -> bool:
        """Tell that this is a file to read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read unpacked bytes into a buffer, and count them.

        Raises:
            UserError: If they are too many.
        """
        content = self._stream.read(len(buffer))
        self._n_bytes += len(content)
        if self._n_bytes > self._most:
            raise too_large(self._path, self._most)
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()


def most_unpacked(path: Path) -> int:
    """Return how many bytes a file may unpack to."""
    return max(MOST_UNPACKED_BYTES, MOST_RATIO * path.stat().st_size)


def too_large(path: Path, most: int) -> UserError:
    """Make the error for a file that would fill the memory."""
    return UserError(
        f"{path}: its {path.stat().st_size:,} bytes unpack to more than {most:,}; if "
        "they are not meant to fill the memory, write its texts as plain .csv or .jsonl"
    )


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed if its name ends in .gz or .zst."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(_Bounded(path, gzip.open(path, "rb")), 1 << 16)
    if suffix == ".zst":
        stream = pa.input_stream(str(path), compression="zstd")
        return io.BufferedReader(_Bounded(path, stream), 1 << 16)
    return open(path, "rb")

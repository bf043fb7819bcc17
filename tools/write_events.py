"""Write a run's training curves and job times as TensorBoard event files.

usage: write_events.py [--run FOLDER] [--out FOLDER]

    make tensorboard && tensorboard --logdir results/report/tensorboard

Every `train.jsonl` below `results` becomes a run of that name (loss, learning rate,
gradient norm, tokens a second by step), every rule with benchmark files a run
`jobs/RULE` (hours, CPU hours, peak memory by job). Written again, the files replace the
old ones.

TensorBoard is needed to look at them, not to write them. An event file is a row of
TFRecords (length, its checksum, a record, its checksum) whose records are protobuf
messages `Event`: 1 wall_time (double), 2 step (int64), 3 file_version (string), 5
summary, of values 1 of 1 tag (string) and 2 simple_value (float); see
`tensorboard/compat/proto/event.proto` and `summary.proto`.
"""

import argparse
import json
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from prefdistill.errors import UserError
from prefdistill.report.run_record import read_times
from prefdistill.storage.whole_files import atomic_path, reading

# TensorBoard finds event files by "tfevents" in the name.
FILE_NAME = "events.out.tfevents.0.prefdistill"
VARINT, EIGHT_BYTES, TEXT, FOUR_BYTES = 0, 1, 2, 5  # kinds of protobuf fields


def _crc_table() -> list[int]:
    """CRC-32C (Castagnoli) of each byte."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C of bytes; zlib has the other polynomial."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ CRC_TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _checksum(data: bytes) -> bytes:
    """The masked checksum of a TFRecord, 4 bytes."""
    value = crc32c(data)
    masked = ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return struct.pack("<I", masked)


def frame(record: bytes) -> bytes:
    """A record as a TFRecord."""
    length = struct.pack("<Q", len(record))
    return length + _checksum(length) + record + _checksum(record)


def _varint(value: int) -> bytes:
    """A number, not negative, seven bits a byte, the lowest first."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _field(number: int, kind: int, content: bytes) -> bytes:
    size = _varint(len(content)) if kind == TEXT else b""
    return _varint(number << 3 | kind) + size + content


def event(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """An event that gives tags their values at a step.

    Args:
        wall_time: Seconds since 1970.
        step: Not negative.
        values: By tag.
    """
    summary = b""
    for tag, value in values.items():
        scalar = _field(1, TEXT, tag.encode())
        scalar += _field(2, FOUR_BYTES, struct.pack("<f", value))
        summary += _field(1, TEXT, scalar)
    return (
        _field(1, EIGHT_BYTES, struct.pack("<d", wall_time))
        + _field(2, VARINT, _varint(step))
        + _field(5, TEXT, summary)
    )


def write_events(folder: Path, events: Iterable[bytes], wall_time: float) -> None:
    """Write an event file into a folder of its own, in place of an old one."""
    version = _field(1, EIGHT_BYTES, struct.pack("<d", wall_time))
    version += _field(3, TEXT, b"brain.Event:2")
    with atomic_path(folder / FILE_NAME) as temporary, open(temporary, "wb") as handle:
        for record in (version, *events):
            handle.write(frame(record))


def curve_events(path: Path) -> Iterator[bytes]:
    """The events of a ``train.jsonl``; a step ends its seconds before the next ends.

    Raises:
        UserError: If the file is not whole.
    """
    with reading(path, "whole JSON lines"):
        lines = path.read_text("utf-8").splitlines()
        records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        time = path.stat().st_mtime - sum(record["seconds"] for record in records)
        for record in records:
            time += record["seconds"]
            speed = record["n_tokens"] / max(record["seconds"], 1e-4)
            values = {key: record[key] for key in ("loss", "lr", "grad_norm")}
            known = {key: value for key, value in values.items() if value is not None}
            yield event(time, record["step"], known | {"tokens_per_second": speed})


def main(run: Path, out: Path) -> int:
    """Write the files of a run; returns how many.

    Raises:
        UserError: If the run has no training curve.
    """
    results = run / "results"
    found = sorted(results.rglob("train.jsonl"))
    curves = [path for path in found if path.stat().st_size]
    if not curves:
        raise UserError(
            f"{results}: no train.jsonl with a step is below it; run the workflow "
            "first, or name the folder where it ran with --run"
        )
    for path in curves:
        folder = out / path.parent.relative_to(results)
        write_events(folder, curve_events(path), path.stat().st_mtime)
    times = read_times(run / "benchmarks", run / "logs", {"student": 1})
    rules = sorted({job.rule for job in times})
    for rule in rules:
        jobs = [
            event(0, number, {
                "hours": job.hours, "cpu_hours": job.cpu_hours, "peak_gb": job.peak_gb
            })
            for number, job in enumerate(each for each in times if each.rule == rule)
        ]  # fmt: skip
        write_events(out / "jobs" / rule, jobs, 0)
    return len(curves) + len(rules)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("."), help="where it ran")
    parser.add_argument("--out", type=Path, help="RUN/results/report/tensorboard")
    given = parser.parse_args()
    out = given.out or given.run / "results/report/tensorboard"
    try:
        print(f"{main(given.run, out)} event files below {out}")
    except UserError as error:
        sys.exit(f"error: {error}")

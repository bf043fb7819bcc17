"""Event files for TensorBoard, byte for byte as its own writer's."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import write_events

# add_scalar("loss", 0.75, 300, walltime=1700000000.25) of torch 2.13's SummaryWriter
# with tensorboard 2.21.0.
AS_TENSORBOARD_WRITES = bytes.fromhex(
    "1b000000000000001a0d9e130900001040fc54d94110ac022a0d0a0b0a046c6f7373150000403f88db8a14"
)


def records(path):
    """The records of an event file, checksums checked."""
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        record = data[12 : 12 + size]
        assert write_events.frame(record) == data[: 16 + size]
        found.append(record)
        data = data[16 + size :]
    return found


def curve(path, steps):
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(step) + "\n" for step in steps))


def step(number, **changes):
    values = {"step": number, "loss": 1.5, "lr": 1e-3, "grad_norm": 0.5}
    return values | {"n_tokens": 300, "seconds": 2.0} | changes


def test_an_event_is_tensorboards():
    assert write_events.crc32c(b"123456789") == 0xE3069283
    event = write_events.event(1700000000.25, 300, {"loss": 0.75})
    assert write_events.frame(event) == AS_TENSORBOARD_WRITES


def test_curves_and_jobs_of_a_run(tmp_path):
    path = tmp_path / "results/teacher/llama/fold0/train.jsonl"
    curve(path, [step(1), step(2, loss=None, grad_norm=None, seconds=3.0)])
    curve(tmp_path / "results/post_pretrain/llama/train.jsonl", [])
    jobs = tmp_path / "benchmarks/train_teacher"
    jobs.mkdir(parents=True)
    (jobs / "llama.fold0.tsv").write_text("s\tcpu_time\tmax_rss\n7200\t3600\t2000\n")
    out = tmp_path / "out"
    assert write_events.main(tmp_path, out) == 2

    name = write_events.FILE_NAME
    files = {
        file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()
    }
    assert files == {f"teacher/llama/fold0/{name}", f"jobs/train_teacher/{name}"}
    end = path.stat().st_mtime
    values = {"loss": 1.5, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_second": 150.0}
    skipped = {"lr": 1e-3, "tokens_per_second": 100.0}
    version, *steps = records(out / "teacher/llama/fold0" / name)
    assert version.endswith(b"brain.Event:2")
    assert steps == [
        write_events.event(end - 5 + 2, 1, values),
        write_events.event(end - 5 + 2 + 3, 2, skipped),
    ]
    hours = {"hours": 2.0, "cpu_hours": 1.0, "peak_gb": 2.0}
    expected = [write_events.event(0, 0, hours)]
    assert records(out / "jobs/train_teacher" / name)[1:] == expected
    before = {file: file.read_bytes() for file in out.rglob(name)}
    write_events.main(tmp_path, out)
    assert {file: file.read_bytes() for file in out.rglob(name)} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "results: no train.jsonl with a step is below it; run the workflow"),
        ('{"step": 1, "lo', "train.jsonl: not whole JSON lines"),
        ('{"step": 1}', "train.jsonl: not whole JSON lines ('seconds')"),
    ],
)
def test_what_cannot_be_written_is_one_line(content, message, tmp_path):
    if content is not None:
        curve(tmp_path / "results/student/fold0/train.jsonl", [])
        (tmp_path / "results/student/fold0/train.jsonl").write_text(content)
    tool = Path(write_events.__file__)
    done = subprocess.run(
        [sys.executable, tool, "--run", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1

import csv
import os
import re
import time

import pytest

from prefdistill.errors import DamagedFile, UserError
from prefdistill.storage.whole_files import (
    atomic_path,
    naming,
    reading,
    temporary_folder,
    write_csv_rows,
    write_text,
)


def leave_behind(folder, host, process, age_s=0.0):
    """What a killed job leaves: a temporary folder with half a file."""
    left = folder / f".model.safetensors.{host}.{process}.0123abcd.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    then = time.time() - age_s
    for path in (left / "model.safetensors", left):
        os.utime(path, (then, then))
    return left


@pytest.fixture
def host(tmp_path):
    """This host, as it stands in the names of temporary folders."""
    with temporary_folder(tmp_path, "x") as folder:
        return folder.name.split(".")[2]


@pytest.fixture
def dead_process():
    """The number of a process that has ended."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return child


DAY_S = 24 * 3600


@pytest.mark.parametrize("name", ["model.safetensors", "other.json"])
def test_what_a_dead_process_left_is_removed_at_the_next_write(
    name, tmp_path, host, dead_process
):
    left = leave_behind(tmp_path, host, dead_process)
    write_text(tmp_path / name, "")
    assert not left.exists()


def test_what_may_be_in_use_stays(tmp_path, host):
    kept = [
        leave_behind(tmp_path, host, os.getpid(), 2 * DAY_S),
        leave_behind(tmp_path, host, os.getppid()),
        leave_behind(tmp_path, "elsewhere", 1, DAY_S - 600),
    ]
    mine = tmp_path / ".mine.tmp"
    mine.touch()
    write_text(tmp_path / "model.safetensors", "")
    assert all(path.exists() for path in (*kept, mine))


def test_what_another_host_left_is_removed_after_a_day(tmp_path):
    left = leave_behind(tmp_path, "elsewhere", 1, DAY_S + 600)
    written_to = leave_behind(tmp_path, "elsewhere", 2, DAY_S + 600)
    os.utime(written_to / "model.safetensors")
    write_text(tmp_path / "model.safetensors", "")
    assert not left.exists()
    assert written_to.exists()


def test_writers_of_one_target_do_not_meet(tmp_path):
    path = tmp_path / "x.json"
    with atomic_path(path) as first, atomic_path(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer one ends last
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_failing_body_leaves_the_former_file(tmp_path):
    path = tmp_path / "x.json"
    write_text(path, "former")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new" * 10_000 + "\ud800")
    assert path.read_text() == "former"
    assert os.listdir(tmp_path) == ["x.json"]


def test_files_get_the_usual_permissions(tmp_path):
    usual = tmp_path / "usual"
    usual.touch()
    path = tmp_path / "x.safetensors"
    with atomic_path(path) as temporary:
        temporary.touch(0o600)
    assert path.stat().st_mode == usual.stat().st_mode


def test_an_error_of_the_system_gets_a_path(tmp_path):
    with pytest.raises(OSError, match="space") as caught, naming("a/b"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == "a/b"
    with pytest.raises(OSError, match="space") as caught, naming("a/b"):
        raise ValueError("I/O error: No space left on device (os error 28)")
    assert (caught.value.errno, caught.value.filename) == (28, "a/b")
    with pytest.raises(OSError, match="x") as caught, naming("a/b"):
        raise OSError(28, "No space left on device", "x")
    assert caught.value.filename == "x"


def test_a_damaged_file_is_one_line(tmp_path):
    with pytest.raises(DamagedFile) as caught, reading("a/b", "whole JSON"):
        raise ValueError("line one\nline two")
    assert str(caught.value) == (
        "a/b: not whole JSON (line one line two); copy or fetch it again"
    )
    with pytest.raises(PermissionError), reading("a/b", "whole JSON"):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(MemoryError), reading("a/b", "whole JSON"):
        raise MemoryError


CELLS = [
    *("=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", "'=1"),
    *("=cmd|'/C calc'!A0", "''@x", "' +x", "-", "+", "=", "\r", "'\t", "x;=1+1"),
    *(
        "a\rb",
        "a\nb",
        "a\r\nb",
        'a"b',
        "a,b",
        "a;b",
        "a\tb",
        "",
        " ",
        "é",
        "🌊",
        "\u2028",
    ),
    *("-5", "+5", "-1.5e-7", "'5", "'a", "''", "x=1", "b'x'", "\x1c=1", "\x85"),
    *("\x0b", "\u2028"),
]


def test_every_csv_reader_gets_the_cells_back(tmp_path):
    """The csv module's, pyarrow's and pandas', once the mark is undone."""
    import io

    import pandas
    from pyarrow import csv as arrow_csv

    rows = [(cell, other, 0.1) for cell in CELLS for other in ("x", cell)]
    path = tmp_path / "out.csv"
    n_marked = write_csv_rows(path, ["id", "other", "p"], rows)

    with open(path, encoding="utf-8", newline="") as handle:
        header, *shown = csv.reader(handle, strict=True)
    assert header == ["id", "other", "p"]
    marked = re.compile(r"(?=')(['\s]*[=+\-@＝＋－＠]|'*[\t\r\n])")
    undone = [
        [cell[1:] if marked.match(cell) else cell for cell in row] for row in shown
    ]
    assert undone == [[first, other, "0.1"] for first, other, _ in rows]
    assert n_marked == sum(
        cell != first
        for row, cells in zip(shown, rows, strict=True)
        for cell, first in zip(row[:2], cells, strict=False)
    )
    content = path.read_bytes()
    strings = pandas.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    assert strings.to_numpy().tolist() == shown
    table = arrow_csv.read_csv(
        io.BytesIO(content),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(header, "string")
        ),
    )
    assert [list(row.values()) for row in table.to_pylist()] == shown


def test_no_cell_of_csv_starts_a_formula(tmp_path):
    path = tmp_path / "out.csv"
    write_csv_rows(path, ["id"], [[cell] for cell in CELLS if cell])
    for delimiter in ",;\t":
        with open(path, encoding="utf-8", newline="") as handle:
            for row in csv.reader(handle, delimiter=delimiter):
                for cell in row:
                    number = re.fullmatch(r"[+-]?[0-9.]+(e-?[0-9]+)?", cell)
                    assert number or not re.match(r"\s*[=+\-@＝]", cell)


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\udfffx"])
def test_what_no_reader_of_csv_gets_back_is_refused(text, tmp_path):
    with pytest.raises(UserError, match=r"out\.csv: not written, as .* holds NUL"):
        write_csv_rows(tmp_path / "out.csv", ["id"], [[text]])
    assert not list(tmp_path.iterdir())

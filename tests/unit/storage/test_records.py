"""JSON files: strict, indented, and checked when they are read."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from prefdistill.errors import DamagedFile, UserError
from prefdistill.storage.records import read_json, write_json


@dataclass
class Point:
    x: int
    y: float


def test_what_is_no_json_is_written_as_json(tmp_path):
    path = tmp_path / "x.json"
    write_json(
        path,
        {
            "point": Point(1, 0.5),
            "path": Path("a/b"),
            "number": np.float32(0.25),
            "count": np.int64(3),
            "flag": np.bool_(True),
            "array": np.arange(4).reshape(2, 2),
            "text": "é",
        },
    )
    assert read_json(path) == {
        "point": {"x": 1, "y": 0.5},
        "path": "a/b",
        "number": 0.25,
        "count": 3,
        "flag": True,
        "array": [[0, 1], [2, 3]],
        "text": "é",
    }
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert '\n  "text": "é"\n' in text


@pytest.mark.parametrize("value", [{1, 2}, Point, object()])
def test_other_types_are_an_error_of_the_caller(tmp_path, value):
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        write_json(tmp_path / "x.json", [value])
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    "value", [float("nan"), -float("inf"), np.float32("nan"), np.array([1, np.inf])]
)
def test_numbers_that_are_not_finite_leave_the_former_file(tmp_path, value):
    path = tmp_path / "x.json"
    write_json(path, {"former": 1})
    with pytest.raises(UserError, match=r"x\.json: not written, as a value is NaN or"):
        write_json(path, {"a": [value]})
    assert read_json(path) == {"former": 1}


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        (b'{"a": 1', (), r"not whole JSON \(Expecting"),
        (b"", (), "not whole JSON"),
        (b'{"a": "\xff"}', (), "not whole JSON"),
        (b'{"a": NaN}', (), "a value is NaN"),
        (b'{"a": [-Infinity]}', (), "a value is -Infinity"),
        (b"[1]", ("a",), "is not an object"),
        (b'{"a": 1, "c": 2}', ("a", "b", "c"), "key b is missing"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, content, keys, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=message) as caught:
        read_json(path, keys)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_without_keys_any_value_is_read(tmp_path):
    path = tmp_path / "x.json"
    for value in ([1, 2], "text", None, {}):
        path.write_text(json.dumps(value))
        assert read_json(path) == value
    path.write_text('{"a": null}')
    assert read_json(path, ("a",)) == {"a": None}

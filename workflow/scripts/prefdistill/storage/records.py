"""Read and write JSON files."""

import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.storage.whole_files import not_finite, read_text, reading, write_text


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as strict, indented JSON.

    Args:
        path: The file.
        value: May contain dataclasses, paths, and numpy numbers and arrays.

    Raises:
        UserError: If a number is NaN or infinite; nothing is written then.
    """
    try:
        text = json.dumps(
            value, indent=2, default=_plain, allow_nan=False, ensure_ascii=False
        )
    except ValueError as error:
        raise not_finite(path, "a value") from error
    write_text(path, text + "\n")


def read_json(path: str | Path, keys: Sequence[str] = ()) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        keys: Keys that it must have; with any, the file must hold an object.

    Raises:
        UserError: If the file is not whole JSON, lacks a key, holds NaN or infinity, or
            is larger than any JSON file of a model.
    """
    with reading(path, "whole JSON"):
        value = json.loads(read_text(path), parse_constant=_refuse_constant)
        if keys and not isinstance(value, dict):
            raise ValueError("is not an object")
        missing = [key for key in keys if key not in value]
        if missing:
            raise ValueError(f"key {missing[0]} is missing")
        return value


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"a value is {name}")

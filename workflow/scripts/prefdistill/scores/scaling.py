"""Apply a fitted map of logits, and read it from ``calibration.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.storage.records import read_json
from prefdistill.storage.whole_files import reading


@dataclass(frozen=True)
class Scaling:
    """A fitted map z' = a * z + b of logits, one scale and shift per class as shown."""

    method: str
    tied: bool
    a: tuple[float, float, float] = (1.0, 1.0, 1.0)
    b: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Scale ``(..., 3)`` logits in float64."""
        return logits.astype(np.float64) * np.array(self.a) + np.array(self.b)


def read_scaling(path: Path) -> Scaling:
    """Read the scaling of a ``calibration.json``.

    Raises:
        DamagedFile: If the file holds no scaling.
    """
    record = read_json(path, ["method", "tied", "a", "b"])
    with reading(path, "a calibration"):
        return scaling_of(record)


def scaling_of(record: Mapping[str, Any]) -> Scaling:
    """Build the scaling that a calibration's record holds.

    Raises:
        KeyError, TypeError, ValueError: If the record holds none.
    """
    scale, shift = (tuple(map(float, record[key])) for key in ("a", "b"))
    if len(scale) != 3 or len(shift) != 3 or min(scale) <= 0:
        raise ValueError(f"scales {record['a']}, shifts {record['b']}")
    return Scaling(record["method"], record["tied"], scale, shift)

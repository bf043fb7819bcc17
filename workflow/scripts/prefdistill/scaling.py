"""A fitted map of logits, as ``calibration.json`` keeps it."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scaling:
    """A fitted map z' = a * z + b, classes as shown."""

    method: str
    tied: bool
    a: tuple[float, float, float] = (1.0, 1.0, 1.0)
    b: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Scale ``(..., 3)`` logits; computed and returned in float64."""
        return logits.astype(np.float64) * np.array(self.a) + np.array(self.b)


def read_scaling(record: dict[str, Any]) -> Scaling:
    """The scaling of a ``calibration.json``."""
    return Scaling(
        record["method"], record["tied"], tuple(record["a"]), tuple(record["b"])
    )

"""Name the three classes, and swap the answers' classes.

A view shows the two answers in one order. A model's classes are those of the view:
(first answer, second answer, tie). A verdict is about the pair: (A, B, tie).
"""

import numpy as np

CLASSES = ("first", "second", "tie")
VERDICTS = ("A", "B", "tie")
# The class that each class becomes when the answers are swapped.
SWAPPED = (1, 0, 2)


def swap_classes(values: np.ndarray) -> np.ndarray:
    """Exchange the first two classes of ``(..., 3)`` values; its own inverse."""
    return values[..., list(SWAPPED)]


def swap_labels(labels: np.ndarray) -> np.ndarray:
    """Exchange the first two classes of ``(n,)`` class indices; its own inverse."""
    return np.array(SWAPPED)[labels]

"""The three classes of a verdict, as shown and as answers, and the swap between them.

A view shows the two answers in one order. A model's classes are those of the view:
(first answer, second answer, tie). A verdict is about the pair: (A, B, tie).
"""

import numpy as np

CLASSES = ("first", "second", "tie")
VERDICTS = ("A", "B", "tie")
# Where each class goes when the answers change places.
SWAPPED = (1, 0, 2)


def swap_classes(values: np.ndarray) -> np.ndarray:
    """Exchange the first two classes of ``(..., 3)`` values; its own inverse."""
    return values[..., list(SWAPPED)]


def swap_labels(labels: np.ndarray) -> np.ndarray:
    """Exchange the first two classes of ``(n,)`` class indices; its own inverse."""
    return np.array(SWAPPED)[labels]

"""Rows whose verdict is known beforehand: one answer empty, or both the same.

People prefer the answer that says something, and call equal answers a tie, whatever
the prompt. A model sees few such rows in training, none of equal answers while
``cleaning.identical`` drops them, but a test file keeps them.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdistill.scores.views import swap_classes

KINDS = ("empty", "identical")
# Stands between turns, as no cleaned text holds it.
_TURN_BREAK = "\x00"


def _words(turns: pa.ChunkedArray) -> np.ndarray:
    """Each row's text, white space folded, turns kept apart: ``(n,)`` of str."""
    texts = pc.binary_join(turns, f" {_TURN_BREAK} ").to_pylist()
    return np.array([" ".join((text or "").split()) for text in texts], dtype=object)


def row_kinds(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a table with both answers are of a known kind.

    Returns:
        ``(n,)`` unicode: ``empty`` where just one answer is blank, ``identical`` where
        the answers differ at most in white space, two blank ones included, else "";
        and ``(n,)`` bool, whether it is B that is blank.
    """
    a, b = _words(table.column("response_a")), _words(table.column("response_b"))
    blank = [
        np.array([not text.replace(_TURN_BREAK, " ").strip() for text in answer], bool)
        for answer in (a, b)
    ]
    kinds = np.where(blank[0] ^ blank[1], "empty", "")
    same = (a == b).astype(bool) | (blank[0] & blank[1])
    return np.where(same, "identical", kinds), blank[1] & ~blank[0]


def apply_priors(
    probs: np.ndarray, kinds: np.ndarray, b_empty: np.ndarray, priors: dict[str, Any]
) -> np.ndarray:
    """Probabilities of (A, B, tie), with the priors in place of those of known kinds.

    Args:
        probs: ``(n, 3)`` of the model.
        kinds: ``(n,)`` as from ``row_kinds``.
        b_empty: ``(n,)`` bool, whether B is the empty answer.
        priors: ``empty``, the probabilities that (the empty answer, the other, none)
            wins, and ``identical``, those of (A, B, tie).
    """
    found = probs.copy()
    for kind in KINDS:
        found[kinds == kind] = priors[kind]
    swapped = (kinds == "empty") & b_empty
    found[swapped] = swap_classes(found[swapped])
    return found

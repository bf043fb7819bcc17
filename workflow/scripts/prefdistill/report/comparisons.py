"""Comparisons of fixed models on the same rows, with paired intervals over prompts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prefdistill.report.tables import markdown_table
from prefdistill.scores.metrics import Labels, group_bootstrap, row_log_loss

COMPARISON_COLUMNS = (
    "model",
    "n",
    "log_loss",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
)


def compare(
    probs: Mapping[str, np.ndarray],
    reference: str,
    labels: Labels,
    *,
    n_bootstrap: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Log loss of each model, and its paired difference to one of them.

    Both intervals are of a bootstrap over prompt groups; the reference has no
    difference. A negative difference is better than the reference.

    Args:
        probs: ``(n, 3)`` probabilities of (A, B, tie) by model.
        reference: A key of ``probs``.
        labels: The labels of the rows, in their order.
        n_bootstrap: Number of draws.
        seed: Seed of the draws.

    Returns:
        One row of ``COMPARISON_COLUMNS`` a model.
    """
    losses = {name: row_log_loss(each, labels.label) for name, each in probs.items()}
    draws = {"n_bootstrap": n_bootstrap, "seed": seed}
    table = []
    for name, own in losses.items():
        span = group_bootstrap(own, labels.group, **draws)
        values = [name, len(own), span.mean, span.low, span.high]
        if name == reference:
            values += [None, None, None]
        else:
            step = group_bootstrap(own - losses[reference], labels.group, **draws)
            values += [step.mean, step.low, step.high]
        table.append(dict(zip(COMPARISON_COLUMNS, values, strict=True)))
    return table


def comparison_table(rows: list[dict[str, Any]], first: str, reference: str) -> str:
    """The rows of ``compare`` in Markdown.

    Args:
        rows: The rows.
        first: What the first column is called.
        reference: What the differences are taken to.
    """
    header = [first, "rows", "log loss", "95 % low", "high"]
    header += [f"less {reference}", "95 % low", "high"]
    cells = [[row[name] for name in COMPARISON_COLUMNS] for row in rows]
    return markdown_table(header, cells)

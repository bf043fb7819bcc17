"""Paired comparison of students that differ in one thing, over folds and seeds.

A row's loss under an arm is its mean over seeds and, for rows outside the folds, over
folds too; arms are compared row by row, with a bootstrap over prompt groups. So the
interval says how far another sample of prompts would move the difference; the spread
between seeds stands beside it.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.report.tables import markdown_table
from prefdistill.scores.metrics import (
    Labels,
    group_bootstrap,
    read_labels,
    row_log_loss,
)
from prefdistill.scores.views import symmetrise
from prefdistill.storage.logits import read_logits

logger = logging.getLogger(__name__)

COLUMNS = (
    "split", "from", "to", "n", "from_log_loss", "to_log_loss",
    "difference", "low", "high", "seed_sd", "clean",
)  # fmt: skip


def arm_losses(
    labels: Sequence[Labels],
    predictions: Sequence[Sequence[Path]],
    split: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Log losses of an arm's rows, both orders averaged.

    Args:
        labels: Of each fold's file.
        predictions: For each seed the logits of every fold.
        split: ``dev``, whose rows of all folds stand side by side, or a split that all
            folds share, whose rows are averaged over folds.

    Returns:
        ``(n_seeds, n)`` losses in nats, and the rows' ``(n,)`` groups.
    """
    by_seed, groups = [], []
    for folds in predictions:
        parts = []
        for label, path in zip(labels, folds, strict=True):
            scores = read_logits(path)
            known = label.rows(label.split == split)
            logits = scores.logits[scores.rows_of(known.ids)]
            parts.append(row_log_loss(symmetrise(logits, scores.views), known.label))
            groups.append(known.group)
        pooled = split == "dev"
        by_seed.append(np.concatenate(parts) if pooled else np.mean(parts, axis=0))
    n_parts = len(labels) if split == "dev" else 1
    return np.stack(by_seed), np.concatenate(groups[:n_parts])


def compare_losses(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray, **bootstrap: int
) -> dict[str, Any]:
    """The mean paired difference of two arms, ``(n_seeds, n)`` each, in nats.

    Args:
        first: Losses before the change.
        second: Losses after it, of the same rows and seeds.
        groups: ``(n,)`` prompt groups.
        bootstrap: ``n_bootstrap`` and ``seed``.

    Returns:
        The columns ``n`` to ``seed_sd``; ``seed_sd`` is None with a single seed.
    """
    difference = second - first
    step = group_bootstrap(difference.mean(axis=0), groups, **bootstrap)
    spread = difference.mean(axis=1)
    return {
        "n": len(groups),
        "from_log_loss": float(first.mean()),
        "to_log_loss": float(second.mean()),
        "difference": step.mean,
        "low": step.low,
        "high": step.high,
        "seed_sd": float(spread.std(ddof=1)) if len(spread) > 1 else None,
    }


def compare_arms(
    fold_files: Sequence[Path],
    predictions: Mapping[str, Sequence[Sequence[Path]]],
    comparisons: Sequence[tuple[str, str]],
    unclean: Sequence[str],
    **bootstrap: int,
) -> list[dict[str, Any]]:
    """Compare arms pair by pair on dev and test.

    Args:
        fold_files: The fold files.
        predictions: For each arm and seed the logits of every fold.
        comparisons: Pairs of arms, before and after.
        unclean: Arms whose dev scores are not clean.
        bootstrap: ``n_bootstrap`` and ``seed``.

    Returns:
        One row of ``COLUMNS`` a split and comparison.
    """
    labels = [read_labels(path) for path in fold_files]
    rows = []
    for split in ("dev", "test"):
        losses = {
            arm: arm_losses(labels, files, split) for arm, files in predictions.items()
        }
        for before, after in comparisons:
            (first, groups), (second, _) = losses[before], losses[after]
            effect = compare_losses(first, second, groups, **bootstrap)
            clean = split != "dev" or not {before, after} & set(unclean)
            names = {"split": split, "from": before, "to": after}
            rows.append({**names, **effect, "clean": int(clean)})
            logger.info(
                "%s: %s %.4f -> %s %.4f, difference %+.4f [%+.4f, %+.4f]",
                split, before, effect["from_log_loss"], after, effect["to_log_loss"],
                effect["difference"], effect["low"], effect["high"],
            )  # fmt: skip
    return rows


def ablation_page(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    changes: Mapping[str, Mapping[str, Any]],
    n_seeds: int,
    n_folds: int,
) -> str:
    """An ablation's table and arms as Markdown.

    Args:
        name: Of the ablation.
        rows: With the keys ``COLUMNS``.
        changes: Arm to the settings that it changes.
        n_seeds: Seeds of each arm.
        n_folds: Folds of each seed.
    """
    header = [
        "split", "from", "to", "rows", "loss from", "loss to",
        "difference", "95 % low", "high", "sd over seeds", "note",
    ]  # fmt: skip
    shown = [
        [*[row[column] for column in COLUMNS[:-1]], "" if row["clean"] else "not clean"]
        for row in rows
    ]
    parts = [
        f"# Ablation: {name}",
        f"Log loss in nats, both orders averaged. Trainings of each arm: {n_folds} "
        f"folds times {n_seeds} seeds. Differences are paired, with intervals of a "
        "bootstrap over prompt groups; negative is a gain.",
        markdown_table(header, shown),
    ]
    if not all(row["clean"] for row in rows):
        parts.append(
            "Not clean: in one of the two arms the student learns from teachers that "
            "were trained on its dev rows; only test counts."
        )
    arms = [[arm, json.dumps(changed)] for arm, changed in changes.items()]
    parts.append(markdown_table(["arm", "settings beside the configuration's"], arms))
    return "\n\n".join(parts) + "\n"

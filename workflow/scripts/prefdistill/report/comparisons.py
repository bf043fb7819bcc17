"""Compare students that differ in one setting (the arms of an ablation), row by row.

The interval of a difference says how far another sample of prompts would move it. The
spread between training seeds is reported beside it.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.report.markdown_tables import markdown_table
from prefdistill.report.markdown_text import escape
from prefdistill.scores.metrics import (
    Labels,
    group_bootstrap,
    read_labels,
    row_log_loss,
)
from prefdistill.scores.views import symmetrise
from prefdistill.settings import EvaluationSettings
from prefdistill.storage.logits import Logits, read_logits

logger = logging.getLogger(__name__)

COLUMNS = (
    "split", "from", "to", "n", "from_log_loss", "to_log_loss",
    "difference", "low", "high", "seed_sd", "clean",
)  # fmt: skip


def by_arm(
    paths: Sequence[Path], arms: Sequence[str], n_folds: int
) -> dict[str, list[list[Path]]]:
    """Group files, listed by arm, seed and fold, as each arm's seeds of folds."""
    by_seed = [
        list(paths[start : start + n_folds]) for start in range(0, len(paths), n_folds)
    ]
    n_seeds = len(by_seed) // len(arms)
    return {
        arm: by_seed[place * n_seeds : (place + 1) * n_seeds]
        for place, arm in enumerate(arms)
    }


def arm_losses(
    labels: Sequence[Labels],
    predictions: Sequence[Sequence[Logits]],
    split: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the log loss of each row under one arm, both orders averaged.

    Args:
        labels: The labels of each fold file.
        predictions: For each seed the logits of every fold.
        split: ``dev``, whose rows differ by fold and are concatenated, or a split that
            all folds share, whose losses are averaged over folds.

    Returns:
        ``(n_seeds, n)`` losses in nats, and the rows' ``(n,)`` groups.
    """
    by_seed, groups = [], []
    for folds in predictions:
        parts = []
        for label, scores in zip(labels, folds, strict=True):
            known = label.rows(label.split == split)
            logits = scores.logits[scores.rows_of(known.ids)]
            parts.append(row_log_loss(symmetrise(logits, scores.views), known.label))
            groups.append(known.group)
        by_fold = split == "dev"
        by_seed.append(np.concatenate(parts) if by_fold else np.mean(parts, axis=0))
    # Every seed, and on shared rows every fold too, repeats the same groups.
    n_parts = len(labels) if split == "dev" else 1
    return np.stack(by_seed), np.concatenate(groups[:n_parts])


def compare_losses(
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray,
    evaluation: EvaluationSettings,
) -> dict[str, Any]:
    """Compute the mean paired difference of two arms' losses with its interval.

    Args:
        first: ``(n_seeds, n)`` losses before the change, in nats.
        second: Losses after it, of the same rows and seeds.
        groups: ``(n,)`` prompt groups.
        evaluation: Bootstrap draws and their seed.

    Returns:
        The columns ``n`` to ``seed_sd``; ``seed_sd`` is None with a single seed.
    """
    difference = second - first
    step = group_bootstrap(
        difference.mean(axis=0),
        groups,
        n_bootstrap=evaluation.n_bootstrap,
        seed=evaluation.seed,
    )
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
    comparisons: Sequence[Sequence[str]],
    unclean: Sequence[str],
    evaluation: EvaluationSettings,
) -> list[dict[str, Any]]:
    """Compare arms pair by pair on dev and test.

    Args:
        fold_files: The fold files.
        predictions: For each arm and seed the logits of every fold.
        comparisons: Pairs of arms, before and after.
        unclean: Arms that learn from teachers which saw their dev rows.
        evaluation: Bootstrap draws and their seed.

    Returns:
        One row with the keys ``COLUMNS`` per split and comparison; losses in nats.
    """
    labels = [read_labels(path) for path in fold_files]
    scored = {
        arm: [[read_logits(path) for path in folds] for folds in seeds]
        for arm, seeds in predictions.items()
    }
    rows = []
    for split in ("dev", "test"):
        losses = {
            arm: arm_losses(labels, files, split) for arm, files in scored.items()
        }
        for before, after in comparisons:
            (first, groups), (second, _) = losses[before], losses[after]
            effect = compare_losses(first, second, groups, evaluation)
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
    """Write an ablation's comparisons and its arms as Markdown.

    Args:
        name: The ablation.
        rows: Rows of ``compare_arms``.
        changes: Arm to the settings that it changes.
        n_seeds: Seeds of each arm.
        n_folds: Folds of each seed.
    """
    header = [
        "split", "before", "after", "rows", "log loss before", "after",
        "difference", "95 % low", "high", "sd over seeds", "note",
    ]  # fmt: skip
    shown = [
        [*[row[column] for column in COLUMNS[:-1]], "" if row["clean"] else "not clean"]
        for row in rows
    ]
    parts = [
        f"# Ablation: {escape(name)}",
        "Each arm is a student that differs from the others in one setting. It was "
        f"trained on {n_folds} folds with {n_seeds} seeds each. Log loss is in nats, "
        "both orders averaged. A difference is taken row by row, with a 95 % bootstrap "
        "interval over prompt groups; a negative one is a gain.",
        markdown_table(header, shown),
    ]
    if not all(row["clean"] for row in rows):
        parts.append(
            "Not clean: in one of the two arms the student learns from teachers that "
            "were trained on its dev rows. Use the difference on test."
        )
    arms = [[arm, json.dumps(changed)] for arm, changed in changes.items()]
    parts.append(
        markdown_table(["arm", "settings that differ from the configuration"], arms)
    )
    return "\n\n".join(parts) + "\n"

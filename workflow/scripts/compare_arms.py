"""Compare students that differ in one thing, over folds and seeds.

A row's loss under an arm is its mean over seeds and, for rows outside the folds, over
folds too; arms are compared row by row, with a bootstrap over prompt groups. So the
interval says how far another sample of prompts would move the difference; the spread
between seeds stands beside it.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)

COMPARISONS = (
    ("labels_only", "distilled"),
    ("labels_only_few", "distilled_few"),
    ("labels_only_few_long", "distilled_few"),
)
COLUMNS = "split,from,to,n,from_log_loss,to_log_loss,difference,low,high,seed_sd"


def main(
    fold_paths: list[Path],
    predictions: dict[str, list[list[list[Path]]]],
    views: list[str],
    evaluation: dict[str, Any],
    table_path: Path,
) -> None:
    """Score every arm's predictions and write one line a comparison and split.

    Args:
        fold_paths: The fold files.
        predictions: Arm to seeds, to folds, to one file a view.
        views: The views of the files.
        evaluation: The ``evaluation`` settings.
        table_path: CSV with the columns ``COLUMNS``; losses in nats.
    """
    import numpy as np

    from prefdistill.files import write_text
    from prefdistill.metrics import group_bootstrap, read_labels, row_log_loss
    from prefdistill.tta import read_predictions, symmetrise

    labels = [read_labels(path) for path in fold_paths]

    def losses(arm: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Losses ``(n_seeds, n)`` of an arm's rows, and the rows' groups."""
        by_seed, groups = [], []
        for folds in predictions[arm]:
            parts = []
            for label, paths in zip(labels, folds, strict=True):
                scores = read_predictions(paths, views)
                known = label.rows(label.split == split)
                logits = scores.logits[scores.rows_of(known.ids)]
                parts.append(row_log_loss(symmetrise(logits, views), known.label))
                groups.append(known.group)
            pooled = split == "dev"
            by_seed.append(np.concatenate(parts) if pooled else np.mean(parts, axis=0))
        n_parts = len(labels) if split == "dev" else 1
        return np.stack(by_seed), np.concatenate(groups[:n_parts])

    lines = [COLUMNS]
    for split in ("dev", "test"):
        for before, after in COMPARISONS:
            first, groups = losses(before, split)
            second, _ = losses(after, split)
            step = group_bootstrap(
                (second - first).mean(axis=0), groups,
                n_bootstrap=evaluation["n_bootstrap"], seed=evaluation["seed"],
            )  # fmt: skip
            spread = (
                float((second - first).mean(axis=1).std(ddof=1))
                if len(first) > 1
                else 0
            )
            lines.append(
                f"{split},{before},{after},{len(groups)},{first.mean():.6f},"
                f"{second.mean():.6f},{step.mean:.6f},{step.low:.6f},{step.high:.6f},"
                f"{spread:.6f}"
            )
            logger.info(
                "%s: %s %.4f -> %s %.4f, difference %+.4f [%+.4f, %+.4f]",
                split, before, first.mean(), after, second.mean(),
                step.mean, step.low, step.high,
            )  # fmt: skip
    write_text(table_path, "\n".join(lines) + "\n")


if __name__ == "__main__":
    with run_job(snakemake):
        params = snakemake.params
        files = iter(map(Path, snakemake.input.predictions))
        main(
            fold_paths=[Path(path) for path in snakemake.input.folds],
            predictions={
                arm: [
                    [[next(files) for _ in params.views] for _ in snakemake.input.folds]
                    for _ in range(params.n_seeds)
                ]
                for arm in params.arms
            },
            views=list(params.views),
            evaluation=params.evaluation,
            table_path=Path(snakemake.output.table),
        )

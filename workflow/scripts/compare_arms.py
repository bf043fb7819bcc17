"""Compare the arms of an ablation pair by pair, over folds and seeds."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    name: str,
    fold_paths: list[Path],
    predictions: dict[str, list[list[list[Path]]]],
    comparisons: list[tuple[str, str]],
    changes: dict[str, dict[str, Any]],
    unclean: list[str],
    views: list[str],
    evaluation: dict[str, Any],
    table_path: Path,
    page_path: Path,
) -> None:
    """Write one line a comparison and split, and the same as a page to read.

    Args:
        name: Of the ablation.
        fold_paths: The fold files.
        predictions: Arm to seeds, to folds, to one file a view.
        comparisons: Pairs of arms, before and after.
        changes: Arm to the settings that it changes.
        unclean: Arms that learn from teachers which saw their dev rows.
        views: The views of the files.
        evaluation: The ``evaluation`` settings.
        table_path: CSV with the columns ``arms.COLUMNS``; losses in nats.
        page_path: Markdown.
    """
    from prefdistill.report.arms import (
        COLUMNS,
        ablation_page,
        arm_losses,
        compare_losses,
    )
    from prefdistill.scores.metrics import read_labels
    from prefdistill.storage.whole_files import write_csv, write_text

    labels = [read_labels(path) for path in fold_paths]
    bootstrap = {key: evaluation[key] for key in ("n_bootstrap", "seed")}
    rows = []
    for split in ("dev", "test"):
        losses = {
            arm: arm_losses(labels, files, views, split)
            for arm, files in predictions.items()
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
    n_seeds = len(next(iter(predictions.values())))
    write_csv(table_path, rows, COLUMNS)
    page = ablation_page(name, rows, changes, n_seeds, len(fold_paths))
    write_text(page_path, page)


if __name__ == "__main__":
    with run_job(snakemake):
        params = snakemake.params
        files = iter(map(Path, snakemake.input.predictions))
        main(
            name=snakemake.wildcards.ablation,
            fold_paths=[Path(path) for path in snakemake.input.folds],
            predictions={
                arm: [
                    [[next(files) for _ in params.views] for _ in snakemake.input.folds]
                    for _ in range(params.n_seeds)
                ]
                for arm in params.changes
            },
            comparisons=list(map(tuple, params.comparisons)),
            changes=params.changes,
            unclean=list(params.unclean),
            views=list(params.views),
            evaluation=params.evaluation,
            table_path=Path(snakemake.output.table),
            page_path=Path(snakemake.output.page),
        )

"""Split clean pairs into folds and held-out rows, and write one file per fold.

A fold's file holds all that its jobs need: train, dev, select and test rows with texts
and targets. It holds no model names and no column derived from the labels. All files
are written in one pass over the clean table, in bounded memory.
"""

import logging
from pathlib import Path

from prefdistill.running.job import run_job
from prefdistill.settings import FoldSettings

logger = logging.getLogger(__name__)


def main(
    pairs: Path,
    folds: list[Path],
    post_pretrain: Path,
    unlabelled: Path,
    report: Path,
    settings: FoldSettings,
    pseudo: Path,
) -> None:
    """Plan the splits from a few columns, then stream the texts into the files."""
    import numpy as np

    from prefdistill.data.folds import SPLITS, describe_plan, plan_folds, write_splits
    from prefdistill.storage.records import write_json
    from prefdistill.storage.tables import TARGET_COLUMNS, open_table

    with open_table(pairs) as clean:
        keys = clean.read(columns=["source", "group", *TARGET_COLUMNS])
        source = np.array(keys.column("source").to_pylist())
        # Group names are 16 ASCII digits: bytes take a quarter of what unicode takes.
        groups = np.array(keys.column("group").to_pylist(), dtype="S16")
        targets = [keys.column(name).fill_null(0).to_numpy() for name in TARGET_COLUMNS]
        labels = np.argmax(targets, axis=0)
        plan = plan_folds(source, labels, groups, settings)

        names = np.array([*SPLITS, ""])
        files = {
            path: names[splits] for path, splits in zip(folds, plan.splits, strict=True)
        }
        files[post_pretrain] = np.where(plan.post_pretrain, "train", "")
        files[unlabelled] = np.where(plan.unlabelled, "unlabelled", "")
        files[pseudo] = np.where(plan.pseudo, "unlabelled", "")
        write_splits(clean, files)

    described = describe_plan(plan, source, labels)
    write_json(report, described)
    for fold, splits in described["folds"].items():
        counts = ", ".join(f"{name} {split['n']}" for name, split in splits.items())
        logger.info("fold %s: %s", fold, counts)
    logger.info(
        "post-pretrain %d, unlabelled %d, %s",
        described["post_pretrain"]["n"], described["n_unlabelled"], plan.report,
    )  # fmt: skip


if __name__ == "__main__":
    run_job(snakemake, main)

"""Split clean pairs into folds and held-out rows, and write one file per fold.

A fold's file holds train, dev, select and test rows with texts and targets, and no
model names and no column derived from the labels. All files are written in one pass.
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

    from prefdistill.data.folds import (
        SPLITS,
        describe_plan,
        plan_folds,
        read_keys,
        write_splits,
    )
    from prefdistill.storage.records import write_json
    from prefdistill.storage.tables import open_table

    with open_table(pairs) as clean:
        source, labels, groups = read_keys(clean)
        plan = plan_folds(source, labels, groups, settings)
        names = np.array([*SPLITS, ""])
        files = dict(zip(folds, (names[each] for each in plan.splits), strict=True))
        files[post_pretrain] = np.where(plan.post_pretrain, "train", "")
        files[unlabelled] = np.where(plan.unlabelled, "unlabelled", "")
        files[pseudo] = np.where(plan.pseudo, "unlabelled", "")
        write_splits(clean, files)

    described = describe_plan(plan, source, labels)
    write_json(report, described)
    for fold, splits in described["folds"].items():
        counts = [f"{name} {split['n']}" for name, split in splits.items()]
        logger.info("fold %s: %s", fold, ", ".join(counts))
    logger.info(
        "post-pretrain %d, unlabelled %d, %s",
        described["post_pretrain"]["n"], described["n_unlabelled"], plan.report,
    )  # fmt: skip


if __name__ == "__main__":
    run_job(snakemake, main)

"""Fit and score what needs no language model: class prior, length, surface trees."""

import logging
from pathlib import Path

from prefdistill.running.job import run_job

logger = logging.getLogger(__name__)


def main(
    folds: list[Path], unlabelled: Path | None, baselines: Path, seed: int
) -> None:
    """Fit per fold for dev, and once on all but select and test for those two.

    Args:
        folds: The fold files.
        unlabelled: Pairs to predict, scored as select and test are; or None.
        baselines: Where ``baselines.parquet`` goes.
        seed: Seed of the trees.
    """
    import pyarrow as pa

    from prefdistill.scores.baselines import BASELINES_SCHEMA, score_fold
    from prefdistill.storage.tables import FOLD_SCHEMA, read_table, write_table

    others = None if unlabelled is None else read_table(unlabelled, FOLD_SCHEMA)
    tables = []
    for fold, path in enumerate(folds):
        tables.append(score_fold(fold, read_table(path, FOLD_SCHEMA), others, seed))
        logger.info("fold %d: baselines fitted", fold)
    write_table(baselines, pa.concat_tables(tables), BASELINES_SCHEMA)


if __name__ == "__main__":
    run_job(snakemake, main)

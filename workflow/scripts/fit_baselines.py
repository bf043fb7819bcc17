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
        baselines: ``baselines.parquet``.
        seed: Seed of the trees.
    """
    import numpy as np
    import pyarrow as pa

    from prefdistill.scores.baselines import (
        BASELINES_SCHEMA,
        baseline_table,
        fit_baselines,
        pair_features,
    )
    from prefdistill.scores.metrics import labels_of, null_rows, with_unlabelled
    from prefdistill.storage.tables import FOLD_SCHEMA, read_table, write_table

    tables = []
    for fold, path in enumerate(folds):
        table = read_table(path, FOLD_SCHEMA)
        labels = labels_of(table)
        used = null_rows(labels) | (labels.split != "train")
        table, labels = table.filter(pa.array(used)), labels.rows(used)
        if fold == 0 and unlabelled is not None:
            others = read_table(unlabelled, FOLD_SCHEMA)
            table = pa.concat_tables([table, others])
            labels = with_unlabelled(labels, others)
        features = pair_features(table)
        parts = [(fold, labels.split == "train", labels.split == "dev")]
        if fold == 0:
            kept_aside = ~np.isin(labels.split, ["train", "dev"])
            parts.append((-1, ~kept_aside, kept_aside))
        for number, train, scored in parts:
            probs = fit_baselines(features, labels, train, scored, seed)
            tables.append(baseline_table(number, labels.rows(scored), probs))
        logger.info("fold %d: %d rows, baselines fitted", fold, len(labels.ids))
    write_table(baselines, pa.concat_tables(tables), BASELINES_SCHEMA)


if __name__ == "__main__":
    run_job(snakemake, main)

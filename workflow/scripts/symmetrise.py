"""Combine a judge's views into probabilities of (A, B, tie), calibrated and raw."""

from pathlib import Path

from prefdistill.running.job import run_job


def main(
    logits: Path,
    calibration: Path,
    trees: Path | None,
    symmetrised: Path,
    trees_weight: float,
) -> None:
    """Average calibrated and raw probabilities over the views, write both.

    Args:
        logits: The judge's logits in all views.
        calibration: The judge's own scaling.
        trees: ``baselines.parquet``, whose trees are pooled with the calibrated
            probabilities; or None.
        symmetrised: Where ``symmetrised.parquet`` goes.
        trees_weight: ``predict.trees_weight``, the share of the trees.
    """
    import numpy as np
    import pyarrow as pa

    from prefdistill.report.predictions import trees_probabilities
    from prefdistill.scores.scaling import read_scaling
    from prefdistill.scores.views import SYMMETRISED_SCHEMA, pool_opinions, symmetrise
    from prefdistill.storage.logits import read_logits
    from prefdistill.storage.tables import write_table

    fit, scores = read_scaling(calibration), read_logits(logits)
    calibrated = symmetrise(fit.apply(scores.logits), scores.views)
    raw = symmetrise(scores.logits, scores.views)
    if trees is not None:
        others = trees_probabilities(trees, scores.ids)
        calibrated = pool_opinions(calibrated, others, trees_weight)
    columns = [scores.ids.tolist(), scores.split.tolist()]
    columns += [*np.hstack([calibrated, raw]).T]
    table = pa.Table.from_arrays(list(map(pa.array, columns)), SYMMETRISED_SCHEMA.names)
    write_table(symmetrised, table, SYMMETRISED_SCHEMA)


if __name__ == "__main__":
    run_job(snakemake, main)

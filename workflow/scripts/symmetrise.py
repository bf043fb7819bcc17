"""Combine a judge's views into probabilities of (A, B, tie), calibrated and raw."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    import numpy as np
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    prediction_paths: list[Path],
    calibration_path: Path,
    output_path: Path,
    views: list[str],
    trees_path: Path | None = None,
    trees_weight: float = 0.0,
) -> None:
    """Join the views by id, average calibrated and raw probabilities, write both.

    Args:
        prediction_paths: One file per view.
        calibration_path: The judge's own scaling.
        output_path: ``symmetrised.parquet``.
        views: The views.
        trees_path: ``baselines.parquet``, whose trees are pooled with the calibrated
            probabilities; or None.
        trees_weight: ``predict.trees_weight``, the share of the trees.
    """
    import numpy as np
    import pyarrow as pa

    from prefdistill.scores.scaling import read_scaling
    from prefdistill.scores.views import (
        SYMMETRISED_SCHEMA,
        pool_opinions,
        read_predictions,
    )
    from prefdistill.scores.views import symmetrise as average_views
    from prefdistill.storage.tables import write_table

    fit = read_scaling(calibration_path)
    scores = read_predictions(prediction_paths, views)
    calibrated = average_views(fit.apply(scores.logits), views)
    raw = average_views(scores.logits, views)
    if trees_path is not None:
        trees = trees_of(scores.ids, trees_path)
        calibrated = pool_opinions(calibrated, trees, trees_weight)
    probs = np.hstack([calibrated, raw])
    columns = [scores.ids.tolist(), scores.split.tolist(), *probs.T]
    table = pa.Table.from_arrays(list(map(pa.array, columns)), SYMMETRISED_SCHEMA.names)
    write_table(output_path, table, SYMMETRISED_SCHEMA)


def trees_of(ids: "np.ndarray", path: Path) -> "np.ndarray":
    """The trees' probabilities of rows kept aside from their training, ``(n, 3)``.

    Raises:
        UserError: If the file lacks one of the rows.
    """
    import numpy as np

    from prefdistill.errors import UserError
    from prefdistill.report.stages import from_baselines

    probs: dict[str, np.ndarray] = {}
    for each in from_baselines(path, ("select", "test", "unlabelled")):
        if each.stage == "trees":
            probs |= zip(each.ids.tolist(), each.averaged(), strict=True)
    missing = [name for name in ids.tolist() if name not in probs]
    if missing:
        raise UserError(f"{path}: the trees lack row id {missing[0]}")
    return np.array([probs[name] for name in ids.tolist()])


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            prediction_paths=[Path(path) for path in snakemake.input.predictions],
            calibration_path=Path(snakemake.input.calibration),
            output_path=Path(snakemake.output[0]),
            views=list(snakemake.params.views),
            trees_path=next(map(Path, snakemake.input.trees), None),
            trees_weight=snakemake.params.trees_weight,
        )

"""Combine a judge's views into probabilities of (A, B, tie), calibrated and raw."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    budget_path: Path | None = None,
    tables: list[Path] | None = None,
    priors: dict[str, Any] | None = None,
    trees_path: Path | None = None,
    trees_weight: float = 0.0,
) -> None:
    """Join the views by id, average calibrated and raw probabilities, write both.

    Args:
        prediction_paths: One file per view.
        calibration_path: The judge's own scaling.
        output_path: ``symmetrised.parquet``.
        views: The views.
        budget_path: ``second_view.json``, if only uncertain rows use the second view.
        tables: Tables with the texts of all rows, for ``priors``.
        priors: ``predict.known_priors``; replaces the calibrated probabilities of rows
            with an empty answer or two equal ones. None leaves them to the model.
        trees_path: ``baselines.parquet``, whose trees are pooled with the calibrated
            probabilities; or None.
        trees_weight: ``predict.trees_weight``, the share of the trees.
    """
    import numpy as np
    import pyarrow as pa

    from prefdistill.scores.budget import combine_views
    from prefdistill.scores.scaling import read_scaling
    from prefdistill.scores.views import (
        SYMMETRISED_SCHEMA,
        pool_opinions,
        read_predictions,
    )
    from prefdistill.scores.views import symmetrise as average_views
    from prefdistill.storage.tables import read_json, write_table

    fit = read_scaling(calibration_path)
    if budget_path is None:
        scores = read_predictions(prediction_paths, views)
        calibrated = average_views(fit.apply(scores.logits), views)
        raw = average_views(scores.logits, views)
    else:
        scores = read_predictions(prediction_paths[:1], views[:1])
        second = read_predictions(prediction_paths[1:], views[1:])
        both = scores.select(scores.rows_of(second.ids))
        both = both.replace_logits(np.concatenate([both.logits, second.logits], axis=1))
        record = read_json(budget_path)
        calibrated, raw = combine_views(scores, both, fit, views, record)
    if trees_path is not None:
        trees = trees_of(scores.ids, trees_path)
        calibrated = pool_opinions(calibrated, trees, trees_weight)
    if priors is not None:
        calibrated = with_priors(scores.ids, calibrated, tables, priors)
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


def with_priors(
    ids: "np.ndarray", probs: "np.ndarray", tables: list[Path], priors: dict[str, Any]
) -> "np.ndarray":
    """Calibrated probabilities with the known priors in place; counts are logged."""
    import numpy as np
    import pyarrow as pa

    from prefdistill.scores.known_priors import KINDS, apply_priors, row_kinds
    from prefdistill.storage.tables import FOLD_SCHEMA, read_table

    table = pa.concat_tables([read_table(path, FOLD_SCHEMA) for path in tables])
    kinds, b_empty = row_kinds(table)
    place = {name: row for row, name in enumerate(table.column("id").to_pylist())}
    rows = np.array([place[name] for name in ids.tolist()], dtype=np.int64)
    kinds, b_empty = kinds[rows], b_empty[rows]
    counts = [f"{kind} {np.count_nonzero(kinds == kind)}" for kind in KINDS]
    logger.info("known priors: %s of %d rows", ", ".join(counts), len(ids))
    return apply_priors(probs, kinds, b_empty, priors)


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            prediction_paths=[Path(path) for path in snakemake.input.predictions],
            calibration_path=Path(snakemake.input.calibration),
            output_path=Path(snakemake.output[0]),
            views=list(snakemake.params.views),
            budget_path=next(map(Path, snakemake.input.budget), None),
            tables=[Path(path) for path in snakemake.input.tables],
            priors=snakemake.params.known_priors,
            trees_path=next(map(Path, snakemake.input.trees), None),
            trees_weight=snakemake.params.trees_weight,
        )

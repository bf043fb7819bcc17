"""Combine a judge's views into probabilities of (A, B, tie), calibrated and raw."""

from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(
    prediction_paths: list[Path],
    calibration_path: Path,
    output_path: Path,
    views: list[str],
    budget_path: Path | None = None,
) -> None:
    """Join the views by id, average calibrated and raw probabilities, write both.

    Args:
        prediction_paths: One file per view.
        calibration_path: The judge's own scaling.
        output_path: ``symmetrised.parquet``.
        views: The views.
        budget_path: ``second_view.json``, if only uncertain rows use the second view.
    """
    import numpy as np
    import pyarrow as pa

    from prefdistill.budget import combine_views
    from prefdistill.io import read_json, write_table
    from prefdistill.scaling import read_scaling
    from prefdistill.tta import SYMMETRISED_SCHEMA, read_predictions
    from prefdistill.tta import symmetrise as average_views

    fit = read_scaling(read_json(calibration_path))
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
    probs = np.hstack([calibrated, raw])
    columns = [scores.ids.tolist(), scores.split.tolist(), *probs.T]
    table = pa.Table.from_arrays(list(map(pa.array, columns)), SYMMETRISED_SCHEMA.names)
    write_table(output_path, table, SYMMETRISED_SCHEMA)


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            prediction_paths=[Path(path) for path in snakemake.input.predictions],
            calibration_path=Path(snakemake.input.calibration),
            output_path=Path(snakemake.output[0]),
            views=list(snakemake.params.views),
            budget_path=next(map(Path, snakemake.input.budget), None),
        )

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
) -> None:
    """Join the views by id, average calibrated and raw probabilities, write both."""
    import numpy as np
    import pyarrow as pa

    from prefdistill.io import write_table
    from prefdistill.scaling import read_scaling
    from prefdistill.tta import SYMMETRISED_SCHEMA, read_predictions
    from prefdistill.tta import symmetrise as average_views

    scores = read_predictions(prediction_paths, views)
    fit = read_scaling(calibration_path)
    calibrated = average_views(fit.apply(scores.logits), views)
    probs = np.hstack([calibrated, average_views(scores.logits, views)])
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
        )

"""Fit a judge's own tied scaling on the split select."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    prediction_paths: list[Path],
    fold_path: Path,
    calibration_path: Path,
    views: list[str],
    method: str,
) -> None:
    """Read a judge's predictions, fit on select, write the scaling and its effect."""
    from prefdistill.calibration import calibrate_judge
    from prefdistill.io import write_json
    from prefdistill.metrics import read_labels
    from prefdistill.tta import read_predictions

    scores = read_predictions(prediction_paths, views)
    _, record = calibrate_judge(scores, read_labels(fold_path), views, method)
    logger.info(
        "log loss on %d rows %.4f -> %.4f",
        record["n_select"], record["nll_before"], record["nll_after"],
    )  # fmt: skip
    write_json(calibration_path, record)


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            prediction_paths=[Path(path) for path in snakemake.input.predictions],
            fold_path=Path(snakemake.input.fold),
            calibration_path=Path(snakemake.output.calibration),
            views=list(snakemake.params.views),
            method=snakemake.params.method,
        )

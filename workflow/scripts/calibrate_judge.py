"""Fit a judge's own tied scaling on the split select.

A judge that is a folder of its own (merged, GPTQ) gets ``judge.json`` as well, after
which the folder can be used by itself: see ``judge_settings``.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    prediction_paths: list[Path],
    fold_path: Path,
    calibration_path: Path,
    views: list[str],
    method: str,
    text: dict[str, Any] | None = None,
) -> None:
    """Read a judge's predictions, fit on select, write the scaling and its effect.

    Args:
        prediction_paths: One file a view.
        fold_path: Has the labels of select.
        calibration_path: Gets the scaling.
        views: The views.
        method: ``calibration.judge``.
        text: The ``text`` settings, where ``judge.json`` is wanted beside the scaling.
    """
    from prefdistill.export.judge_settings import write_judge_settings
    from prefdistill.scores.calibration import calibrate_judge
    from prefdistill.scores.metrics import read_labels
    from prefdistill.scores.views import read_predictions
    from prefdistill.storage.tables import write_json

    scores = read_predictions(prediction_paths, views, splits=["select"])
    _, record = calibrate_judge(scores, read_labels(fold_path), views, method)
    logger.info(
        "log loss on %d rows %.4f -> %.4f",
        record["n_select"], record["nll_before"], record["nll_after"],
    )  # fmt: skip
    write_json(calibration_path, record)
    if text:
        write_judge_settings(calibration_path.parent, text, views)


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            prediction_paths=[Path(path) for path in snakemake.input.predictions],
            fold_path=Path(snakemake.input.fold),
            calibration_path=Path(snakemake.output.calibration),
            views=list(snakemake.params.views),
            method=snakemake.params.method,
            text=snakemake.params.text,
        )

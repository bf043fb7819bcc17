"""Choose the rows that a judge is shown in the second order too, on select."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    first_path: Path,
    fold_path: Path,
    record_path: Path,
    view: str,
    share: float,
    method: str,
) -> None:
    """Read the first view's predictions, write its scaling and the threshold."""
    from prefdistill.scores.budget import choose_rows
    from prefdistill.scores.calibration import calibrate_judge
    from prefdistill.scores.metrics import read_labels
    from prefdistill.scores.views import read_predictions
    from prefdistill.storage.tables import write_json

    scores = read_predictions([first_path], [view])
    labels = read_labels(fold_path)
    _, calibration = calibrate_judge(scores, labels, [view], method)
    record = choose_rows(scores, labels, view, share, calibration)
    shares = ", ".join(f"{k} {v:.1%}" for k, v in record["shares"].items())
    logger.info("entropy of at least %.4f nats: %s", record["threshold"], shares)
    write_json(record_path, record)


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            first_path=Path(snakemake.input.first),
            fold_path=Path(snakemake.input.fold),
            record_path=Path(snakemake.output[0]),
            view=snakemake.params.view,
            share=snakemake.params.share,
            method=snakemake.params.method,
        )

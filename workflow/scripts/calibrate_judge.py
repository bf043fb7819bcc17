"""Fit a judge's own tied scaling on the split select.

A judge that is a folder of its own (merged, GPTQ) gets ``judge.json`` as well, after
which the folder can be used by itself: see ``judge_settings``.
"""

import logging
from pathlib import Path
from typing import Any

from prefdistill.running.job import run_job

logger = logging.getLogger(__name__)


def main(
    logits: Path,
    fold: Path,
    calibration: Path,
    method: str,
    text: dict[str, Any] | None = None,
) -> None:
    """Read a judge's logits, fit on select, write the scaling and its effect.

    Args:
        logits: The judge's.
        fold: Has the labels of select.
        calibration: Gets the scaling.
        method: ``calibration.judge``.
        text: The ``text`` settings, where ``judge.json`` is wanted beside the scaling.
    """
    from prefdistill.export.judge_settings import write_judge_settings
    from prefdistill.scores.calibration import calibrate_judge
    from prefdistill.scores.metrics import read_labels
    from prefdistill.storage.logits import read_logits
    from prefdistill.storage.records import write_json

    scores = read_logits(logits)
    _, record = calibrate_judge(scores, read_labels(fold), method)
    logger.info(
        "log loss on %d rows %.4f -> %.4f",
        record["n_select"], record["nll_before"], record["nll_after"],
    )  # fmt: skip
    write_json(calibration, record)
    if text:
        write_judge_settings(calibration.parent, text, scores.views)


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            logits=Path(snakemake.input.logits),
            fold=Path(snakemake.input.fold),
            calibration=Path(snakemake.output.calibration),
            method=snakemake.params.method,
            text=snakemake.params.text,
        )

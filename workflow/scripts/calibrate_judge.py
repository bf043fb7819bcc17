"""Fit a judge's own tied scaling on the split select.

A judge that is a folder of its own (merged, GPTQ) gets ``judge.json`` as well. Then the
folder can be used by itself: see ``export.judge_settings``.
"""

import logging
from pathlib import Path

from prefdistill.running.job import run_job
from prefdistill.settings import TextSettings

logger = logging.getLogger(__name__)


def main(
    logits: Path,
    fold: Path,
    calibration: Path,
    method: str,
    text: TextSettings | None = None,
) -> None:
    """Read a judge's logits, fit on select, write the scaling and its effect.

    Args:
        logits: The judge's logits.
        fold: The fold file that holds the labels of select.
        calibration: Where ``calibration.json`` goes.
        method: ``calibration.judge``.
        text: How pairs become tokens, where ``judge.json`` is wanted beside the
            scaling.
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
        write_judge_settings(
            calibration.parent, text, scores.views, scores.meta["base"]
        )


if __name__ == "__main__":
    run_job(snakemake, main)

"""Fit a teacher's scaling on its dev rows and apply it to all of its logits."""

import logging
from pathlib import Path

from prefdistill.errors import DamagedFile
from prefdistill.running.job import run_job
from prefdistill.settings import ScalingSettings

logger = logging.getLogger(__name__)


def main(
    logits: Path,
    adapter: Path,
    fold: Path,
    calibrated: Path,
    record: Path,
    scaling: ScalingSettings,
) -> None:
    """Read logits and labels, fit, write calibrated logits and the record.

    Args:
        logits: The teacher's logits.
        adapter: The teacher's adapter, which must be the one that made them.
        fold: The fold's rows, with labels.
        calibrated: Where the calibrated logits go.
        record: Where the record of the fit goes.
        scaling: How the logits are scaled.

    Raises:
        DamagedFile: If the logits are of another adapter.
    """
    from prefdistill.scores.calibration import apply_to_teacher, calibrate_teacher
    from prefdistill.scores.metrics import read_labels
    from prefdistill.storage.digests import file_digest
    from prefdistill.storage.logits import read_logits, write_logits
    from prefdistill.storage.records import write_json

    scores = read_logits(logits)
    if scores.meta.get("adapter") != file_digest(adapter):
        raise DamagedFile(logits, f"its logits are of another adapter than {adapter}")
    fit, effect = calibrate_teacher(scores, read_labels(fold), scaling)
    gate = effect["gate"]
    logger.info(
        "log loss %.4f -> %.4f, ECE %.4f -> %.4f, information gain %.4f (%.4f to %.4f)",
        effect["nll_before"], effect["nll_after"],
        effect["ece_before"], effect["ece_after"],
        gate["information_gain"], gate["low"], gate["high"],
    )  # fmt: skip
    scaled = apply_to_teacher(scores, fit, file_digest(logits))
    write_logits(calibrated, scaled)
    write_json(record, effect)


if __name__ == "__main__":
    run_job(snakemake, main)

"""Fit a teacher's scaling on its dev rows and apply it to all of its logits."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.errors import DamagedFile
from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    logits_path: Path,
    adapter_path: Path,
    fold_path: Path,
    calibrated_path: Path,
    calibration_path: Path,
    method: str,
    tied: bool,
) -> None:
    """Read logits and labels, fit, write calibrated logits and the record.

    Raises:
        UserError: If the logits are not those of the adapter that lies there.
    """
    from dataclasses import replace

    from prefdistill.scores.calibration import calibrate_teacher, fingerprint
    from prefdistill.scores.metrics import read_labels
    from prefdistill.storage.tables import (
        VIEWS,
        file_digest,
        read_logits,
        write_json,
        write_logits,
    )

    scores = read_logits(logits_path)
    if scores.meta.get("adapter") != file_digest(adapter_path):
        raise DamagedFile(
            logits_path, f"its logits are of another adapter than {adapter_path}"
        )
    fit, record = calibrate_teacher(
        scores, read_labels(fold_path), VIEWS, method=method, tied=tied
    )
    gate = record["gate"]
    logger.info(
        "log loss %.4f -> %.4f, ECE %.4f -> %.4f, information gain %.4f (%.4f to %.4f)",
        record["nll_before"], record["nll_after"],
        record["ece_before"], record["ece_after"],
        gate["information_gain"], gate["low"], gate["high"],
    )  # fmt: skip
    scaled = scores.replace_logits(fit.apply(scores.logits))
    applied = {
        "method": fit.method,
        "tied": fit.tied,
        "a": fit.a,
        "b": fit.b,
        "fingerprint": fingerprint(fit, file_digest(logits_path)),
    }
    write_logits(
        calibrated_path, replace(scaled, meta={**scores.meta, "calibration": applied})
    )
    write_json(calibration_path, record)


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            logits_path=Path(snakemake.input.logits),
            adapter_path=Path(snakemake.input.adapter),
            fold_path=Path(snakemake.input.fold),
            calibrated_path=Path(snakemake.output.calibrated),
            calibration_path=Path(snakemake.output.calibration),
            method=snakemake.params.calibration["method"],
            tied=snakemake.params.calibration["tied"],
        )

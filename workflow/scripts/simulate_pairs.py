"""Simulate answer pairs in Kaggle's form, and write the judge's probabilities.

No public preference data may be shipped with the project, so the demo simulates its
own. The judge's probabilities are known, and so is the best possible log loss.
"""

import logging
from pathlib import Path

from prefdistill.running.job import run_job
from prefdistill.settings import SimulationSettings
from prefdistill.simulation.simulated_files import write_simulation

logger = logging.getLogger(__name__)


def main(
    train: Path,
    extra: Path,
    ultra: Path,
    test: Path,
    truth: Path,
    settings: SimulationSettings,
) -> None:
    """Write the CSV files of all sources and the truth, and log their counts."""
    paths = {"train": train, "extra": extra, "ultra": ultra, "test": test}
    for source, report in write_simulation(paths, truth, settings).items():
        dirt = ", ".join(f"{n} {kind}" for kind, n in sorted(report["dirt"].items()))
        logger.info("%s: %d rows; dirty: %s", source, report["n_rows"], dirt or "none")
        if report["bayes_log_loss"] is not None and source != "test":
            logger.info("%s: Bayes log loss %.4f", source, report["bayes_log_loss"])


if __name__ == "__main__":
    run_job(snakemake, main)

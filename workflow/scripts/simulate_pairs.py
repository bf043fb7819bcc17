"""Simulate answer pairs in Kaggle's form, and write the judge's probabilities.

No public preference data may be shipped with the project, so the demo simulates its
own. The judge's probabilities are known, and so is the best possible log loss.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job
from prefdistill.simulation.simulated_files import SOURCES, write_simulation

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(paths: dict[str, Path], truth_path: Path, settings: dict[str, Any]) -> None:
    """Write the CSV files of all sources and the truth, and log their counts."""
    for source, report in write_simulation(paths, truth_path, settings).items():
        dirt = ", ".join(f"{n} {kind}" for kind, n in sorted(report["dirt"].items()))
        logger.info("%s: %d rows; dirty: %s", source, report["n_rows"], dirt or "none")
        if report["bayes_log_loss"] is not None and source != "test":
            logger.info("%s: Bayes log loss %.4f", source, report["bayes_log_loss"])


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            paths={source: Path(snakemake.output[source]) for source in SOURCES},
            truth_path=Path(snakemake.output.truth),
            settings=dict(snakemake.params.settings),
        )

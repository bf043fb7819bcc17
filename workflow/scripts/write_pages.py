"""Write the report's pages: scores, data, models, and the record of the run."""

from pathlib import Path
from typing import Any

from prefdistill.report.inputs import PageFiles
from prefdistill.running.job import run_job


def main(
    inputs: PageFiles,
    outputs: dict[str, Path],
    judges: list[str],
    teachers: list[str],
    config: dict[str, Any],
    benchmarks: Path = Path("logs/benchmarks"),
    logs: Path = Path("logs"),
) -> None:
    """Read the report's tables and the run's records; write four pages.

    Args:
        inputs: Files to read.
        outputs: Where the pages ``scores``, ``data``, ``models`` and ``run`` go.
        judges: The name of each exported model.
        teachers: The name of each teacher's fold.
        config: The configuration with its defaults.
        benchmarks: Folder of Snakemake's timing files.
        logs: Folder of the jobs' logs.
    """
    from prefdistill.report.pages import report_pages
    from prefdistill.storage.whole_files import write_text

    pages = report_pages(inputs, judges, teachers, config, (benchmarks, logs))
    for name, page in pages.items():
        write_text(outputs[name], page)


if __name__ == "__main__":
    run_job(snakemake, main)

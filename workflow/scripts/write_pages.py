"""Write the report's pages: scores, data, models, and what the run was."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdistill.running.job import run_job


@dataclass(frozen=True)
class Inputs:
    """What the pages show: the report's tables, records, and files to fingerprint."""

    scores: Path
    steps: Path
    cleaning: Path
    folds: Path  # folds.json
    lengths: Path
    teacher_calibrations: list[Path]  # by teacher and fold
    judge_calibrations: list[Path]
    weights: Path
    fingerprinted: list[Path]


def main(
    inputs: Inputs,
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
        benchmarks: Folder of the benchmark files.
        logs: Folder of the jobs' logs.
    """
    from prefdistill.report.pages import (
        data_page,
        models_page,
        record_page,
        scores_page,
    )
    from prefdistill.report.tables import read_rows, rows_on_test
    from prefdistill.storage.records import read_json
    from prefdistill.storage.whole_files import write_text

    scores = rows_on_test(read_rows(inputs.scores), judges)
    of_teachers = map(read_json, inputs.teacher_calibrations)
    of_judges = map(read_json, inputs.judge_calibrations)
    written = {
        "scores": scores_page(scores, read_rows(inputs.steps)),
        "data": data_page(
            cleaning=read_json(inputs.cleaning),
            folds=read_json(inputs.folds),
            lengths=read_json(inputs.lengths),
        ),
        "models": models_page(
            dict(zip(teachers, of_teachers, strict=True)),
            dict(zip(judges, of_judges, strict=True)),
            read_json(inputs.weights),
            config["distillation"]["teacher_gate"],
        ),
        "run": record_page(config, inputs.fingerprinted, benchmarks, logs),
    }
    for name, page in written.items():
        write_text(outputs[name], page)


if __name__ == "__main__":
    run_job(snakemake, main)

"""Write the report's pages: scores, data, models, and what the run was."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(
    scores_path: Path,
    steps_path: Path,
    data_paths: dict[str, Path],
    teacher_paths: dict[str, Path],
    judge_paths: dict[str, Path],
    weights_path: Path,
    fingerprinted: list[Path],
    page_paths: dict[str, Path],
    judges: list[str],
    config: dict[str, Any],
    benchmarks: Path,
    logs: Path,
) -> None:
    """Read the report's tables and the run's records; write four pages.

    Args:
        scores_path: ``scores.csv``.
        steps_path: ``steps.csv``.
        data_paths: ``cleaning``, ``folds`` and ``lengths``, JSON files.
        teacher_paths: ``calibration.json`` by teacher and fold.
        judge_paths: ``calibration.json`` by exported model.
        weights_path: The ensemble's ``weights.json``.
        fingerprinted: Files whose digests are shown.
        page_paths: Where the pages ``scores``, ``data``, ``models`` and ``run`` go.
        judges: Names of the exported models.
        config: The configuration with its defaults.
        benchmarks: Folder of the benchmark files.
        logs: Folder of the jobs' logs.
    """
    import yaml

    from prefdistill.report.pages import data_page, models_page, run_page, scores_page
    from prefdistill.report.run_record import (
        file_digests,
        read_times,
        read_versions,
        rule_rows,
    )
    from prefdistill.report.tables import read_rows, rows_on_test
    from prefdistill.storage.tables import read_json
    from prefdistill.storage.whole_files import write_text

    scores = rows_on_test(read_rows(scores_path), judges)
    gpus = {name: teacher["gpus"] for name, teacher in config["teachers"].items()}
    gpus["student"] = config["student"]["gpus"]
    pages = {
        "scores": scores_page(scores, read_rows(steps_path)),
        "data": data_page(**{k: read_json(path) for k, path in data_paths.items()}),
        "models": models_page(
            {name: read_json(path) for name, path in teacher_paths.items()},
            {name: read_json(path) for name, path in judge_paths.items()},
            read_json(weights_path),
            config["distillation"]["teacher_gate"],
        ),
        "run": run_page(
            rule_rows(read_times(benchmarks, logs, gpus)),
            read_versions(Path(__file__).parent),
            file_digests(fingerprinted),
            yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        ),
    }
    for name, page in pages.items():
        write_text(page_paths[name], page)


if __name__ == "__main__":
    with run_job(snakemake):
        source, params = snakemake.input, snakemake.params
        main(
            scores_path=Path(source.scores),
            steps_path=Path(source.steps),
            data_paths={k: Path(source[k]) for k in ("cleaning", "folds", "lengths")},
            teacher_paths=dict(
                zip(params.teachers, map(Path, source.teachers), strict=True)
            ),
            judge_paths=dict(zip(params.judges, map(Path, source.judges), strict=True)),
            weights_path=Path(source.weights),
            fingerprinted=[Path(path) for path in source.fingerprinted],
            page_paths={k: Path(v) for k, v in snakemake.output.items()},
            judges=list(params.judges),
            config=dict(snakemake.config),
            benchmarks=Path("logs/benchmarks"),
            logs=Path("logs"),
        )

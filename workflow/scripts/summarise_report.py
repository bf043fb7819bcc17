"""Write the report's summary: scores, steps, cleaning, gates, calibrations, paths."""

from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(
    scores_path: Path,
    steps_path: Path,
    cleaning_path: Path,
    teacher_paths: dict[str, Path],
    judge_paths: dict[str, Path],
    summary_path: Path,
    judges: list[str],
    teacher_gate: str,
    paths: dict[str, str],
) -> None:
    """Read the report's tables and every calibration, and write one Markdown file.

    Args:
        scores_path: ``scores.csv``.
        steps_path: ``steps.csv``.
        cleaning_path: ``cleaning.json``.
        teacher_paths: ``calibration.json`` by teacher and fold.
        judge_paths: ``calibration.json`` by exported model.
        summary_path: Where the summary goes.
        judges: Names of the exported models.
        teacher_gate: What the gate does: refuse, warn or off.
        paths: Files to point at, by what they are.
    """
    from prefdistill.report.tables import read_rows, rows_on_test, summary_text
    from prefdistill.storage.tables import read_json
    from prefdistill.storage.whole_files import write_text

    teachers = {name: read_json(path) for name, path in teacher_paths.items()}
    exported = {name: read_json(path) for name, path in judge_paths.items()}
    text = summary_text(
        rows_on_test(read_rows(scores_path), judges),
        read_rows(steps_path),
        read_json(cleaning_path),
        teachers,
        exported,
        teacher_gate,
        {**paths, "summary": str(summary_path)},
    )
    write_text(summary_path, text)


if __name__ == "__main__":
    with run_job(snakemake):
        source, params = snakemake.input, snakemake.params
        main(
            scores_path=Path(source.scores),
            steps_path=Path(source.steps),
            cleaning_path=Path(source.cleaning),
            teacher_paths=dict(
                zip(params.teachers, map(Path, source.teachers), strict=True)
            ),
            judge_paths=dict(zip(params.judges, map(Path, source.judges), strict=True)),
            summary_path=Path(snakemake.output.summary),
            judges=list(params.judges),
            teacher_gate=params.teacher_gate,
            paths={
                "submission": next(
                    iter(source.submission), "none, as data.test is null"
                ),
                "scores": source.scores,
                "steps": source.steps,
                "figures": ", ".join(source.figures),
            },
        )

"""Write the report's summary: scores, steps, cleaning, gates, calibrations, paths."""

from pathlib import Path

from prefdistill.report.inputs import SummaryFiles
from prefdistill.running.job import run_job


def main(
    inputs: SummaryFiles,
    summary: Path,
    judges: list[str],
    teachers: list[str],
    teacher_gate: str,
) -> None:
    """Read the report's tables and every calibration, and write one Markdown file.

    Args:
        inputs: Files to read or to point at.
        summary: Where the summary goes.
        judges: The name of each exported model.
        teachers: The name of each teacher's fold.
        teacher_gate: What the gate does: refuse, warn or off.
    """
    from prefdistill.report.markdown_tables import (
        read_records,
        read_rows,
        rows_on_test,
        summary_text,
    )
    from prefdistill.storage.records import read_json
    from prefdistill.storage.whole_files import write_text

    text = summary_text(
        rows_on_test(read_rows(inputs.scores), judges),
        read_rows(inputs.steps),
        read_json(inputs.cleaning),
        read_records(teachers, inputs.teacher_calibrations),
        read_records(judges, inputs.judge_calibrations),
        teacher_gate,
        {
            "submission": str(inputs.submission or "none, as data.test is null"),
            "scores": str(inputs.scores),
            "steps": str(inputs.steps),
            "figures": ", ".join(map(str, inputs.figures)),
            "summary": str(summary),
        },
    )
    write_text(summary, text)


if __name__ == "__main__":
    run_job(snakemake, main)

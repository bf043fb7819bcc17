"""Draw the report's figures of what the stages predict and how they were trained."""

from pathlib import Path

from prefdistill.report.inputs import FigureFiles
from prefdistill.running.job import run_job


def main(
    inputs: FigureFiles,
    outputs: dict[str, Path],
    teachers: list[str],
    judges: list[str],
    runs: list[str],
    n_bins: int,
) -> None:
    """Draw the figures and write each to its file.

    Args:
        inputs: Files to read.
        outputs: Where each figure goes, by its name in ``draw_figures``.
        teachers: Names of the teachers.
        judges: Names of the exported models.
        runs: The name of each curve, ``model/run``.
        n_bins: Bins of confidence.
    """
    from prefdistill.report.drawing import save_figure
    from prefdistill.report.figures import draw_figures

    names = {"teachers": teachers, "judges": judges, "runs": runs}
    for name, figure in draw_figures(inputs, **names, n_bins=n_bins).items():
        save_figure(figure, outputs[name])


if __name__ == "__main__":
    run_job(snakemake, main)

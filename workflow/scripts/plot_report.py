"""Draw the report's figures of what the stages predict and how they were trained."""

from dataclasses import dataclass
from pathlib import Path

from prefdistill.running.job import run_job


@dataclass(frozen=True)
class Inputs:
    """What the figures are drawn from."""

    scores: Path
    folds: list[Path]
    logits: list[Path]  # of each fold, teacher by teacher
    calibrated: list[Path]  # likewise
    final: Path  # the final model's symmetrised predictions
    curves: list[Path]  # train.jsonl of each run
    weights: Path  # of the folds in the ensemble
    rows: list[Path]  # rows.json of each student: what its rows counted for


def main(
    inputs: Inputs,
    outputs: dict[str, Path],
    teachers: list[str],
    judges: list[str],
    runs: list[str],
    n_bins: int,
) -> None:
    """Draw six figures.

    Args:
        inputs: Files to read.
        outputs: Where each figure goes: ``stages``, ``reliability``, ``confusion``,
            ``swap``, ``curves`` and ``weights``.
        teachers: Names of the teachers.
        judges: Names of the exported models.
        runs: The name of each curve, ``model/run``.
        n_bins: Bins of confidence.
    """
    from prefdistill.report.figures import (
        draw_confusion,
        draw_curves,
        draw_reliability,
        draw_stages,
        draw_swap,
        draw_weights,
        save_figure,
    )
    from prefdistill.report.stages import read_all_labels, reliability_panels
    from prefdistill.report.tables import (
        one_per_stage,
        read_curve,
        read_rows,
        rows_on_test,
        stage_order,
    )
    from prefdistill.storage.records import read_json

    rows = one_per_stage(rows_on_test(read_rows(inputs.scores), judges))
    logits = list(zip(inputs.logits, inputs.calibrated, strict=True))
    n_folds = len(inputs.folds)
    by_teacher = {
        name: logits[place * n_folds : (place + 1) * n_folds]
        for place, name in enumerate(teachers)
    }
    labels = read_all_labels(inputs.folds)
    panels = reliability_panels(by_teacher, inputs.final, labels)
    curves = map(read_curve, inputs.curves)
    students = {path.parent.name: read_json(path) for path in inputs.rows}
    spreads = {
        name: record["weight_quantiles"]
        for name, record in students.items()
        if "weight_quantiles" in record
    }
    drawn = {
        "stages": draw_stages(rows, stage_order(judges)),
        "reliability": draw_reliability(panels, n_bins),
        "confusion": draw_confusion(panels),
        "swap": draw_swap(rows),
        "curves": draw_curves(dict(zip(runs, curves, strict=True))),
        "weights": draw_weights(read_json(inputs.weights), spreads),
    }
    for name, figure in drawn.items():
        save_figure(figure, outputs[name])


if __name__ == "__main__":
    run_job(snakemake, main)

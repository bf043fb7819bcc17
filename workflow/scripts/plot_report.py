"""Draw the report's figures of what the stages predict and how they were trained."""

from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(
    scores_path: Path,
    fold_paths: list[Path],
    teacher_paths: dict[str, list[tuple[Path, Path]]],
    final_path: Path,
    curve_paths: dict[str, Path],
    weights_path: Path,
    row_paths: dict[str, Path],
    figure_paths: dict[str, Path],
    judges: list[str],
    n_bins: int,
) -> None:
    """Read scores, test predictions, loss curves and weights; draw six figures.

    Args:
        scores_path: ``scores.csv``.
        fold_paths: The fold files.
        teacher_paths: For each teacher, raw and calibrated logits of each fold.
        final_path: The final model's symmetrised predictions.
        curve_paths: ``train.jsonl`` by name, ``model/run``.
        weights_path: The ensemble's ``weights.json``.
        row_paths: What each student's rows counted for (``rows.json``), by student.
        figure_paths: Where each figure goes: ``stages``, ``reliability``,
            ``confusion``, ``swap``, ``curves`` and ``weights``.
        judges: Names of the exported models.
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
    from prefdistill.storage.tables import read_json

    rows = one_per_stage(rows_on_test(read_rows(scores_path), judges))
    labels = read_all_labels(fold_paths)
    panels = reliability_panels(teacher_paths, final_path, labels)
    curves = {name: read_curve(path) for name, path in curve_paths.items()}
    rows_of = {name: read_json(path) for name, path in row_paths.items()}
    spreads = {
        name: record["weight_quantiles"]
        for name, record in rows_of.items()
        if "weight_quantiles" in record
    }
    figures = {
        "stages": draw_stages(rows, stage_order(judges)),
        "reliability": draw_reliability(panels, n_bins),
        "confusion": draw_confusion(panels),
        "swap": draw_swap(rows),
        "curves": draw_curves(curves),
        "weights": draw_weights(read_json(weights_path), spreads),
    }
    for name, figure in figures.items():
        save_figure(figure, figure_paths[name])


if __name__ == "__main__":
    with run_job(snakemake):
        source, params = snakemake.input, snakemake.params
        from prefdistill.report.stages import pair_teacher_files

        main(
            scores_path=Path(source.scores),
            fold_paths=[Path(path) for path in source.folds],
            teacher_paths=pair_teacher_files(
                params.teachers, source.logits, source.calibrated
            ),
            final_path=Path(source.final),
            curve_paths=dict(zip(params.runs, map(Path, source.curves), strict=True)),
            weights_path=Path(source.weights),
            row_paths={Path(path).parent.name: Path(path) for path in source.rows},
            figure_paths={k: Path(v) for k, v in snakemake.output.items()},
            judges=list(params.judges),
            n_bins=params.n_bins,
        )

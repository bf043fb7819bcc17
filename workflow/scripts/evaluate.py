"""Score every stage on dev, select and test, and the differences between stages."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(
    fold_paths: list[Path],
    baselines_path: Path,
    teacher_paths: dict[str, list[tuple[Path, Path]]],
    student_paths: list[list[Path]],
    labels_only_paths: list[list[Path]],
    weights_path: Path,
    judge_paths: dict[str, tuple[list[Path], Path]],
    final_paths: tuple[Path, list[Path], Path],
    truth_path: Path | None,
    scores_path: Path,
    steps_path: Path,
    predictions_path: Path,
    final_model: str,
    views: list[str],
    is_pooled: bool,
    calibration: dict[str, Any],
    evaluation: dict[str, Any],
) -> None:
    """Gather all predictions, score them, write the tables.

    Args:
        fold_paths: The fold files.
        baselines_path: ``baselines.parquet``.
        teacher_paths: For each teacher, raw and calibrated logits of each fold.
        student_paths: For each fold, its student's predictions of each view.
        labels_only_paths: The same of students trained on labels alone, or empty.
        weights_path: The ensemble's ``weights.json``.
        judge_paths: For each exported model its predictions and its calibration.
        final_paths: The final model's symmetrised predictions, its views, and its
            calibration.
        truth_path: The simulator's probabilities, if the data are simulated.
        scores_path: Where the score table goes.
        steps_path: Where the paired differences go.
        predictions_path: Where the predictions that were scored go, with their labels.
        final_model: Name of the model that makes the submission.
        views: The views of the judges' predictions.
        is_pooled: Whether the final predictions are pooled with the trees'.
        calibration: The settings of the teachers' calibration.
        evaluation: Number of bootstrap draws, seed, number of bins.
    """
    from prefdistill.report.score_table import (
        PREDICTIONS_SCHEMA,
        SCORE_COLUMNS,
        STEP_COLUMNS,
        over_folds,
        paired_steps,
        predictions_table,
        score_rows,
        step_pairs,
    )
    from prefdistill.report.stages import (
        from_baselines,
        from_truth,
        read_all_labels,
        score_final,
        score_judge,
        score_students,
        score_teacher,
    )
    from prefdistill.storage.tables import write_table
    from prefdistill.storage.whole_files import write_csv

    labels = read_all_labels(fold_paths)
    found = from_baselines(baselines_path)
    for name, paths in teacher_paths.items():
        found += score_teacher(name, paths, labels, calibration)
    found += score_students("student_labels_only", labels_only_paths, views, None)
    found += score_students("student", student_paths, views, weights_path)
    for name, (paths, fit_path) in judge_paths.items():
        found += score_judge(name, paths, fit_path, labels, views)
    found.append(score_final(final_model, *final_paths, views))
    if truth_path is not None:
        found += from_truth(truth_path, labels)
    found += over_folds(found)
    write_table(predictions_path, predictions_table(found, labels), PREDICTIONS_SCHEMA)

    settings = {k: evaluation[k] for k in ("n_bootstrap", "seed")}
    table = score_rows(found, labels, n_bins=evaluation["n_bins"], **settings)
    write_csv(scores_path, table, SCORE_COLUMNS)
    pairs = step_pairs(list(judge_paths), final_model, is_pooled=is_pooled)
    write_csv(steps_path, paired_steps(found, labels, pairs, **settings), STEP_COLUMNS)


if __name__ == "__main__":
    with run_job(snakemake):
        source, params = snakemake.input, snakemake.params
        n_views = len(params.views)

        def paths(name: str) -> list[Path]:
            """A named input as paths, also where it is one file or none."""
            value = source.get(name, [])
            return [Path(p) for p in ([value] if isinstance(value, str) else value)]

        def by_views(name: str) -> list[list[Path]]:
            """Files of a named input, the views of one model together."""
            files = paths(name)
            return [files[k : k + n_views] for k in range(0, len(files), n_views)]

        logits = list(zip(paths("logits"), paths("calibrated"), strict=True))
        n_folds = len(paths("folds"))
        judges = zip(by_views("judges"), paths("judge_calibrations"), strict=True)
        main(
            fold_paths=paths("folds"),
            baselines_path=Path(source.baselines),
            teacher_paths={
                name: logits[place * n_folds : (place + 1) * n_folds]
                for place, name in enumerate(params.teachers)
            },
            student_paths=by_views("students"),
            labels_only_paths=by_views("labels_only"),
            weights_path=Path(source.weights),
            judge_paths=dict(zip(params.judges, judges, strict=True)),
            final_paths=(
                Path(source.final),
                paths("final_views"),
                Path(source.final_calibration),
            ),
            truth_path=next(iter(paths("truth")), None),
            scores_path=Path(snakemake.output.scores),
            steps_path=Path(snakemake.output.steps),
            predictions_path=Path(snakemake.output.predictions),
            final_model=params.final,
            views=list(params.views),
            is_pooled=params.trees_weight > 0,
            calibration=params.calibration,
            evaluation=params.evaluation,
        )

"""Draw the report's figures: stages, reliability, training curves."""

from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(
    scores_path: Path,
    fold_paths: list[Path],
    teacher_paths: dict[str, list[tuple[Path, Path]]],
    final_path: Path,
    curve_paths: dict[str, Path],
    stages_path: Path,
    reliability_path: Path,
    curves_path: Path,
    judges: list[str],
    n_bins: int,
) -> None:
    """Read scores, test predictions and loss curves; write three figures.

    Args:
        scores_path: ``scores.csv``.
        fold_paths: The fold files.
        teacher_paths: For each teacher, raw and calibrated logits of each fold.
        final_path: The final model's symmetrised predictions.
        curve_paths: ``train.jsonl`` by name, ``model/run``.
        stages_path: Figure of the log loss of every stage.
        reliability_path: Figure of confidence against accuracy.
        curves_path: Figure of the training losses.
        judges: Names of the exported models.
        n_bins: Bins of confidence.
    """
    from prefdistill.figures import (
        draw_curves,
        draw_reliability,
        draw_stages,
        save_figure,
    )
    from prefdistill.stages import read_all_labels, reliability_panels
    from prefdistill.summary import (
        one_per_stage,
        read_curve,
        read_rows,
        rows_on_test,
        stage_order,
    )

    rows = one_per_stage(rows_on_test(read_rows(scores_path), judges))
    save_figure(draw_stages(rows, stage_order(judges)), stages_path)
    labels = read_all_labels(fold_paths)
    panels = reliability_panels(teacher_paths, final_path, labels)
    save_figure(draw_reliability(panels, n_bins), reliability_path)
    curves = {name: read_curve(path) for name, path in curve_paths.items()}
    save_figure(draw_curves(curves), curves_path)


if __name__ == "__main__":
    with run_job(snakemake):
        source, params = snakemake.input, snakemake.params
        logits = [
            (Path(raw), Path(calibrated))
            for raw, calibrated in zip(source.logits, source.calibrated, strict=True)
        ]
        n_folds = len(source.folds)
        main(
            scores_path=Path(source.scores),
            fold_paths=[Path(path) for path in source.folds],
            teacher_paths={
                name: logits[place * n_folds : (place + 1) * n_folds]
                for place, name in enumerate(params.teachers)
            },
            final_path=Path(source.final),
            curve_paths=dict(zip(params.runs, map(Path, source.curves), strict=True)),
            stages_path=Path(snakemake.output.stages),
            reliability_path=Path(snakemake.output.reliability),
            curves_path=Path(snakemake.output.curves),
            judges=list(params.judges),
            n_bins=params.n_bins,
        )

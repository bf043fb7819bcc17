"""Write the weight of each fold in the ensemble.

Weights are equal, given, or follow the group-relative advantage of each fold's
student (``weights.advantage_weights``).
"""

from pathlib import Path
from typing import Any

from prefdistill.running.job import run_job


def main(
    fold_files: list[Path],
    students: list[Path],
    baselines: list[Path],
    weights: Path,
    folds: list[int],
    fold_weights: str | list[float],
    advantage: dict[str, Any] | None,
) -> None:
    """Normalise the configured weights, or find them from rewards; write them.

    Args:
        fold_files: The folds' rows; empty unless rewards are needed, as the next two.
        students: The logits of each fold's student.
        baselines: ``baselines.parquet`` for the baseline ``trees``, for ``ema`` the
            logits of each fold's averaged student, nothing for ``none``.
        weights: ``weights.json``.
        folds: The folds to weigh.
        fold_weights: ``equal``, one number per fold, or ``advantage``.
        advantage: The settings ``temperature`` and ``baseline`` of ``advantage``.
    """
    from prefdistill.report.rewards import weigh_by_advantage
    from prefdistill.scores.fold_weights import fold_weights as normalise
    from prefdistill.storage.records import write_json

    if fold_weights == "advantage":
        record = weigh_by_advantage(folds, fold_files, students, baselines, advantage)
    else:
        method = fold_weights if isinstance(fold_weights, str) else "given"
        shares = normalise(fold_weights, len(folds))
        record = {"folds": folds, "weights": shares, "method": method}
    write_json(weights, record)


if __name__ == "__main__":
    with run_job(snakemake):
        source, params = snakemake.input, snakemake.params
        main(
            fold_files=[Path(path) for path in source.fold_files],
            students=[Path(path) for path in source.students],
            baselines=[Path(path) for path in source.baselines],
            weights=Path(snakemake.output.weights),
            folds=list(params.folds),
            fold_weights=params.fold_weights,
            advantage=params.advantage,
        )

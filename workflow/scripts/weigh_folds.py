"""Write the weight of each fold in the ensemble.

Weights are equal, given, or follow the group-relative advantage of each fold's student
(``fold_weights.advantage_weights``).
"""

from pathlib import Path
from typing import Any

from prefdistill.running.job import run_job
from prefdistill.settings import AdvantageSettings


def main(
    fold_files: list[Path],
    students: list[Path],
    baselines: list[Path],
    weights: Path,
    folds: list[int],
    fold_weights: Any,
    advantage: AdvantageSettings | None,
) -> None:
    """Normalise the configured weights, or find them from rewards; write them.

    Args:
        fold_files: The folds' rows. This and the next two are empty unless rewards are
            needed.
        students: The logits of each fold's student.
        baselines: ``baselines.parquet`` for the baseline ``trees``, for ``ema`` the
            logits of each fold's averaged student, nothing for ``none``.
        weights: Where ``weights.json`` goes.
        folds: The folds to weigh.
        fold_weights: ``equal``, ``advantage``, or a list of one number per fold.
        advantage: How rewards become weights; None unless rewards are needed.
    """
    from prefdistill.report.fold_rewards import weigh_by_advantage
    from prefdistill.scores.fold_weights import normalise_weights
    from prefdistill.storage.records import write_json

    if fold_weights == "advantage":
        record = weigh_by_advantage(folds, fold_files, students, baselines, advantage)
    else:
        method = fold_weights if isinstance(fold_weights, str) else "given"
        shares = normalise_weights(fold_weights, len(folds))
        record = {"folds": folds, "weights": shares, "method": method}
    write_json(weights, record)


if __name__ == "__main__":
    run_job(snakemake, main)

"""Average the student's fold adapters into one adapter, exactly.

``delta_mean`` (the default) concatenates ranks, so that the result is the weighted mean
of the folds' weight changes. ``factor_mean`` averages A and B separately, as the
BlackPearl solution did; its error against the exact mean is reported either way.
"""

import logging
from pathlib import Path

from prefdistill.errors import UserError
from prefdistill.running.job import run_job
from prefdistill.storage.digests import file_digest
from prefdistill.storage.records import write_json

logger = logging.getLogger(__name__)


def main(
    adapters: list[Path],
    folds: list[int],
    weights: Path,
    method: str,
    adapter: Path,
    report: Path,
) -> None:
    """Read the adapters of the folds and their weights; write the average.

    Args:
        adapters: One adapter_model.safetensors per fold, its configuration beside it.
        folds: The fold of each.
        weights: ``weights.json``.
        method: ``delta_mean`` or ``factor_mean``.
        adapter: The adapter's weights; its configuration is written beside them.
        report: ``average.json``.
    """
    from prefdistill.export.averaging import delta_mean, factor_mean, relative_errors
    from prefdistill.models.adapter_files import read_adapter, write_adapter
    from prefdistill.scores.fold_weights import read_weights

    shares = read_weights(weights, folds)
    parts = [read_adapter(path.parent) for path in adapters]
    exact = delta_mean(parts, shares)
    same_rank = len({(part.rank, part.scaling) for part in parts}) == 1
    factors = factor_mean(parts, shares) if same_rank else None
    if method == "factor_mean" and factors is None:
        raise UserError("ensemble.method factor_mean needs folds of one rank and alpha")
    error = relative_errors(factors, exact) if factors else None
    logger.info("relative error of factor_mean: %s", error)
    write_adapter(exact if method == "delta_mean" else factors, adapter.parent)
    record = {"method": method, "folds": folds, "weights": shares}
    record |= {"ranks": [part.rank for part in parts], "n_modules": len(exact.layers)}
    record |= {"factor_mean_relative_error": error}
    record |= {"adapters_sha256": [file_digest(path) for path in adapters]}
    write_json(report, record)


if __name__ == "__main__":
    run_job(snakemake, main)

"""Write the weight of each fold in the ensemble."""

from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(folds: list[int], fold_weights: str | list[float], weights_path: Path) -> None:
    """Normalise the configured weights and write them."""
    from prefdistill.io import write_json
    from prefdistill.weights import fold_weights as normalise

    method = fold_weights if isinstance(fold_weights, str) else "given"
    weights = normalise(fold_weights, len(folds))
    write_json(weights_path, {"folds": folds, "weights": weights, "method": method})


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            folds=list(snakemake.params.folds),
            fold_weights=snakemake.params.fold_weights,
            weights_path=Path(snakemake.output.weights),
        )

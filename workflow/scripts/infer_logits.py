"""Score pairs with a model, a whole one or an adapter on its base, in its views."""

from functools import partial
from pathlib import Path

from prefdistill.models.quick_imports import import_scoring_libraries
from prefdistill.running.job import run_job
from prefdistill.settings import ScoringSettings, TextSettings


def main(
    pairs: list[Path],
    weights: Path,
    base: Path | None,
    logits: Path,
    scoring: ScoringSettings,
    text: TextSettings,
    scratch: Path,
    code: str,
) -> None:
    """Score the wanted rows and write their logits; see ``score_files``.

    A teacher's rows of split train are in-fold (it was trained on them), all others are
    out of fold.
    """
    from prefdistill.models.score_files import score_files
    from prefdistill.running.processes import is_first
    from prefdistill.storage.checkpoints import Checkpoints
    from prefdistill.storage.logits import write_logits

    checkpoints = Checkpoints(scratch, code)
    scores = score_files(pairs, weights, base, scoring, text, checkpoints)
    if is_first():
        write_logits(logits, scores)
        checkpoints.remove()


if __name__ == "__main__":
    run_job(
        snakemake,
        main,
        processes=snakemake.resources.gpu,
        libraries=partial(
            import_scoring_libraries,
            snakemake.params.scoring["precision"],
            Path(snakemake.input.weights),
            Path(str(snakemake.input.base)) if snakemake.input.base else None,
        ),
    )

"""Score pairs with a model, a whole one or an adapter on its base, in its views."""

import logging
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.running.job import run_job, scratch_folder

if TYPE_CHECKING:
    from prefdistill.models.score_files import Scoring
    from prefdistill.settings import TextSettings

logger = logging.getLogger(__name__)


def main(
    pairs: list[Path],
    weights: Path,
    base: Path | None,
    logits: Path,
    scoring: "Scoring",
    text: "TextSettings",
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
    with run_job(snakemake, processes=snakemake.resources.gpu):
        from prefdistill.models.quick_imports import (
            collector_paused,
            import_model_libraries,
        )

        source, params = snakemake.input, snakemake.params
        with collector_paused():
            from prefdistill.models.manifests import base_folder
        weights = Path(source.weights)
        base = Path(str(source.base)) if source.base else None
        folder = weights.parent if base is None else base_folder(base)
        import_model_libraries(params.scoring["precision"], folder)
        from prefdistill.models.score_files import Scoring
        from prefdistill.settings import TextSettings, read

        # How much is scored at once changes no result, so it is no parameter.
        running = reduce(getitem, params.section, snakemake.config)
        keys = running.keys() & {"token_budget", "progress_batches"}
        main(
            pairs=[Path(path) for path in source.pairs],
            weights=weights,
            base=base,
            logits=Path(snakemake.output.logits),
            scoring=Scoring(**params.scoring, **{key: running[key] for key in keys}),
            text=read(TextSettings, params.text),
            scratch=scratch_folder(snakemake),
            code=params.code,
        )

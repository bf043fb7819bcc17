"""Score tables with a judge, one predictions file for each order."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.errors import UserError
from prefdistill.running.job import run_job, scratch_folder
from prefdistill.storage.tables import FOLD_SCHEMA, read_table, write_predictions

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    tables: list[Path],
    weights: Path,
    base: Path | None,
    outputs: dict[str, Path],
    text: dict[str, Any],
    precision: str,
    token_budget: int,
    splits: list[str],
    scratch: Path,
    code: str,
) -> None:
    """Score the rows of the given splits and write each order's logits, as shown.

    Args:
        tables: Fold files; a row id may occur once in all.
        weights: ``model.safetensors`` in a folder of its own, or, with a base,
            ``adapter_model.safetensors``.
        base: The adapter's base: its manifest, or a file in its folder.
        outputs: Order (AB, BA) to predictions file.
        text: The ``text`` settings.
        precision: Of the base.
        token_budget: Most tokens in a forward pass.
        splits: Which rows.
        scratch: Folder for logits of an interrupted run.
        code: Digest of the code that scores.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from prefdistill.data.prompts import encode_pairs
    from prefdistill.models.loading import base_folder, load_classifier, load_tokenizer
    from prefdistill.models.lora import load_adapter
    from prefdistill.models.memory import place
    from prefdistill.models.scoring import score_pairs
    from prefdistill.running.processes import is_first
    from prefdistill.settings import TextSettings, read
    from prefdistill.storage.checkpoints import Checkpoints, identity_of

    table = pa.concat_tables([read_table(path, FOLD_SCHEMA) for path in tables])
    table = table.filter(pc.is_in(table.column("split"), pa.array(splits)))
    if len(pc.unique(table.column("id"))) != len(table):
        raise UserError(f"{', '.join(map(str, tables))}: a row id occurs twice")
    folder = weights.parent if base is None else base_folder(base)
    precision, shard = place(folder, precision, token_budget)
    model = load_classifier(folder, precision, shard=shard)
    if base is not None:
        model = load_adapter(model, weights.parent, trainable=False)
    encoded = encode_pairs(table, load_tokenizer(folder), read(TextSettings, text))
    views = list(outputs)
    files = [*tables, weights, *filter(None, (base,))]
    identity = identity_of([code, precision, text, splits, views], *files)
    checkpoints = Checkpoints(scratch, identity)
    logits = score_pairs(
        model, encoded, views=views, token_budget=token_budget, checkpoints=checkpoints
    )
    if not is_first():
        return
    split = np.array(table.column("split").to_pylist(), dtype=np.str_)
    for column, view in enumerate(views):
        write_predictions(outputs[view], encoded.ids, split, logits[:, column])
    checkpoints.remove()
    logger.info("%d rows scored in %s", len(split), " and ".join(views))


if __name__ == "__main__":
    with run_job(snakemake, processes=snakemake.resources.gpu):
        from prefdistill.models.quick_imports import (
            collector_paused,
            import_model_libraries,
        )

        with collector_paused():
            from prefdistill.models.loading import base_folder

        weights = Path(snakemake.input.weights)
        base = Path(str(snakemake.input.base)) if snakemake.input.base else None
        folder = weights.parent if base is None else base_folder(base)
        import_model_libraries(snakemake.params.precision, folder)
        main(
            tables=[Path(path) for path in snakemake.input.tables],
            weights=weights,
            base=base,
            outputs={Path(path).stem.upper(): Path(path) for path in snakemake.output},
            text=snakemake.params.text,
            precision=snakemake.params.precision,
            token_budget=snakemake.config["predict"]["token_budget"],
            splits=snakemake.params.splits,
            scratch=scratch_folder(snakemake),
            code=snakemake.params.code,
        )

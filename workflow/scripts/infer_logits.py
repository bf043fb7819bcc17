"""Score the rows of a fold file with its teacher, in both orders."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefdistill.running.job import run_job, scratch_folder
from prefdistill.storage.tables import (
    FOLD_SCHEMA,
    VIEWS,
    Logits,
    file_digest,
    read_table,
    write_logits,
)

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    fold_table: Path,
    adapter_path: Path,
    base: Path,
    logits_path: Path,
    precision: str,
    inference: dict[str, Any],
    text: dict[str, Any],
    seed: int,
    scratch: Path,
    code: str,
) -> None:
    """Score all rows but train rows outside the wanted range or sample.

    Rows of split train are in-fold (the teacher was trained on that side), all others
    are out of fold; which a row is shows in its split.
    """
    from prefdistill.data.prompts import encode_pairs, text_digest
    from prefdistill.models.loading import base_folder, load_classifier, load_tokenizer
    from prefdistill.models.lora import load_adapter, load_merged
    from prefdistill.models.memory import place
    from prefdistill.models.scoring import score_pairs, subset_rows
    from prefdistill.pipeline.validation import result_settings
    from prefdistill.running.processes import is_first
    from prefdistill.settings import TextSettings, read
    from prefdistill.storage.checkpoints import Checkpoints, identity_of

    table = read_table(fold_table, FOLD_SCHEMA)
    split = np.array(table.column("split").to_pylist(), dtype=np.str_)
    kept = subset_rows(split, inference["rows"], inference["n_rows"], seed)
    table, split = table.filter(kept), split[kept]
    folder = base_folder(base)
    encoded = encode_pairs(table, load_tokenizer(folder), read(TextSettings, text))
    if inference["weights"] == "merged":
        model = load_merged(folder, adapter_path.parent, precision)
    else:
        precision, shard = place(folder, precision, inference["token_budget"])
        model = load_classifier(folder, precision, shard=shard)
        model = load_adapter(model, adapter_path.parent, trainable=False)
    known = [code, precision, result_settings(inference), text, seed]
    identity = identity_of(known, fold_table, adapter_path, base)
    checkpoints = Checkpoints(scratch, identity)
    logits = score_pairs(
        model,
        encoded,
        token_budget=inference["token_budget"],
        progress_batches=inference["progress_batches"],
        checkpoints=checkpoints,
    )
    if not is_first():
        return
    meta = {
        "adapter": file_digest(adapter_path),
        "base": file_digest(base),
        "text": text_digest(read(TextSettings, text)),
        "max_length": text["max_length"],
        "views": list(VIEWS),
        "classes": ["first", "second", "tie"],
        "weights": inference["weights"],
        "precision": precision,
        "n_truncated": encoded.n_truncated,
        "n_neutralised": encoded.n_neutralised,
    }
    write_logits(logits_path, Logits(encoded.ids, split, logits, meta))
    checkpoints.remove()
    logger.info("%d of %d rows scored", len(split), len(kept))


if __name__ == "__main__":
    with run_job(snakemake, processes=snakemake.resources.gpu):
        from prefdistill.models.quick_imports import import_model_libraries

        name, config = snakemake.wildcards.get("teacher", "student"), snakemake.config
        models = {**config["teachers"], "student": config["student"]}
        import_model_libraries(snakemake.params.precision)
        main(
            fold_table=Path(snakemake.input.pairs),
            adapter_path=Path(snakemake.input.adapter),
            base=Path(snakemake.input.base),
            logits_path=Path(snakemake.output.logits),
            precision=snakemake.params.precision,
            inference=models[name]["inference"] | snakemake.params.inference,
            text=snakemake.params.text,
            seed=snakemake.params.seed,
            scratch=scratch_folder(snakemake),
            code=snakemake.params.code,
        )

"""Fine-tune a teacher's adapter on one fold's train side."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job, scratch_folder
from prefdistill.storage.tables import FOLD_SCHEMA, read_table, table_targets

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    fold_table: Path,
    init_adapter: Path,
    base: Path,
    adapter_path: Path,
    curve_path: Path,
    precision: str,
    training: dict[str, Any],
    text: dict[str, Any],
    scratch: Path,
    code: str,
) -> None:
    """Train on the fold's train rows, both orders of a pair in the same step."""
    from prefdistill.data.prompts import encode_pairs
    from prefdistill.models.loading import base_folder, load_classifier, load_tokenizer
    from prefdistill.models.lora import adapter_rank, load_adapter, save_adapter
    from prefdistill.models.memory import place
    from prefdistill.pipeline.validation import result_settings
    from prefdistill.running.processes import is_first
    from prefdistill.storage.checkpoints import Checkpoints, identity_of
    from prefdistill.training.objectives import label_objective
    from prefdistill.training.trainer import Trainer, choose_rows, train_rows

    table = train_rows(read_table(fold_table, FOLD_SCHEMA), fold_table)
    rows = choose_rows(len(table), training["n_rows"], training["seed"])
    table = table.take(rows)
    folder = base_folder(base)
    lora_rank = adapter_rank(init_adapter.parent)
    precision, shard = place(folder, precision, training["token_budget"], lora_rank)
    model = load_classifier(folder, precision, shard=shard)
    model = load_adapter(model, init_adapter.parent, trainable=True)
    encoded = encode_pairs(table, load_tokenizer(folder), text)
    logger.info(
        "%d rows, %d truncated, %d with a special token or marker made plain text",
        len(table), encoded.n_truncated, encoded.n_neutralised,
    )  # fmt: skip
    known = [code, precision, result_settings(training), text]
    identity = identity_of(known, fold_table, base, init_adapter)
    trainer = Trainer(
        model,
        encoded,
        label_objective(table_targets(table)),
        training,
        training["epochs"],
        Checkpoints(scratch, identity),
    )
    trainer.run(curve_path)
    if is_first():
        save_adapter(model, adapter_path.parent)
    trainer.finish()


if __name__ == "__main__":
    with run_job(snakemake, processes=snakemake.resources.gpu):
        from prefdistill.models.quick_imports import import_model_libraries

        settings = snakemake.config["teachers"][snakemake.wildcards.teacher]["training"]
        import_model_libraries(snakemake.params.precision)
        main(
            fold_table=Path(snakemake.input.pairs),
            init_adapter=Path(snakemake.input.init),
            base=Path(snakemake.input.base),
            adapter_path=Path(snakemake.output.adapter),
            curve_path=Path(snakemake.output.curve),
            precision=snakemake.params.precision,
            training=settings | snakemake.params.training,
            text=snakemake.params.text,
            scratch=scratch_folder(snakemake),
            code=snakemake.params.code,
        )

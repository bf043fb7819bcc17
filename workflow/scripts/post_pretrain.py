"""Train the adapter that every fold of a model starts from."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job, scratch_folder
from prefdistill.storage.tables import FOLD_SCHEMA, read_table, table_targets
from prefdistill.storage.whole_files import write_text

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    table_path: Path,
    base: Path,
    adapter_path: Path,
    curve_path: Path,
    precision: str,
    lora: dict[str, Any],
    settings: dict[str, Any],
    text: dict[str, Any],
    scratch: Path,
    code: str,
) -> None:
    """Post-train a seeded adapter on the pairs, or save it as it is without any.

    The seed is the ``post_pretrain`` block's own: one adapter and one head
    initialisation for all folds.
    """
    from prefdistill.data.prompts import encode_pairs
    from prefdistill.models.loading import (
        base_folder,
        load_classifier,
        load_language_model,
        load_tokenizer,
        seeded_head,
    )
    from prefdistill.models.lora import add_adapter, save_adapter
    from prefdistill.models.memory import place
    from prefdistill.pipeline.validation import result_settings
    from prefdistill.running.processes import is_first
    from prefdistill.storage.checkpoints import Checkpoints, identity_of
    from prefdistill.training.objectives import label_objective, next_token_objective
    from prefdistill.training.trainer import Trainer

    table = read_table(table_path, FOLD_SCHEMA)
    folder, seed = base_folder(base), settings["seed"]
    untrained = settings["objective"] == "none" or not len(table)
    language = settings["objective"] == "causal_lm" and not untrained
    precision, shard = place(folder, precision, settings["token_budget"], lora["r"])
    if language:
        model = load_language_model(folder, precision, shard=shard)
        objective = next_token_objective()
    else:
        model = load_classifier(folder, precision, head_seed=seed, shard=shard)
        objective = label_objective(table_targets(table))
    fresh_head = seeded_head(model.config.hidden_size, seed)
    model = add_adapter(model, lora, seed)
    if untrained:
        logger.info("no post-pretraining: the seeded adapter is saved as it is")
        if is_first():
            save_adapter(model, adapter_path.parent)
            write_text(curve_path, "")
        return
    encoded = encode_pairs(table, load_tokenizer(folder), text)
    known = [code, precision, lora, result_settings(settings), text]
    checkpoints = Checkpoints(scratch, identity_of(known, table_path, base))
    epochs = settings["fraction_of_epoch"]
    trainer = Trainer(model, encoded, objective, settings, epochs, checkpoints)
    trainer.run(curve_path)
    drop_head = language or not settings["keep_head"]
    if is_first():
        head = fresh_head if drop_head else None
        save_adapter(model, adapter_path.parent, head=head)
    trainer.finish()


if __name__ == "__main__":
    with run_job(snakemake, processes=snakemake.resources.gpu):
        from prefdistill.models.quick_imports import import_model_libraries

        name, config = snakemake.wildcards.get("model", "student"), snakemake.config
        models = {**config["teachers"], "student": config["student"]}
        import_model_libraries(snakemake.params.precision)
        main(
            table_path=Path(snakemake.input.pairs),
            base=Path(snakemake.input.base),
            adapter_path=Path(snakemake.output.adapter),
            curve_path=Path(snakemake.output.curve),
            precision=snakemake.params.precision,
            lora=snakemake.params.lora,
            settings=models[name]["post_pretrain"] | snakemake.params.settings,
            text=snakemake.params.text,
            scratch=scratch_folder(snakemake),
            code=snakemake.params.code,
        )

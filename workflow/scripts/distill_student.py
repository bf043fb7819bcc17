"""Distil the teachers into the student on one fold's train side."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefdistill.io import FOLD_SCHEMA, read_table, table_targets
from prefdistill.job import hide_unused_imports, run_job, scratch_folder

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    fold_table: Path,
    fold: int,
    teachers: dict[str, list[Path]],
    gates: dict[str, list[Path]],
    init_adapter: Path,
    base: Path,
    adapter_path: Path,
    curve_path: Path,
    precision: str,
    training: dict[str, Any],
    distillation: dict[str, Any],
    text: dict[str, Any],
    scratch: Path,
    code: str,
) -> None:
    """Train on labels and the teachers' logits; see ``losses.distillation_loss``.

    Without teachers this is the student trained on labels alone.
    """
    from prefdistill.checkpoints import Checkpoints, identity_of
    from prefdistill.config import result_settings
    from prefdistill.distillation import check_gates, check_weights, teacher_logits
    from prefdistill.distributed import is_first
    from prefdistill.losses import distillation_objective
    from prefdistill.memory import place
    from prefdistill.models import (
        adapter_rank,
        base_folder,
        load_adapter,
        load_classifier,
        load_tokenizer,
        save_adapter,
    )
    from prefdistill.prompts import encode_pairs
    from prefdistill.training import Trainer, choose_rows, train_rows

    check_weights(distillation["weights"], len(teachers))
    check_gates(gates, distillation["teacher_gate"])
    table = train_rows(read_table(fold_table, FOLD_SCHEMA), fold_table)
    table = table.take(choose_rows(len(table), training["n_rows"], training["seed"]))
    is_labelled = np.zeros(len(table), dtype=bool)
    n_labelled = distillation["n_labelled_rows"]
    is_labelled[choose_rows(len(table), n_labelled, training["seed"])] = True
    ids = np.array(table.column("id").to_pylist(), dtype=np.str_)
    objective = distillation_objective(
        table_targets(table),
        is_labelled,
        *teacher_logits(ids, teachers, fold, distillation["labels"]),
        distillation["weights"],
        distillation["temperature"],
    )
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
    known = [code, precision, result_settings(training), distillation, text, fold]
    files = [path for paths in teachers.values() for path in paths]
    identity = identity_of(known, fold_table, base, init_adapter, *files)
    checkpoints = Checkpoints(scratch, identity)
    epochs = training["epochs"]
    trainer = Trainer(model, encoded, objective, training, epochs, checkpoints)
    trainer.run(curve_path)
    if is_first():
        save_adapter(model, adapter_path.parent)
    trainer.finish()


if __name__ == "__main__":
    with run_job(snakemake, processes=snakemake.resources.gpu):
        from prefdistill.models import unused_packages

        def by_teacher(files: list[str]) -> dict[str, list[Path]]:
            """Input files, listed teacher by teacher, under the teachers' names."""
            names = snakemake.params.teachers
            n_each = len(files) // max(1, len(names))
            return {
                name: [Path(file) for file in files[i * n_each : (i + 1) * n_each]]
                for i, name in enumerate(names)
            }

        settings = snakemake.config["student"]["training"]
        hide_unused_imports(*unused_packages(snakemake.params.precision))
        main(
            fold_table=Path(snakemake.input.pairs),
            fold=int(snakemake.wildcards.fold),
            teachers=by_teacher(snakemake.input.logits),
            gates=by_teacher(snakemake.input.gates),
            init_adapter=Path(snakemake.input.init),
            base=Path(snakemake.input.base),
            adapter_path=Path(snakemake.output.adapter),
            curve_path=Path(snakemake.output.curve),
            precision=snakemake.params.precision,
            training=settings | snakemake.params.training,
            distillation=snakemake.params.distillation,
            text=snakemake.params.text,
            scratch=scratch_folder(snakemake),
            code=snakemake.params.code,
        )

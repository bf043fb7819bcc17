"""Distil the teachers into the student on one fold's train side."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefdistill.running.job import run_job, scratch_folder
from prefdistill.storage.tables import FOLD_SCHEMA, read_table, write_json
from prefdistill.training.teachers import (
    TeacherFiles,
    check_gates,
    check_made_with,
    check_weights,
)

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

    from prefdistill.training.trainer import Trainer

logger = logging.getLogger(__name__)


def main(
    fold_table: Path,
    unlabelled_table: Path | None,
    fold: int,
    files: TeacherFiles,
    init_adapter: Path,
    base: Path,
    adapter_path: Path,
    average_path: Path | None,
    curve_path: Path,
    rows_path: Path,
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
    from prefdistill.data.prompts import encode_pairs
    from prefdistill.models.loading import base_folder, load_classifier, load_tokenizer
    from prefdistill.models.lora import adapter_rank, load_adapter
    from prefdistill.models.memory import place
    from prefdistill.pipeline.validation import result_settings
    from prefdistill.running.processes import is_first
    from prefdistill.storage.checkpoints import Checkpoints, identity_of
    from prefdistill.training.lessons import make_lessons
    from prefdistill.training.objectives import distillation_objective
    from prefdistill.training.trainer import Trainer, choose_rows, train_rows

    check_weights(distillation["weights"], len(files.logits))
    check_gates(files.gates, distillation["teacher_gate"])
    check_made_with(files, text)
    table = train_rows(read_table(fold_table, FOLD_SCHEMA), fold_table)
    table = table.take(choose_rows(len(table), training["n_rows"], training["seed"]))
    is_labelled = np.zeros(len(table), dtype=bool)
    n_labelled = distillation["n_labelled_rows"]
    is_labelled[choose_rows(len(table), n_labelled, training["seed"])] = True
    lessons = make_lessons(
        table, is_labelled, fold_table, unlabelled_table, files, fold, distillation
    )
    objective = distillation_objective(
        lessons, distillation["weights"], distillation["temperature"]
    )
    folder = base_folder(base)
    lora_rank = adapter_rank(init_adapter.parent)
    precision, shard = place(folder, precision, training["token_budget"], lora_rank)
    model = load_classifier(folder, precision, shard=shard)
    model = load_adapter(model, init_adapter.parent, trainable=True)
    encoded = encode_pairs(lessons.table, load_tokenizer(folder), text)
    logger.info(
        "%d rows, %d truncated, %d with a special token or marker made plain text",
        len(lessons.table), encoded.n_truncated, encoded.n_neutralised,
    )  # fmt: skip
    known = [code, precision, result_settings(training), distillation, text, fold]
    sources = [fold_table, base, init_adapter, *files.all()]
    if unlabelled_table is not None:
        sources.append(unlabelled_table)
    checkpoints = Checkpoints(scratch, identity_of(known, *sources))
    epochs, decay = training["epochs"], distillation["ema"]["decay"]
    trainer = Trainer(model, encoded, objective, training, epochs, checkpoints, decay)
    trainer.run(curve_path)
    if is_first():
        write_json(rows_path, lessons.record)
        save_weights(
            trainer, adapter_path, average_path, use_average=distillation["ema"]["use"]
        )
    trainer.finish()


def save_weights(
    trainer: "Trainer",
    adapter_path: Path,
    average_path: Path | None,
    *,
    use_average: bool,
) -> None:
    """Write the student's last or averaged weights, and the averaged ones beside."""
    from prefdistill.models.lora import save_adapter

    if trainer.average and (use_average or average_path):
        with trainer.average.in_place():
            if average_path:
                save_adapter(trainer.model, average_path.parent)
            if use_average:
                save_adapter(trainer.model, adapter_path.parent)
    if not use_average:
        save_adapter(trainer.model, adapter_path.parent)


if __name__ == "__main__":
    with run_job(snakemake, processes=snakemake.resources.gpu):
        from prefdistill.models.quick_imports import import_model_libraries

        def by_teacher(files: list[str]) -> dict[str, list[Path]]:
            """Input files, listed teacher by teacher, under the teachers' names."""
            names = snakemake.params.teachers
            n_each = len(files) // max(1, len(names))
            return {
                name: [Path(file) for file in files[i * n_each : (i + 1) * n_each]]
                for i, name in enumerate(names)
            }

        settings = snakemake.config["student"]["training"]
        import_model_libraries(snakemake.params.precision)
        main(
            fold_table=Path(snakemake.input.pairs),
            unlabelled_table=next(map(Path, snakemake.input.pairs_unlabelled), None),
            fold=int(snakemake.wildcards.fold),
            files=TeacherFiles(
                **{
                    kind: by_teacher(snakemake.input[kind])
                    for kind in TeacherFiles.__annotations__
                }
            ),
            init_adapter=Path(snakemake.input.init),
            base=Path(snakemake.input.base),
            adapter_path=Path(snakemake.output.adapter),
            average_path=next(map(Path, snakemake.output.average), None),
            curve_path=Path(snakemake.output.curve),
            rows_path=Path(snakemake.output.rows),
            precision=snakemake.params.precision,
            training=settings | snakemake.params.training,
            distillation=snakemake.params.distillation,
            text=snakemake.params.text,
            scratch=scratch_folder(snakemake),
            code=snakemake.params.code,
        )

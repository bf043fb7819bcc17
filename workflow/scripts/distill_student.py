"""Distil the teachers into the student on one fold's train side."""

from pathlib import Path

import numpy as np

from prefdistill.models.quick_imports import import_model_libraries
from prefdistill.running.job import run_job
from prefdistill.settings import DistillationSettings, TrainingSettings, read
from prefdistill.storage.records import write_json
from prefdistill.storage.tables import FOLD_SCHEMA, read_table
from prefdistill.training.run import TrainingJob, TrainingRun, settings_of
from prefdistill.training.teachers import TeacherFiles, check_weights, read_teachers


def main(
    pairs: Path,
    pairs_unlabelled: Path | None,
    teachers: TeacherFiles,
    job: TrainingJob,
    training: TrainingSettings,
    distillation: DistillationSettings,
    average: Path | None,
    rows: Path,
) -> None:
    """Train on labels and the teachers' logits; see ``losses.distillation_loss``.

    Without teachers this is the student trained on labels alone.
    """
    from prefdistill.running.processes import is_first
    from prefdistill.training.lessons import make_lessons
    from prefdistill.training.objectives import distillation_objective
    from prefdistill.training.trainer import choose_rows, train_rows

    check_weights(distillation.weights, len(teachers.teachers))
    taught = read_teachers(teachers, job.text, distillation)
    fold, seed = read_table(pairs, FOLD_SCHEMA), training.seed
    table = train_rows(fold, pairs)
    table = table.take(choose_rows(len(table), training.n_rows, seed))
    is_labelled = np.zeros(len(table), dtype=bool)
    is_labelled[choose_rows(len(table), distillation.n_labelled_rows, seed)] = True
    new = pairs_unlabelled and read_table(pairs_unlabelled, FOLD_SCHEMA)
    lessons = make_lessons(fold, table, is_labelled, new, taught, distillation)
    objective = distillation_objective(lessons, distillation)
    sources = [pairs, *teachers.sources(), *filter(None, [pairs_unlabelled])]
    run = TrainingRun(job, training)
    trainer = run.train(
        run.load(), lessons.table, objective, training.epochs, sources, distillation
    )
    if is_first():
        write_json(rows, lessons.record)
    run.finish(trainer, average=average, use_average=distillation.ema.use)


if __name__ == "__main__":
    with run_job(snakemake, processes=snakemake.resources.gpu):
        import_model_libraries(snakemake.params.precision)
        main(
            pairs=Path(snakemake.input.pairs),
            pairs_unlabelled=next(map(Path, snakemake.input.pairs_unlabelled), None),
            teachers=TeacherFiles.of(snakemake),
            job=TrainingJob.of(snakemake),
            training=settings_of(snakemake, "training", TrainingSettings),
            distillation=read(DistillationSettings, snakemake.params.distillation),
            average=next(map(Path, snakemake.output.average), None),
            rows=Path(snakemake.output.rows),
        )

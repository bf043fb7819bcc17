"""Distil the teachers into the student on one fold's train side."""

from functools import partial
from pathlib import Path

import numpy as np

from prefdistill.models.quick_imports import import_model_libraries
from prefdistill.running.job import run_job
from prefdistill.settings import DistillationSettings, TrainingSettings
from prefdistill.storage.records import write_json
from prefdistill.storage.tables import FOLD_SCHEMA, read_table
from prefdistill.training.run import TrainingJob, TrainingRun
from prefdistill.training.teachers import TeacherFiles, check_weights, read_teachers


def main(
    pairs: Path,
    pairs_unlabelled: Path | None,
    files: TeacherFiles,
    job: TrainingJob,
    training: TrainingSettings,
    distillation: DistillationSettings,
    average: Path | None,
    rows: Path,
) -> None:
    """Train on labels and the teachers' logits; without teachers, on labels alone."""
    from prefdistill.running.processes import is_first
    from prefdistill.training.lessons import make_lessons
    from prefdistill.training.objectives import distillation_objective
    from prefdistill.training.trainer import choose_rows, train_rows

    check_weights(distillation.weights, len(files.teachers))
    taught = read_teachers(files, job.text, distillation)
    fold, seed = read_table(pairs, FOLD_SCHEMA), training.seed
    table = train_rows(fold, pairs)
    table = table.take(choose_rows(len(table), training.n_rows, seed))
    is_labelled = np.zeros(len(table), dtype=bool)
    is_labelled[choose_rows(len(table), distillation.n_labelled_rows, seed)] = True
    new = pairs_unlabelled and read_table(pairs_unlabelled, FOLD_SCHEMA)
    lessons = make_lessons(fold, table, is_labelled, new, taught, distillation)
    objective = distillation_objective(lessons, distillation)
    sources = [pairs, *files.sources(), *filter(None, [pairs_unlabelled])]
    run = TrainingRun(job, training)
    trainer = run.train(
        run.load(), lessons.table, objective, training.epochs, sources, distillation
    )
    if is_first():
        write_json(rows, lessons.record)
    run.finish(trainer, average=average, use_average=distillation.ema.use)


if __name__ == "__main__":
    run_job(
        snakemake,
        main,
        processes=snakemake.resources.gpu,
        libraries=partial(import_model_libraries, snakemake.params.precision),
    )

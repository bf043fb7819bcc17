"""Fine-tune a teacher's adapter on one fold's train side."""

from functools import partial
from pathlib import Path

from prefdistill.models.quick_imports import import_model_libraries
from prefdistill.running.job import run_job
from prefdistill.settings import TrainingSettings
from prefdistill.storage.tables import FOLD_SCHEMA, read_table, table_targets
from prefdistill.training.run import TrainingJob, TrainingRun


def main(pairs: Path, job: TrainingJob, training: TrainingSettings) -> None:
    """Train on the fold's train rows, both orders of a pair in the same step."""
    from prefdistill.training.objectives import label_objective
    from prefdistill.training.trainer import choose_rows, train_rows

    table = train_rows(read_table(pairs, FOLD_SCHEMA), pairs)
    table = table.take(choose_rows(len(table), training.n_rows, training.seed))
    objective = label_objective(table_targets(table))
    run = TrainingRun(job, training)
    trainer = run.train(run.load(), table, objective, training.epochs, [pairs])
    run.finish(trainer)


if __name__ == "__main__":
    run_job(
        snakemake,
        main,
        processes=snakemake.resources.gpu,
        libraries=partial(import_model_libraries, snakemake.params.precision),
    )

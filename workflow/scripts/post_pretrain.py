"""Train the adapter that every fold of a model starts from."""

import logging
from functools import partial
from pathlib import Path

from prefdistill.models.quick_imports import import_model_libraries
from prefdistill.running.job import run_job
from prefdistill.settings import LoraSettings, PostPretrainSettings
from prefdistill.storage.tables import FOLD_SCHEMA, read_table, table_targets
from prefdistill.storage.whole_files import write_text
from prefdistill.training.run import TrainingJob, TrainingRun

logger = logging.getLogger(__name__)


def main(
    pairs: Path,
    job: TrainingJob,
    lora: LoraSettings,
    post_pretrain: PostPretrainSettings,
) -> None:
    """Post-train a seeded adapter on the pairs, or save it as it is without any.

    The seed is the ``post_pretrain`` block's own: one adapter and one head
    initialisation for all folds.
    """
    from prefdistill.models.head import seeded_head
    from prefdistill.models.lora import save_adapter
    from prefdistill.running.processes import is_first
    from prefdistill.training.objectives import label_objective, next_token_objective

    table, settings = read_table(pairs, FOLD_SCHEMA), post_pretrain
    untrained = settings.objective == "none" or not len(table)
    language = settings.objective == "causal_lm" and not untrained
    run = TrainingRun(job, settings, lora)
    model = run.load(language=language)
    if untrained:
        logger.info("no post-pretraining: the seeded adapter is saved as it is")
        if is_first():
            save_adapter(model, job.adapter.parent)
            write_text(job.curve, "")
        return
    targets = None if language else table_targets(table)
    objective = next_token_objective() if language else label_objective(targets)
    epochs = settings.fraction_of_epoch
    trainer = run.train(model, table, objective, epochs, [pairs])
    fresh = seeded_head(model.config.hidden_size, settings.seed)
    keeps_head = settings.keep_head and not language
    run.finish(trainer, head=None if keeps_head else fresh)


if __name__ == "__main__":
    run_job(
        snakemake,
        main,
        processes=snakemake.resources.gpu,
        libraries=partial(import_model_libraries, snakemake.params.precision),
    )

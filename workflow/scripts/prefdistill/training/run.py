"""Run a training job, from the base model to the saved adapter.

The three training scripts share these steps: place and load the model, encode the
pairs, name the checkpoints, train. Each script adds its objective and its own files.

torch is imported inside functions: a script imports this module before
``quick_imports.import_model_libraries`` has hidden unused packages.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.settings import (
    DistillationSettings,
    LoraSettings,
    OptimisationSettings,
    TextSettings,
    result_settings,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from prefdistill.models.head import Head
    from prefdistill.training.objectives import RowLosses
    from prefdistill.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """The files that every training job reads and writes, and what decides its result.

    ``run_job`` fills it by name: the names are those of the rules' inputs, outputs and
    params.

    Attributes:
        base: The base model's manifest.
        init: The adapter to start from; None to start from a fresh one.
        adapter: File of the trained adapter; its configuration goes beside it.
        curve: File of the loss of every step, as JSON lines.
        precision: How to store the frozen base, as configured.
        text: How a pair becomes tokens.
        code: Digest of the code that trains.
        scratch: Folder of the checkpoints.
    """

    base: Path
    init: Path | None = None
    adapter: Path
    curve: Path
    precision: str
    text: TextSettings
    code: str
    scratch: Path


class TrainingRun:
    """A training, from the base model to the adapter.

    Args:
        job: Its files, and what decides its result.
        settings: How to train.
        lora: The shape of a fresh adapter; None to start from ``job.init``.
    """

    def __init__(
        self,
        job: TrainingJob,
        settings: OptimisationSettings,
        lora: LoraSettings | None = None,
    ) -> None:
        from prefdistill.models.lora import adapter_rank
        from prefdistill.models.manifests import base_folder
        from prefdistill.models.memory import place

        self.job, self.settings, self.lora = job, settings, lora
        self.folder = base_folder(job.base)
        rank = lora.r if lora else adapter_rank(job.init.parent)
        self.precision, self.shard = place(
            self.folder, job.precision, settings.token_budget, rank
        )

    def load(self, *, language: bool = False) -> "torch.nn.Module":
        """Load the base, and add the adapter to train.

        Args:
            language: Whether to load a language model instead of a classifier.
        """
        from prefdistill.models.loading import load_classifier, load_language_model
        from prefdistill.models.lora import add_adapter, load_adapter
        from prefdistill.models.lora_targets import log_adapted

        seed, base = self.settings.seed, (self.folder, self.precision)
        if language:
            model = load_language_model(*base, shard=self.shard)
        else:  # the seed is for a fresh head; a saved adapter brings its own head
            model = load_classifier(*base, head_seed=seed, shard=self.shard)
        if self.lora:
            model = add_adapter(model, self.lora, seed)
        else:
            model = load_adapter(model, self.job.init.parent, trainable=True)
        log_adapted(model)
        return model

    def train(
        self,
        model: "torch.nn.Module",
        table: "pa.Table",
        objective: "RowLosses",
        epochs: float,
        sources: Sequence[Path],
        distillation: DistillationSettings | None = None,
    ) -> "Trainer":
        """Train on a table's pairs to the last step, resuming if there is a checkpoint.

        Args:
            model: From ``load``.
            table: The pairs.
            objective: The loss of their rows.
            epochs: Passes over the pairs.
            sources: The files that the pairs and the objective are made from.
            distillation: A student's settings, which say whether to keep a running mean
                of its weights.

        Returns:
            The trainer, for ``finish``.

        Raises:
            Interrupted: If the job has to stop; its state is saved.
            UserError: If the loss is not finite for several steps in a row.
        """
        from prefdistill.data.prompts import encode_pairs
        from prefdistill.models.loading import load_tokenizer
        from prefdistill.storage.checkpoints import Checkpoints
        from prefdistill.training.trainer import Trainer

        job, settings = self.job, self.settings
        encoded = encode_pairs(table, load_tokenizer(self.folder), job.text)
        logger.info(
            "%d rows, %d truncated, %d with a special token or marker made plain text",
            len(table), encoded.n_truncated, encoded.n_neutralised,
        )  # fmt: skip
        checkpoints = Checkpoints(job.scratch, self.identity(sources, distillation))
        decay = distillation.ema.decay if distillation else 0.0
        trainer = Trainer(
            model, encoded, objective, settings, epochs, checkpoints, decay
        )
        trainer.run(job.curve)
        return trainer

    def identity(
        self,
        sources: Sequence[Path],
        distillation: DistillationSettings | None = None,
    ) -> str:
        """Hash everything that decides the result, for the checkpoints.

        Args:
            sources: The files that the pairs and the objective are made from.
            distillation: The settings of a student.
        """
        from prefdistill.storage.checkpoints import identity_of

        job = self.job
        given = [job.text, self.settings, self.lora, distillation]
        known = [result_settings(each) for each in given if each is not None]
        files = [path for path in (job.base, job.init, *sources) if path is not None]
        return identity_of([job.code, self.precision, *known], *files)

    def finish(
        self,
        trainer: "Trainer",
        *,
        head: "Head | None" = None,
        average: Path | None = None,
        use_average: bool = False,
    ) -> None:
        """Write the adapter, and then delete the checkpoints.

        Args:
            trainer: The trainer, after its last step.
            head: A score head that replaces the trained one.
            average: File of an adapter with the running mean of the weights, if wanted.
            use_average: Whether the adapter is that mean, instead of the last weights.
        """
        from prefdistill.models.lora import save_adapter
        from prefdistill.running.processes import is_first

        if is_first():
            adapter = self.job.adapter.parent
            if trainer.average and (use_average or average):
                with trainer.average.in_place():
                    if average:
                        save_adapter(trainer.model, average.parent)
                    if use_average:
                        save_adapter(trainer.model, adapter)
            if not use_average:
                save_adapter(trainer.model, adapter, head=head)
        trainer.finish()

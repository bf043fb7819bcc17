"""Make a tiny base model: train its tokenizer and pre-train its weights.

The demo runs without downloads, so it makes its own models. They are pre-trained on the
quality features of simulated answers, never on verdicts.
"""

import logging
from functools import partial
from pathlib import Path

from prefdistill.models.quick_imports import import_model_libraries
from prefdistill.running.job import run_job
from prefdistill.settings import BaseModelSettings, TextSettings

logger = logging.getLogger(__name__)


def main(manifest: Path, settings: BaseModelSettings, text: TextSettings) -> None:
    """Write the model, configuration, tokenizer and manifest to one folder."""
    from prefdistill.simulation.tiny_models import make_tiny_base

    losses = make_tiny_base(manifest.parent, settings, text)
    if losses:
        last = losses[-max(1, len(losses) // 20) :]
        logger.info("dense loss %.3f -> %.3f", losses[0], sum(last) / len(last))


if __name__ == "__main__":
    run_job(snakemake, main, libraries=partial(import_model_libraries, "fp32"))

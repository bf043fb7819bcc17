"""Describe every configured model, and try it on a few pairs before any training."""

import logging
from pathlib import Path

from prefdistill.models.quick_imports import hide_unused_imports
from prefdistill.running.job import run_job
from prefdistill.settings import ModelSettings, TextSettings

logger = logging.getLogger(__name__)


def main(
    models: list[str],
    bases: list[Path],
    settings: dict[str, ModelSettings],
    text: TextSettings,
    pairs: list[dict[str, str]],
    table: Path,
) -> None:
    """Write and log a table with one row for each model.

    Args:
        models: The models' names.
        bases: The manifest of each model's base.
        settings: Model name to its settings.
        text: How pairs become tokens.
        pairs: Test pairs: ``prompt``, ``response_a``, ``response_b``.
        table: CSV file; see ``trial.try_model`` for its columns.
    """
    from prefdistill.models.manifests import base_folder
    from prefdistill.models.trial import pairs_to_try, try_model
    from prefdistill.storage.whole_files import write_csv

    tried, rows = pairs_to_try(pairs), []
    for name, base in zip(models, bases, strict=True):
        row = try_model(base_folder(base), settings[name], text, tried)
        rows.append({"model": name, "base": settings[name].base, **row})
        logger.info("%s", "\n  ".join(f"{k}: {v}" for k, v in rows[-1].items()))
    write_csv(table, rows, list(rows[0]))


if __name__ == "__main__":
    run_job(snakemake, main, libraries=hide_unused_imports)

"""Score the rows of fold files with a model, and record what made the logits."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from prefdistill.data.prompts import encode_pairs, text_digest
from prefdistill.errors import UserError
from prefdistill.models.loading import load_classifier, load_merged, load_tokenizer
from prefdistill.models.lora import load_adapter
from prefdistill.models.manifests import base_folder
from prefdistill.models.memory import place
from prefdistill.models.scoring import score_pairs, subset_rows
from prefdistill.settings import ScoringSettings, TextSettings, result_settings
from prefdistill.storage.checkpoints import Checkpoints, identity_of
from prefdistill.storage.digests import file_digest
from prefdistill.storage.logits import Logits
from prefdistill.storage.tables import FOLD_SCHEMA, read_table

logger = logging.getLogger(__name__)


def score_files(
    pairs: Sequence[Path],
    weights: Path,
    base: Path | None,
    scoring: ScoringSettings,
    text: TextSettings,
    checkpoints: Checkpoints,
) -> Logits:
    """Score rows of fold files with a model, in its views.

    Args:
        pairs: Fold files; a row id may occur once in all.
        weights: ``model.safetensors`` in a folder of its own, or, with a base,
            ``adapter_model.safetensors``.
        base: The adapter's base: its manifest, or a file in its folder.
        scoring: Which rows, and how.
        text: How pairs become tokens.
        checkpoints: Keep the logits of a stopped job.

    Returns:
        The logits of all rows; its ``meta`` says what they were made with.

    Raises:
        UserError: If a row id occurs twice, or a file does not fit the others.
    """
    table = _rows_to_score(pairs, scoring)
    folder = weights.parent if base is None else base_folder(base)
    adapter = None if base is None else weights.parent
    model, precision = _load(folder, adapter, scoring)
    encoded = encode_pairs(table, load_tokenizer(folder), text)
    made_with = {
        "adapter": None if base is None else file_digest(weights),
        "base": file_digest(base or weights),
        "text": text_digest(text),
        "max_length": text.max_length,
        "views": list(scoring.views),
        "sample": [scoring.rows, scoring.n_rows],  # of the train rows; nulls for all
        "weights": "whole" if base is None else scoring.weights,
        "precision": precision,
    }
    how = result_settings(scoring)
    identity = identity_of([checkpoints.identity, made_with, how], *pairs)
    logits = score_pairs(
        model,
        encoded,
        views=scoring.views,
        token_budget=scoring.token_budget,
        progress_batches=scoring.progress_batches,
        checkpoints=Checkpoints(checkpoints.folder, identity),
    )
    counts = {
        "n_truncated": encoded.n_truncated,
        "n_neutralised": encoded.n_neutralised,
    }
    return Logits(encoded.ids, _splits_of(table), logits, made_with | counts)


def _rows_to_score(pairs: Sequence[Path], scoring: ScoringSettings) -> pa.Table:
    """Read the rows of the wanted splits, with the wanted part of the train rows."""
    table = pa.concat_tables([read_table(path, FOLD_SCHEMA) for path in pairs])
    if scoring.splits is not None:
        wanted = pa.array(list(scoring.splits))
        table = table.filter(pc.is_in(table.column("split"), wanted))
    if len(pc.unique(table.column("id"))) != len(table):
        raise UserError(f"{', '.join(map(str, pairs))}: a row id occurs twice")
    kept = subset_rows(_splits_of(table), scoring.rows, scoring.n_rows, scoring.seed)
    logger.info("%d of %d rows are scored", kept.sum(), len(kept))
    return table.filter(pa.array(kept))


def _splits_of(table: pa.Table) -> np.ndarray:
    return np.array(table.column("split").to_pylist(), dtype=np.str_)


def _load(
    folder: Path, adapter: Path | None, scoring: ScoringSettings
) -> tuple[torch.nn.Module, str]:
    """Load a whole model, or an adapter on its base; return its precision as well."""
    if adapter is not None and scoring.weights == "merged":
        merged = load_merged(folder, adapter, scoring.precision)
        return merged, scoring.precision
    precision, shard = place(folder, scoring.precision, scoring.token_budget)
    model = load_classifier(folder, precision, shard=shard)
    if adapter is not None:
        model = load_adapter(model, adapter, trainable=False)
    return model, precision

"""Scoring pairs in both orders, packed."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefdistill.io import VIEWS
from prefdistill.job import Interrupted, Progress, UserError, stop_requested
from prefdistill.packing import collate, pack
from prefdistill.prompts import EncodedPairs

logger = logging.getLogger(__name__)


def score_pairs(
    model: Any,
    encoded: EncodedPairs,
    *,
    views: Sequence[str] = VIEWS,
    token_budget: int = 16384,
    progress_batches: int = 5,
) -> np.ndarray:
    """Logits of pairs in the given orders.

    Args:
        model: A classifier of ``models``, which is put into evaluation mode.
        encoded: The pairs.
        views: Orders to show, of AB and BA.
        token_budget: Most tokens in a forward pass.
        progress_batches: Batches between two progress lines.

    Returns:
        ``(n, n_views, 3)`` float32; classes (first, second, tie) as shown.

    Raises:
        Interrupted: After SIGTERM or SIGUSR1; nothing is kept.
        UserError: If a logit is not finite.
    """
    import torch

    from prefdistill.models import classify

    model.eval()
    n_views = len(views)
    logits = np.zeros((len(encoded.ids) * n_views, 3), dtype=np.float32)
    bins = pack(np.repeat(encoded.lengths, n_views), token_budget)
    progress = Progress(len(bins), "batches", every_s=0 if len(bins) < 50 else 10)
    n_done = n_tokens = 0
    for number, rows in enumerate(bins, start=1):
        if stop_requested():
            raise Interrupted(f"{number - 1} of {len(bins)} batches scored, none kept")
        pairs, shown = np.divmod(rows, n_views)
        batch = collate(
            [encoded.tokens(i, views[j]) for i, j in zip(pairs, shown, strict=True)]
        )
        with torch.inference_mode():
            logits[rows] = classify(model, batch).cpu().numpy()
        n_done += 1
        n_tokens += len(batch.input_ids[0])
        if n_done == progress_batches or number == len(bins):
            progress.update(n_done, n_tokens)
            n_done = n_tokens = 0
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise UserError(
            f"row id {encoded.ids[bad[0] // n_views]}: the model's logits are not "
            f"finite ({len(bad)} rows); train again or use another precision"
        )
    return logits.reshape(len(encoded.ids), n_views, 3)


def subset_rows(
    split: np.ndarray, rows: list[int] | None, n_rows: int | None, seed: int
) -> np.ndarray:
    """Which rows of a fold file to score: ``(n,)`` bool.

    Rows outside ``train`` are always in. Of the train rows, counted from 0 in file
    order, those in ``[start, end)`` of ``rows``, or a seeded sample of ``n_rows``.

    Raises:
        UserError: If the range holds no train row.
    """
    kept = np.ones(len(split), dtype=bool)
    train = np.flatnonzero(split == "train")
    if rows is not None:
        start, end = rows
        kept[train[:start]] = kept[train[end:]] = False
        if train.size and not kept[train].any():
            raise UserError(
                f"inference.rows: [{start}, {end}) holds no train row of {len(train)}"
            )
    elif n_rows is not None and n_rows < len(train):
        kept[train] = False
        kept[np.random.default_rng(seed).choice(train, n_rows, replace=False)] = True
    return kept

"""Scoring pairs in both orders, packed."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prefdistill.checkpoints import Checkpoints
from prefdistill.io import VIEWS
from prefdistill.job import Interrupted, Progress, UserError, stop_requested
from prefdistill.memory import halved_budget
from prefdistill.models import classify
from prefdistill.packing import collate, pack
from prefdistill.prompts import EncodedPairs

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 300.0


def score_pairs(
    model: Any,
    encoded: EncodedPairs,
    *,
    views: Sequence[str] = VIEWS,
    token_budget: int = 16384,
    progress_batches: int = 5,
    checkpoints: Checkpoints | None = None,
) -> np.ndarray:
    """Logits of pairs in the given orders.

    Args:
        model: A classifier of ``models``, which is put into evaluation mode.
        encoded: The pairs.
        views: Orders to show, of AB and BA.
        token_budget: Most tokens in a forward pass; halved when memory runs out.
        progress_batches: Batches between two progress lines.
        checkpoints: Where logits are kept every five minutes and when the job is
            stopped; without it nothing is kept.

    Returns:
        ``(n, n_views, 3)`` float32; classes (first, second, tie) as shown.

    Raises:
        Interrupted: After SIGTERM or SIGUSR1, or shortly before the time limit.
        UserError: If a logit is not finite, or memory runs out with a single row.
    """
    model.eval()
    n_views = len(views)
    lengths = np.repeat(encoded.lengths, n_views)
    state = _State(torch.zeros(len(lengths), 3), 0, token_budget, token_budget)
    if checkpoints:
        state.resume(checkpoints)
    bins = pack(lengths, state.token_budget)
    every_s = 0 if len(bins) < 50 else 10
    progress = Progress(len(bins), "batches", done=state.n_done, every_s=every_s)
    first = saved = state.n_done
    saved_at = time.monotonic()
    n_new = n_tokens = 0
    for members in bins[first:]:
        stop = stop_requested()
        due = time.monotonic() - saved_at > SAVE_EVERY_S
        if checkpoints and state.n_done > saved and (stop or due):
            state.save(checkpoints)
            saved, saved_at = state.n_done, time.monotonic()
        if stop:
            raise Interrupted(
                f"{saved} of {len(bins)} batches are scored and kept",
                progressed=saved > first,
            )
        scored = _score(model, encoded, members, views, state.pass_budget)
        while scored is None:
            state.halve(int(lengths[members].max()))
            scored = _score(model, encoded, members, views, state.pass_budget)
        state.logits[members] = scored
        state.n_done += 1
        n_new += 1
        n_tokens += int(lengths[members].sum())
        if n_new == progress_batches or state.n_done == len(bins):
            progress.update(n_new, n_tokens)
            n_new = n_tokens = 0
    return state.logits.numpy().reshape(len(encoded.ids), n_views, 3)


@dataclass
class _State:
    """Unfinished scoring: ``(rows, 3)`` float32 logits of the first ``n_done`` bins.

    The bins are packed with ``token_budget``; a pass holds at most ``pass_budget``
    tokens of one.
    """

    logits: torch.Tensor
    n_done: int
    token_budget: int
    pass_budget: int

    def resume(self, checkpoints: Checkpoints) -> None:
        """Take up the newest checkpoint, if there is one, with its packing."""
        found = checkpoints.load()
        if found:
            self.n_done, tensors, info = found
            self.logits = tensors["logits"]
            self.token_budget = info["token_budget"]
            self.pass_budget = min(self.pass_budget, info["pass_budget"])
            logger.info("going on after %d batches", self.n_done)

    def save(self, checkpoints: Checkpoints) -> None:
        budgets = {"token_budget": self.token_budget, "pass_budget": self.pass_budget}
        checkpoints.save(self.n_done, {"logits": self.logits}, budgets)

    def halve(self, longest_row: int) -> None:
        """Take half the tokens in a pass, from now on.

        Raises:
            UserError: If a pass held but one row.
        """
        self.pass_budget = halved_budget(self.pass_budget, longest_row)


def _score(
    model: Any,
    encoded: EncodedPairs,
    members: np.ndarray,
    views: Sequence[str],
    pass_budget: int,
) -> torch.Tensor | None:
    """Logits of one bin's rows, ``(rows, 3)`` on the CPU; None if memory ran out.

    Raises:
        UserError: If a logit is not finite.
    """
    pairs, shown = np.divmod(members, len(views))
    logits = torch.zeros(len(members), 3)
    try:
        for part in pack(encoded.lengths[pairs], pass_budget):
            tokens = [encoded.tokens(pairs[i], views[shown[i]]) for i in part.tolist()]
            with torch.inference_mode():
                logits[part] = classify(model, collate(tokens)).float().cpu()
    except torch.OutOfMemoryError as error:
        logger.warning("%s", str(error).splitlines()[0])
        return None
    bad = np.flatnonzero(~torch.isfinite(logits).all(dim=1).numpy())
    if len(bad):
        raise UserError(
            f"row id {encoded.ids[pairs[bad[0]]]}: the model's logits are not finite "
            f"({len(bad)} of {len(members)} rows of its batch); train again or use "
            "another precision"
        )
    return logits


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

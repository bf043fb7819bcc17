"""Score pairs in both orders of the answers, in packed batches."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prefdistill.data.prompts import EncodedPairs
from prefdistill.engine.packing import collate, pack, shape_step, shared_tokens
from prefdistill.errors import Interrupted, UserError
from prefdistill.models.forward import (
    classify,
    device_of,
    engine_of,
    is_sharded,
    shares_prompts,
)
from prefdistill.models.memory import count_parameters, halved_budget, note_short_memory
from prefdistill.running.processes import (
    any_process,
    is_first,
    n_processes,
    rank,
    sum_over_processes,
    wait_for_all,
)
from prefdistill.running.progress import Progress
from prefdistill.running.stopping import stop_requested
from prefdistill.storage.checkpoints import SAVE_EVERY_S, Checkpoints
from prefdistill.storage.logits import VIEWS

logger = logging.getLogger(__name__)

# Bins that a process queues on a GPU before it waits for their logits.
QUEUED_BINS = 8
# With fewer bins, every progress line is logged, however quickly they follow.
FEW_BINS = 50


def score_pairs(
    model: Any,
    encoded: EncodedPairs,
    *,
    views: Sequence[str] = VIEWS,
    token_budget: int = 16896,
    progress_batches: int = 5,
    checkpoints: Checkpoints | None = None,
) -> np.ndarray:
    """Compute logits of pairs in the given orders; processes share out the bins.

    With both orders, the common prompt of a pair is computed once (see ``packing``).

    Args:
        model: A classifier from ``models.loading``; it is put into evaluation mode.
        encoded: The pairs.
        views: Orders to show, of AB and BA.
        token_budget: Most tokens in a forward pass; halved when memory runs out.
        progress_batches: Batches between two progress lines.
        checkpoints: Where logits are saved every ``SAVE_EVERY_S`` seconds and when the
            job is stopped; None saves nothing.

    Returns:
        ``(n, n_views, 3)`` float32 in every process; classes (first, second, tie) as
        shown.

    Raises:
        Interrupted: After SIGTERM or SIGUSR1, or shortly before the time limit.
        UserError: If a logit is not finite, or memory runs out with a single row or a
            sharded model.
    """
    model.eval()
    rows = _Rows(encoded, views, shares_prompts(model))
    lengths = rows.lengths
    n_weights = count_parameters(model)["linear"]
    # A multiplication and an addition for each weight and token.
    engine_of(model).set_compiled(2 * n_weights * float(rows.n_tokens))
    state = _State(torch.zeros(len(lengths), 3), 0, token_budget, token_budget)
    if checkpoints:
        state.resume(checkpoints)
    if is_sharded(model):  # every process needs the same number of passes
        state.pass_budget = state.token_budget
    bins = pack(lengths, state.token_budget, rows.common)
    every_s = 0 if len(bins) < FEW_BINS else 10
    progress = Progress(len(bins), "batches", done=state.n_done, every_s=every_s)
    first = saved = state.n_done
    saved_at = time.monotonic()
    n_new = n_tokens = 0
    n_together = n_processes() * _queued_bins(model)
    while state.n_done < len(bins):
        stop = any_process(stop_requested())
        due = any_process(time.monotonic() - saved_at > SAVE_EVERY_S)
        if checkpoints and state.n_done > saved and (stop or due):
            state.save(checkpoints)
            saved, saved_at = state.n_done, time.monotonic()
        if stop:
            raise Interrupted(
                f"{saved} of {len(bins)} batches are scored and kept",
                progressed=saved > first,
            )
        together = bins[state.n_done : state.n_done + n_together]
        members = _take_bins(model, rows, together, state)
        n_new += len(together)
        n_tokens += int(lengths[members].sum())
        if n_new >= progress_batches or state.n_done == len(bins):
            progress.update(n_new, n_tokens)
            n_new = n_tokens = 0
    return state.logits.numpy().reshape(len(encoded.ids), len(views), 3)


class _Rows:
    """The rows to score: the pairs in their order, each in all views.

    Args:
        encoded: The pairs.
        views: Orders to show.
        shared: Whether a row may share the tokens of its prompt with the one before.
    """

    def __init__(
        self, encoded: EncodedPairs, views: Sequence[str], shared: bool
    ) -> None:
        self.encoded, self.views = encoded, views
        self.lengths = np.repeat(encoded.lengths, len(views))
        # Tokens shared with the previous row; the first row of a pair shares none.
        self.common = np.zeros_like(self.lengths)
        for column in range(1, len(views)):
            self.common[column :: len(views)] = encoded.prefix_lengths * shared

    @property
    def n_tokens(self) -> int:
        """Count the tokens to compute, with every common prompt computed once."""
        return int(self.lengths.sum() - self.common.sum())

    def tokens(self, row: int) -> np.ndarray:
        """Return the tokens of a row, ``(length,)`` integer."""
        pair, column = divmod(row, len(self.views))
        return self.encoded.tokens(pair, self.views[column])


@dataclass
class _State:
    """Unfinished scoring: ``(rows, 3)`` float32 logits of the first ``n_done`` bins.

    The bins are packed with ``token_budget``; a pass computes at most ``pass_budget``
    tokens of a bin.
    """

    logits: torch.Tensor
    n_done: int
    token_budget: int
    pass_budget: int

    def resume(self, checkpoints: Checkpoints) -> None:
        """Resume from the newest checkpoint, if there is one, with its packing."""
        found = checkpoints.load()
        if found:
            self.n_done, tensors, info = found
            self.logits = tensors["logits"]
            self.token_budget = info["token_budget"]
            self.pass_budget = min(self.pass_budget, info["pass_budget"])
            logger.info("going on after %d batches", self.n_done)

    def save(self, checkpoints: Checkpoints) -> None:
        """Save the state in the first process; the others wait for it."""
        budgets = {"token_budget": self.token_budget, "pass_budget": self.pass_budget}
        if is_first():
            checkpoints.save(self.n_done, {"logits": self.logits}, budgets)
        wait_for_all()

    def halve(self, longest_row: int) -> None:
        """Halve the tokens in all passes to come.

        Raises:
            UserError: If a pass held only one row.
        """
        self.pass_budget = halved_budget(self.pass_budget, longest_row)


def _queued_bins(model: Any) -> int:
    return QUEUED_BINS if device_of(model).type == "cuda" else 1


def _take_bins(
    model: Any, rows: _Rows, bins: list[np.ndarray], state: _State
) -> np.ndarray:
    """Score bins into the state, in smaller passes if memory runs out.

    Returns:
        ``(n,)`` int64 row indices of the bins.
    """
    members = np.concatenate(bins)
    scored = _score_together(model, rows, bins, state.pass_budget)
    while scored is None:
        state.halve(int(rows.lengths[members].max()))
        scored = _score_together(model, rows, bins, state.pass_budget)
    state.logits[members] = scored
    state.n_done += len(bins)
    return members


def _score_together(
    model: Any, rows: _Rows, bins: list[np.ndarray], pass_budget: int
) -> torch.Tensor | None:
    """Score the rows of bins, shared out to the processes.

    Returns:
        ``(n_rows, 3)`` float32 on the CPU, bin after bin, in every process; None if
        memory ran out in any process.

    Raises:
        UserError: If a logit is not finite.
    """
    # Process r of n scores bins r, r + n, and so on. A process that has none left
    # scores the last bin again, as a sharded model needs all processes in every pass.
    n_rounds = -(-len(bins) // n_processes())
    own = range(rank(), rank() + n_rounds * n_processes(), n_processes())
    scored = _score(
        model, rows, [bins[min(i, len(bins) - 1)] for i in own], pass_budget
    )
    if any_process(scored is None):
        return None
    starts = np.cumsum([0, *map(len, bins)])
    members = np.concatenate(bins)
    logits = torch.zeros(len(members), 3)
    for index, part in zip(own, scored, strict=True):
        if index < len(bins):
            logits[starts[index] : starts[index + 1]] = part
    sum_over_processes([logits])
    bad = np.flatnonzero(~torch.isfinite(logits).all(dim=1).numpy())
    if len(bad):
        row_id = rows.encoded.ids[members[bad[0]] // len(rows.views)]
        raise UserError(
            f"row id {row_id}: the model's logits are not finite ({len(bad)} of "
            f"{len(members)} rows of its batch); train again or use another precision"
        )
    return logits


def _score(
    model: Any, rows: _Rows, bins: list[np.ndarray], pass_budget: int
) -> list[torch.Tensor] | None:
    """Score each bin's rows in this process.

    Returns:
        ``(n_rows, 3)`` float32 on the CPU for each bin; None if memory ran out.
    """
    step = shape_step(min(pass_budget, rows.n_tokens), device_of(model).type)
    queued = []
    try:
        for members in bins:
            common = shared_tokens(members, rows.common)
            for part in pack(rows.lengths[members], pass_budget, common):
                tokens = [rows.tokens(row) for row in members[part].tolist()]
                batch = collate(tokens, step, shared_tokens(part, common))
                with torch.inference_mode():
                    scored = classify(model, batch).float()
                queued.append((len(members), part, scored))
    except torch.OutOfMemoryError as error:
        note_short_memory(model, error)
        return None
    # Results are copied only once all passes are queued: the GPU never waits for the
    # host.
    results, filled = [], 0
    for n_rows, part, scored in queued:
        if not filled:
            results.append(torch.zeros(n_rows, 3))
        results[-1][part] = scored.cpu()
        filled = (filled + len(part)) % n_rows
    return results


def subset_rows(
    split: np.ndarray, rows: list[int] | None, n_rows: int | None, seed: int
) -> np.ndarray:
    """Choose the rows of a fold file to score.

    Args:
        split: ``(n,)`` split of each row. Rows outside ``train`` are always scored.
        rows: Start and end (exclusive) of the train rows to score, counted from 0 in
            file order; None for all.
        n_rows: Number of train rows to sample; None for all.
        seed: Of the sample.

    Returns:
        ``(n,)`` bool.

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

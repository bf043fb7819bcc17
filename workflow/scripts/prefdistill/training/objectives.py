"""Compute the losses of rows, and build the objectives that the trainer minimises.

An objective is a function of a model, a packed batch, and the pair index and order of
each row. It returns the rows' losses; ``trainer`` averages them over a step.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, log_softmax
from torch.utils.checkpoint import checkpoint

from prefdistill.classes import swap_classes
from prefdistill.engine.device import to_device
from prefdistill.engine.packing import PackedBatch
from prefdistill.models.forward import classify, core_model, engine_of
from prefdistill.settings import DistillationSettings, LossWeights
from prefdistill.training.lessons import Lessons

# From model, batch, pair indices (n_rows,) and orders (n_rows,) to losses (n_rows,).
RowLosses = Callable[
    [torch.nn.Module, PackedBatch, np.ndarray, np.ndarray], torch.Tensor
]

# Tokens whose logits over the vocabulary are in memory at once.
CHUNK_TOKENS = 1024


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy of rows.

    Args:
        logits: ``(n, 3)`` float.
        targets: ``(n, 3)`` float distributions over the same classes.

    Returns:
        ``(n,)`` losses in nats.
    """
    return -(targets * log_softmax(logits, dim=1)).sum(dim=1)


def distillation_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: torch.Tensor,
    is_labelled: torch.Tensor,
    has_teacher: torch.Tensor,
    weights: LossWeights,
    temperature: float,
) -> torch.Tensor:
    """Compute the loss of rows against labels and teachers, as BlackPearl did.

    The loss of a row is ``(w_ce CE + sum over teachers of (w_kl T² KL(teacher ||
    student) + w_cosine (1 - cos))) / (w_ce + n_teachers (w_kl + w_cosine))``. KL is
    between the distributions at temperature T (Hinton et al. 2015, hence T²), the
    cosine between probabilities at temperature 1. A row without a label or without a
    teacher's logits lacks that term. The divisor stays the same, so that a term has the
    same weight in every row.

    Args:
        logits: ``(n, 3)`` float of the student.
        targets: ``(n, 3)`` float distributions; ignored where unlabelled.
        teacher_logits: ``(n, n_teachers, 3)`` float, finite; ignored where missing.
        is_labelled: ``(n,)`` bool.
        has_teacher: ``(n, n_teachers)`` bool.
        weights: ``ce``, ``kl`` and ``cosine``, not negative.
        temperature: T, positive.

    Returns:
        ``(n,)`` losses in nats.
    """
    n_teachers = teacher_logits.shape[1]
    total = weights.ce * cross_entropy(logits, targets) * is_labelled
    student = log_softmax(logits / temperature, dim=1)[:, None]
    teacher = log_softmax(teacher_logits / temperature, dim=2)
    kl = (teacher.exp() * (teacher - student)).sum(dim=2) * temperature**2
    cosine = 1 - cosine_similarity(
        logits.softmax(dim=1)[:, None], teacher_logits.softmax(dim=2), dim=2
    )
    terms = weights.kl * kl + weights.cosine * cosine
    total = total + (terms * has_teacher).sum(dim=1)
    return total / (weights.ce + n_teachers * weights.per_teacher)


def next_token_losses(
    hidden: torch.Tensor,
    head: torch.nn.Module,
    softcap: float | None,
    input_ids: torch.Tensor,
    cu_lengths: list[int],
) -> torch.Tensor:
    """Compute each row's mean loss of predicting its next tokens.

    Args:
        hidden: ``(n_tokens, hidden_size)`` last hidden states of a packed batch.
        head: Linear layer from hidden size to vocabulary.
        softcap: Bound of the final logits (Gemma-2), or None.
        input_ids: ``(n_tokens,)`` int64 tokens of the batch.
        cu_lengths: Borders of the rows.

    Returns:
        ``(n_rows,)`` float32 losses in nats.
    """

    def chunk_losses(states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits: Any = head(states).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return torch.nn.functional.cross_entropy(logits, ids, reduction="none")

    # The logits over the vocabulary are computed in chunks, and again in the backward
    # pass: those of all tokens at once would take more memory than the model.
    states, targets = hidden[:-1], input_ids[1:]
    losses = torch.cat(
        [
            checkpoint(
                chunk_losses,
                states[start : start + CHUNK_TOKENS],
                targets[start : start + CHUNK_TOKENS],
                use_reentrant=False,
            )
            for start in range(0, len(states), CHUNK_TOKENS)
        ]
    )
    return torch.stack(
        [losses[start : end - 1].mean() for start, end in pairwise(cu_lengths)]
    )


def _shown(targets: np.ndarray) -> torch.Tensor:
    """Stack targets by order, ``(2, n, 3)``; order BA shows B first."""
    return torch.from_numpy(np.stack([targets, swap_classes(targets)]))


def label_objective(targets: np.ndarray) -> RowLosses:
    """Build the objective of cross-entropy against labels.

    Args:
        targets: ``(n, 3)`` float32 targets of the pairs, classes (A, B, tie).
    """
    shown = _shown(targets)

    def row_losses(model, batch, rows, views):
        logits = classify(model, batch)
        return cross_entropy(logits, to_device(shown[views, rows], logits.device))

    return row_losses


def distillation_objective(
    lessons: Lessons, settings: DistillationSettings
) -> RowLosses:
    """Build the objective of ``distillation_loss`` times the pairs' weights.

    Args:
        lessons: The pairs with their targets and weights.
        settings: The weights of the loss terms, and the temperature.
    """
    shown = _shown(lessons.targets)
    by_order = torch.from_numpy(lessons.teacher_logits.transpose(2, 0, 1, 3).copy())
    labelled = torch.from_numpy(lessons.is_labelled)
    taught = torch.from_numpy(lessons.has_teacher)
    row_weights = torch.from_numpy(lessons.row_weights)

    def row_losses(model, batch, rows, views):
        logits = classify(model, batch)
        seen = shown[views, rows], by_order[views, rows], labelled[rows], taught[rows]
        parts = [to_device(part, logits.device) for part in seen]
        losses = distillation_loss(
            logits, *parts, settings.weights, settings.temperature
        )
        return losses * to_device(row_weights[rows], logits.device)

    return row_losses


def next_token_objective() -> RowLosses:
    """Build the objective of a language model, the mean next-token loss of a row.

    Rows must be whole; the objective raises a ValueError if rows share tokens.
    """

    def row_losses(model, batch, rows, views):
        if batch.shared.any():
            raise ValueError("next-token losses need rows that share no tokens")
        hidden = engine_of(model).forward(batch)
        core = core_model(model)
        return next_token_losses(
            hidden,
            core.lm_head,
            getattr(core.config, "final_logit_softcapping", None),
            to_device(batch.input_ids[0], hidden.device),
            batch.cu_lengths[: len(batch.last) + 1].tolist(),
        )

    return row_losses

"""Losses of single rows, and the objectives made of them.

An objective is what ``training`` calls with a model, a packed batch, and the pair
indices and orders of its rows; it returns the rows' losses, averaged over a step there.
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

RowLosses = Callable[
    [torch.nn.Module, PackedBatch, np.ndarray, np.ndarray], torch.Tensor
]

CHUNK_TOKENS = 1024


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of rows, ``(n,)`` in nats, against ``(n, 3)`` distributions."""
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
    """Labels and any number of teachers, as BlackPearl's student was trained.

    For each row ``(w_ce CE + sum over teachers of (w_kl T² KL(teacher || student) +
    w_cosine (1 - cos))) / (w_ce + n_teachers (w_kl + w_cosine))``. KL is between the
    distributions at temperature T (Hinton et al. 2015, hence T²), the cosine between
    probabilities at temperature 1. A row without label or without a teacher's logits
    lacks that term under the same divisor, so that every term has one weight over all
    rows.

    Args:
        logits: ``(n, 3)`` float of the student.
        targets: ``(n, 3)`` float distributions; ignored where unlabelled.
        teacher_logits: ``(n, n_teachers, 3)`` float; finite, ignored where missing.
        is_labelled: ``(n,)`` bool.
        has_teacher: ``(n, n_teachers)`` bool.
        weights: ``ce``, ``kl`` and ``cosine``, not negative.
        temperature: T, positive.

    Returns:
        ``(n,)`` losses.
    """
    n_teachers = teacher_logits.shape[1]
    total = weights.ce * cross_entropy(logits, targets) * is_labelled
    student = log_softmax(logits / temperature, dim=1)[:, None]
    teacher = log_softmax(teacher_logits / temperature, dim=2)
    kl = (teacher.exp() * (teacher - student)).sum(dim=2) * temperature**2
    cosine = 1 - cosine_similarity(
        logits.softmax(dim=1)[:, None], teacher_logits.softmax(dim=2), dim=2
    )
    both = weights.kl * kl + weights.cosine * cosine
    total = total + (both * has_teacher).sum(dim=1)
    return total / (weights.ce + n_teachers * weights.per_teacher)


def next_token_losses(
    hidden: torch.Tensor,
    head: torch.nn.Module,
    softcap: float | None,
    input_ids: torch.Tensor,
    cu_lengths: list[int],
) -> torch.Tensor:
    """Mean loss of predicting each row's next tokens, ``(n_rows,)`` in nats.

    The logits over the vocabulary are made a chunk at a time and again in the backward
    pass, as all at once they would outweigh the model.

    Args:
        hidden: ``(n_tokens, hidden_size)`` last hidden states of a packed batch.
        head: Linear layer from hidden size to vocabulary.
        softcap: Bound of the final logits (Gemma-2), or None.
        input_ids: ``(n_tokens,)`` the batch's tokens.
        cu_lengths: Borders of the rows.
    """

    def chunk_losses(states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits: Any = head(states).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return torch.nn.functional.cross_entropy(logits, ids, reduction="none")

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
    """Targets by order, ``(2, n, 3)``: order BA shows B first."""
    return torch.from_numpy(np.stack([targets, swap_classes(targets)]))


def label_objective(targets: np.ndarray) -> RowLosses:
    """Cross-entropy against the pairs' ``(n, 3)`` float32 targets (A, B, tie)."""
    shown = _shown(targets)

    def row_losses(model, batch, rows, views):
        logits = classify(model, batch)
        return cross_entropy(logits, to_device(shown[views, rows], logits.device))

    return row_losses


def distillation_objective(
    lessons: Lessons, settings: DistillationSettings
) -> RowLosses:
    """``distillation_loss`` of pairs, times their weights.

    Args:
        lessons: What is learnt from each pair.
        settings: With the loss terms' weights and the temperature.
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
    """Mean next-token loss of a row, for a language model; rows must be whole."""

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

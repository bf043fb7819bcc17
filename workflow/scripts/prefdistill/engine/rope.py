"""Give each row of a packed batch the rotary embedding of its own length.

Two kinds of rotary embedding choose their frequencies by the length of a row: longrope
and dynamic. transformers takes the longest row of a batch, and dynamic remembers
lengths, so a row's logits would depend on the rows beside it and before it.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from prefdistill.engine.packing import PackedBatch

BY_LENGTH = {"dynamic", "longrope"}


class RowRope(nn.Module):
    """Apply a rotary embedding of transformers to rows of one length at a time.

    Args:
        rotary: The rotary embedding, as it is before its first use.

    Attributes:
        lengths: ``(n_tokens,)`` integers, for each place of the packed batch to come
            the length of its row; None if the batch is one row.
    """

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary
        self.lengths: np.ndarray | None = None

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute cosines and sines, ``(1, n_tokens, rotated)`` each."""
        if self.lengths is None:
            return self._fresh()(x, position_ids, *args, **kwargs)
        kept: tuple[torch.Tensor, ...] = ()
        for length in np.unique(self.lengths):
            places = torch.from_numpy(np.flatnonzero(self.lengths == length))
            places = places.to(position_ids.device)
            parts = self._fresh()(x, position_ids[:, places], *args, **kwargs)
            kept = kept or tuple(
                part.new_empty(1, len(self.lengths), part.shape[-1]) for part in parts
            )
            for whole, part in zip(kept, parts, strict=True):
                whole[:, places] = part
        cos, sin = kept
        return cos, sin

    def _fresh(self) -> nn.Module:
        """Copy the embedding: a call may change its frequencies."""
        config = self.rotary.config
        return copy.deepcopy(self.rotary, {id(config): config})


def follow_rows(decoder: nn.Module) -> None:
    """Wrap a decoder's rotary embedding, in place, if it chooses by length."""
    rotary = getattr(decoder, "rotary_emb", None)
    kinds = getattr(rotary, "rope_type", None)
    if BY_LENGTH & (set(kinds.values()) if isinstance(kinds, dict) else {kinds}):
        decoder.rotary_emb = RowRope(rotary)


def tell_lengths(decoder: nn.Module, batch: PackedBatch | None) -> None:
    """Tell a wrapped rotary embedding the lengths of a packed batch's rows.

    Args:
        decoder: Whose rotary embedding may be wrapped.
        batch: The batch to come; None for a single row.
    """
    rotary = getattr(decoder, "rotary_emb", None)
    if isinstance(rotary, RowRope):
        # Both orders of a pair have the same length, so the tokens that they share have
        # one rotation.
        lengths = batch and np.repeat(batch.lengths + batch.shared, batch.lengths)
        rotary.lengths = lengths

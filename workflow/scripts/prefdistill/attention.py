"""Causal attention within each row of a packed batch.

Registered with transformers under the name ``packed``: a model loaded with that
attention passes the ``packed`` argument of its forward through to every layer. On the
CPU, rows of similar length are gathered into small right-padded groups and go through
PyTorch's scaled dot product attention, or through explicit products where scores are
soft-capped (Gemma-2). On CUDA, FlexAttention runs with one block mask a batch.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention

ATTENTION = "packed"
GROUP_FILL = 0.7


class PackedLayout:
    """Where the rows of a packed batch lie; built once, shared by all layers.

    Args:
        lengths: ``(n_rows,)`` integer tokens of each row.
        device: Where the indices are needed.
    """

    def __init__(self, lengths: np.ndarray, device: torch.device) -> None:
        self.lengths, self.device = np.asarray(lengths, dtype=np.int64), device
        self._masks: dict[Any, Any] = {}
        if device.type == "cpu":
            self.groups, self.scatter = self._grouped()

    def _grouped(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Token indices of each group, ``(n, length)``, and the way back.

        Rows go together while the shortest is at least ``GROUP_FILL`` of the longest.
        Padding repeats token 0: it comes after a row's own tokens, so causal attention
        never looks at it, and its output is not scattered back.
        """
        starts = np.cumsum(self.lengths) - self.lengths
        order = np.argsort(-self.lengths, kind="stable")
        groups, scatter = [], np.zeros(int(self.lengths.sum()), dtype=np.int64)
        offset = first = 0
        while first < len(order):
            longest = int(self.lengths[order[first]])
            fits = self.lengths[order[first:]] >= GROUP_FILL * longest
            n_rows = int(fits.sum())
            index = np.zeros((n_rows, longest), dtype=np.int64)
            for place, row in enumerate(order[first : first + n_rows]):
                tokens = np.arange(starts[row], starts[row] + self.lengths[row])
                index[place, : len(tokens)] = tokens
                scatter[tokens] = offset + place * longest + np.arange(len(tokens))
            groups.append(torch.from_numpy(index))
            offset += index.size
            first += n_rows
        return groups, torch.from_numpy(scatter)

    def causal_mask(self, length: int, window: int | None) -> torch.Tensor:
        """``(length, length)`` bool: which keys (columns) a query (row) may see."""
        key = ("dense", length, window)
        if key not in self._masks:
            ones = torch.ones(length, length, dtype=torch.bool)
            mask = ones.tril()
            self._masks[key] = mask if window is None else mask & ~ones.tril(-window)
        return self._masks[key]

    def block_mask(self, window: int | None) -> Any:
        """FlexAttention's block-sparse mask of the whole batch."""
        if window not in self._masks:
            from torch.nn.attention.flex_attention import create_block_mask

            numbers = np.repeat(np.arange(len(self.lengths)), self.lengths)
            rows = torch.from_numpy(numbers).to(self.device)

            def visible(_batch, _head, query, key):
                return (rows[query] == rows[key]) & (query >= key)

            def visible_in_window(batch, head, query, key):
                return visible(batch, head, query, key) & (query - key < window)

            n_tokens = len(rows)
            mask_mod = visible if window is None else visible_in_window
            self._masks[window] = create_block_mask(
                mask_mod, None, None, n_tokens, n_tokens, device=self.device
            )
        return self._masks[window]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    packed: PackedLayout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, in the form that transformers calls.

    Args:
        module: The attention layer.
        query: ``(1, n_heads, n_tokens, head_dim)``.
        key: ``(1, n_key_heads, n_tokens, head_dim)``.
        value: Like ``key``.
        attention_mask: Unused; the layout says what a token sees.
        scaling: Factor of the scores.
        dropout: Share of attention weights dropped; 0 outside training.
        softcap: Bound of the scores, through ``softcap * tanh(score / softcap)``.
        sliding_window: Number of latest tokens seen, the token itself included.
        packed: Layout of the batch.

    Returns:
        ``(1, n_tokens, n_heads, head_dim)``, and None for the weights.

    Raises:
        ValueError: If the model was called without a layout.
    """
    if packed is None:
        raise ValueError("a model with packed attention must be called with packed=")
    if query.device.type == "cuda":
        return _flex(query, key, value, scaling, softcap, sliding_window, packed), None
    outputs = []
    for index in packed.groups:
        states = [x[0][:, index].transpose(0, 1) for x in (query, key, value)]
        output = _group(*states, scaling, dropout, softcap, sliding_window, packed)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[packed.scatter][None], None


def _group(query, key, value, scaling, dropout, softcap, window, packed):
    """Attention of right-padded rows: all ``(n, heads, length, head_dim)``."""
    length = query.shape[2]
    window = window if window is not None and window < length else None
    n_repeats = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(n_repeats, dim=1)
    value = value.repeat_interleave(n_repeats, dim=1)
    if softcap is None:
        mask = None if window is None else packed.causal_mask(length, window)
        return scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=mask is None, scale=scaling
        )
    scores = query @ key.transpose(2, 3) * scaling
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~packed.causal_mask(length, window), float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return drop(weights, dropout) @ value


def _flex(query, key, value, scaling, softcap, window, packed):
    if window is not None and window >= packed.lengths.max():
        window = None
    output = _compiled_flex_attention()(
        query,
        key,
        value,
        score_mod=None if softcap is None else _soft_cap(softcap),
        block_mask=packed.block_mask(window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2)


@cache
def _soft_cap(bound: float) -> Any:
    """The same function for the same bound, as another one would be compiled anew."""

    def capped(score, _batch, _head, _query, _key):
        return bound * torch.tanh(score / bound)

    return capped


@cache
def _compiled_flex_attention() -> Any:
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    # One build for each shape of ``packing.next_shape``, mask and gradient mode.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(flex_attention, dynamic=False)


def register() -> None:
    """Make ``packed`` known to transformers; safe to call again.

    No mask function of that name is registered, so transformers builds no mask.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)

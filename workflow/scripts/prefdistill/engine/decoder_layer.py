"""Compute a decoder layer from its weights.

``attention_half`` and ``mlp_half`` make up a layer. In the last layer, only some
tokens' states may be wanted. Then ``heads_of``, ``attention_of_kept`` and
``after_attention`` replace ``attention_half``. States are ``(n, hidden)``, for the n
tokens of a packed batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from prefdistill.engine.attention import Scores, attention_of_some, packed_attention
from prefdistill.engine.frozen import Group, product
from prefdistill.engine.gated import ACTIVATIONS, project_gated
from prefdistill.engine.layout import Attention, PackedLayout

# Up to this many kept tokens, computing all their scores at once is quicker than
# attention of all tokens. A batch of real rows keeps 64.
AT_ONCE = 128
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# Cosines and sines of the rotary embedding, (n, 1, rotated size of a head) each; None
# for a layer that rotates nothing.
Rope = tuple[torch.Tensor, torch.Tensor] | None


@dataclass(frozen=True)
class Shape:
    """The sizes and settings that all layers of a model have in common.

    Attributes:
        n_heads: Query heads.
        n_key_heads: Heads of keys, and of values.
        head_dim: Size of a head.
        eps: Added to the mean square in a norm.
        activation: The MLP's, from ``gated.ACTIVATIONS``.
        scores: How attention computes its scores.
    """

    n_heads: int
    n_key_heads: int
    head_dim: int
    eps: float
    activation: str
    scores: Scores


class Weights(NamedTuple):
    """A layer's weights (linear modules by group, norms by place) and its shape.

    A norm whose weight is float32 scales before it rounds.
    """

    groups: dict[str, Group]
    norms: dict[str, torch.Tensor]
    shape: Shape


def attention_half(
    x: torch.Tensor,
    rope: Rope,
    attention: Attention,
    weights: Weights,
    training: bool,
) -> torch.Tensor:
    """Add attention to the residual stream.

    Args:
        x: The residual stream, ``(n, hidden)``.
        rope: Cosines and sines of the rotary embedding.
        attention: From ``PackedLayout.attention``.
        weights: The layer's weights.
        training: Whether LoRA drops out inputs.

    Returns:
        ``(n, hidden)``.
    """
    heads = heads_of(x, rope, weights, training)
    states = attend(heads, attention, weights.shape.scores)
    return after_attention(x, states, weights, training)


def heads_of(x: torch.Tensor, rope: Rope, weights: Weights, training: bool) -> Heads:
    """Compute queries, keys and values, each ``(n, heads, head_dim)``."""
    shape = weights.shape
    states = normalised(x, "before_attention", weights)
    states = product(states, weights.groups["qkv"], training)
    sizes = shape.n_heads, shape.n_key_heads, shape.n_key_heads
    heads = states.unflatten(1, (-1, shape.head_dim)).split(sizes, dim=1)
    query, key, value = heads
    query = normalised_heads(query, "query", weights)
    key = normalised_heads(key, "key", weights)
    return rotated(query, rope), rotated(key, rope), value


def attend(heads: Heads, attention: Attention, scores: Scores) -> torch.Tensor:
    """Compute the attention of all tokens, ``(n, n_heads, head_dim)``."""
    query, key, value = (part.transpose(0, 1)[None] for part in heads)
    return packed_attention(query, key, value, attention, scores)


def after_attention(
    x: torch.Tensor, states: torch.Tensor, weights: Weights, training: bool
) -> torch.Tensor:
    """Project attention's output, and add it to the residual stream.

    Args:
        x: The residual stream, ``(n, hidden)``.
        states: Output of attention, ``(n, heads, head_dim)``.
        weights: The layer's weights.
        training: Whether LoRA drops out inputs.

    Returns:
        ``(n, hidden)``.
    """
    states = product(states.flatten(1), weights.groups["out"], training)
    return x + normalised(states, "after_attention", weights)


def mlp_half(
    x: torch.Tensor, weights: Weights, training: bool, selective: bool
) -> torch.Tensor:
    """Add the gated MLP to the residual stream.

    Args:
        x: The residual stream, ``(n, hidden)``.
        weights: The layer's weights.
        training: Whether LoRA drops out inputs.
        selective: Whether the backward pass recomputes everything except the down
            projection.

    Returns:
        ``(n, hidden)``.
    """

    def gated(x: torch.Tensor) -> torch.Tensor:
        states = normalised(x, "before_mlp", weights)
        gate_up = product(states, weights.groups["gate_up"], training)
        down, activation = weights.groups["down"], weights.shape.activation
        if not (training and down.adapted and down.dropout):
            return project_gated(gate_up, down, activation)
        gate, up = gate_up.chunk(2, dim=1)
        return product(ACTIVATIONS[activation](gate) * up, down, training)

    states = _recomputed(gated, x) if selective else gated(x)
    return x + normalised(states, "after_mlp", weights)


def _recomputed(mlp: Callable, x: torch.Tensor) -> torch.Tensor:
    contexts = partial(create_selective_checkpoint_contexts, _keep_down)
    return checkpoint(mlp, x, use_reentrant=False, context_fn=contexts)


def _keep_down(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    """Keep the output of the down projection, and recompute the rest of an MLP."""
    kept = operation is torch.ops.prefdistill.gated_down.default
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def attention_of_kept(
    heads: Heads, layout: PackedLayout, window: int | None, scores: Scores
) -> torch.Tensor:
    """Compute the attention of the tokens in the layout's ``keep``.

    Args:
        heads: Queries, keys and values of all tokens.
        layout: The batch's layout.
        window: Size of a sliding window, or None.
        scores: How scores are computed.

    Returns:
        ``(n_kept, heads, head_dim)``.
    """
    query, key, value = heads
    if all_scores_at_once(layout.keep):
        seen = layout.seen_by_kept(window)
        return attention_of_some(query[layout.keep], key, value, seen, scores)
    states = attend(heads, layout.attention(window, scores.key_block), scores)
    return states[layout.keep]


def all_scores_at_once(keep: torch.Tensor) -> bool:
    """Tell whether to compute all scores of the kept tokens at once."""
    return keep.device.type != "cpu" and len(keep) <= AT_ONCE


def normalised(x: torch.Tensor, place: str, weights: Weights) -> torch.Tensor:
    """Apply the RMS norm of a place, in float32; return ``x`` if there is none.

    Args:
        x: ``(n, hidden)``.
        place: ``before`` or ``after``, then ``_attention`` or ``_mlp``.
        weights: The layer's weights.
    """
    weight = weights.norms.get(place)
    return x if weight is None else _rms_norm(x, weight, weights.shape.eps)


def normalised_heads(x: torch.Tensor, place: str, weights: Weights) -> torch.Tensor:
    """Apply the RMS norm of queries or keys; return ``x`` if there is none.

    Args:
        x: ``(n, heads, head_dim)``.
        place: ``query`` or ``key``.
        weights: The layer's weights. A norm's weight has the size of one head, or of
            all heads together, which are then normalised as one.
    """
    weight = weights.norms.get(place)
    if weight is None:
        return x
    if len(weight) == x.shape[-1]:
        return _rms_norm(x, weight, weights.shape.eps)
    return _rms_norm(x.flatten(1), weight, weights.shape.eps).view_as(x)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if weight.dtype == torch.float32:
        return (wide * weight).to(x.dtype)
    return weight * wide.to(x.dtype)


def rotated(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Rotate ``(n, heads, head_dim)`` by position, or as much of a head as rotates."""
    if rope is None:
        return x
    cos, sin = rope
    x, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = x.chunk(2, dim=-1)
    x = x * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([x, rest], dim=-1) if rest.shape[-1] else x

"""What a decoder layer of Gemma-2, Llama or Qwen2 computes, from its weights.

``attention_half`` and ``mlp_half`` are the layer; of a model's last layer, where only
some tokens' states are asked for, ``heads_of``, ``attention_of_kept`` and
``after_attention`` are the first half. States are ``(n, hidden)``, of a packed batch.
``engine`` compiles them and gives them a model's weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from prefdistill.engine.attention import (
    Attention,
    PackedLayout,
    attention_of_some,
    key_block,
    packed_attention,
)
from prefdistill.engine.frozen import Group, product, project
from prefdistill.engine.gated import ACTIVATIONS, project_gated

# Tokens kept of the last layer whose attention to all is cheap; a batch of real rows
# keeps 64.
AT_ONCE = 128
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """What all layers of a model have in common."""

    n_heads: int
    n_key_heads: int
    head_dim: int
    scaling: float
    softcap: float | None
    eps: float
    activation: str
    is_gemma: bool
    options: dict[str, int] | None = None
    quick_tanh: bool = False

    @property
    def key_block(self) -> int:
        """Keys in a block of attention's mask."""
        return key_block(self.head_dim, self.options)


def normalise(x: torch.Tensor, weight: torch.Tensor, shape: Shape) -> torch.Tensor:
    """RMS norm in float32; Gemma scales by ``1 + weight``, and before rounding."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + shape.eps)
    if shape.is_gemma:
        return (wide * (1.0 + weight.float())).to(x.dtype)
    return weight * wide.to(x.dtype)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of ``(n, heads, dim)``; cos and sin ``(n, 1, dim)``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _keep_down(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    """Keep what the down projection returns; compute the rest of an MLP anew."""
    kept = operation is torch.ops.prefdistill.gated_down.default
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _recomputed(mlp: Callable, x: torch.Tensor) -> torch.Tensor:
    contexts = partial(create_selective_checkpoint_contexts, _keep_down)
    return checkpoint(mlp, x, use_reentrant=False, context_fn=contexts)


def heads_of(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    groups: dict[str, Group],
    norms: dict[str, torch.Tensor],
    shape: Shape,
    training: bool,
) -> Heads:
    """A layer's queries, keys and values, each ``(n, heads, head_dim)``."""
    states = normalise(x, norms["before_attention"], shape)
    query, key, value = (
        part.unflatten(1, (-1, shape.head_dim))
        for part in project(states, groups["qkv"], training)
    )
    return _rotated(query, cos, sin), _rotated(key, cos, sin), value


def attend(heads: Heads, attention: Attention, shape: Shape) -> torch.Tensor:
    """Attention of all tokens, ``(n, n_heads, head_dim)``."""
    return packed_attention(
        *(part.transpose(0, 1)[None] for part in heads),
        attention,
        shape.scaling,
        shape.softcap,
        options=shape.options,
        quick_tanh=shape.quick_tanh,
    )


def attention_of_kept(
    heads: Heads, packed: PackedLayout, window: int | None, shape: Shape
) -> torch.Tensor:
    """Attention of the layout's ``keep`` alone, ``(n_kept, n_heads, head_dim)``."""
    query, key, value = heads
    if all_scores_at_once(packed.keep):
        seen = packed.seen_by_kept(window)
        query = query[packed.keep]
        return attention_of_some(query, key, value, seen, shape.scaling, shape.softcap)
    states = attend(heads, packed.attention(window, shape.key_block), shape)
    return states[packed.keep]


def all_scores_at_once(keep: torch.Tensor) -> bool:
    """Whether the scores of few tokens with all cost less than attention of all."""
    return keep.device.type != "cpu" and len(keep) <= AT_ONCE


def after_attention(
    x: torch.Tensor,
    states: torch.Tensor,
    groups: dict[str, Group],
    norms: dict[str, torch.Tensor],
    shape: Shape,
    training: bool,
) -> torch.Tensor:
    """Residual stream and what attention gives, ``(n, heads, head_dim)``, together."""
    states = product(states.flatten(1), groups["out"], training)
    if shape.is_gemma:
        states = normalise(states, norms["after_attention"], shape)
    return x + states


def attention_half(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    attention: Attention,
    groups: dict[str, Group],
    norms: dict[str, torch.Tensor],
    shape: Shape,
    training: bool,
) -> torch.Tensor:
    """Residual stream ``(n, hidden)`` after a layer's attention."""
    heads = heads_of(x, cos, sin, groups, norms, shape, training)
    states = attend(heads, attention, shape)
    return after_attention(x, states, groups, norms, shape, training)


def mlp_half(
    x: torch.Tensor,
    groups: dict[str, Group],
    norms: dict[str, torch.Tensor],
    shape: Shape,
    training: bool,
    selective: bool,
) -> torch.Tensor:
    """Residual stream ``(n, hidden)`` after a layer's gated MLP."""

    def gated(x: torch.Tensor) -> torch.Tensor:
        states = normalise(x, norms["before_mlp"], shape)
        gate_up = product(states, groups["gate_up"], training)
        down = groups["down"]
        if not (training and down.adapted and down.dropout):
            return project_gated(gate_up, down, shape.activation)
        gate, up = gate_up.chunk(2, dim=1)
        return product(ACTIVATIONS[shape.activation](gate) * up, down, training)

    states = _recomputed(gated, x) if selective else gated(x)
    if shape.is_gemma:
        states = normalise(states, norms["after_mlp"], shape)
    return x + states

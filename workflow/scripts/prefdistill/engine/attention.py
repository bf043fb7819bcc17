"""Compute causal attention within each row of a packed batch.

On the CPU, rows of similar length are padded into small groups for PyTorch's scaled dot
product attention, or for explicit products if scores are soft-capped. On a GPU,
FlexAttention runs with one block mask per batch.

``register`` adds this attention to transformers under the name ``packed``. A model
loaded with it passes the ``packed`` argument of its forward to every layer.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention

from prefdistill.engine.block_masks import BLOCK
from prefdistill.engine.layout import Attention, Grouped, PackedLayout
from prefdistill.engine.soft_cap import has_quick_tanh, soft_cap

ATTENTION = "packed"
# Arguments that transformers passes on to attention and that change nothing here. Any
# other argument may: swallowed, it would give wrong logits without a word.
HARMLESS = {"position_ids", "cache_position", "position_embeddings"}

# By size of a head: block sizes that were faster on an H100 than FlexAttention's own
# choice, with the block size of the mask's keys that they were measured with. Smaller
# blocks of keys skip more when rows are short.
FAST_BLOCKS = {
    128: {"fwd": (64, 64, 3, 4, False), "bwd": (32, 64, 64, 32, 3, 4), "keys": 128},
    256: {"fwd": (128, 64, 2, 8, True), "bwd": (64, 64, 128, 32, 2, 8), "keys": 64},
}
FORWARD = ("BLOCK_M", "BLOCK_N", "num_stages", "num_warps", "USE_TMA")
BACKWARD = ("BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2", "num_stages", "num_warps")


class NotPackable(ValueError):
    """A model's attention asks for something that packed attention does not compute."""


@dataclass(frozen=True)
class Scores:
    """The scaling and bound of attention scores, and the kernels that compute them.

    Attributes:
        scaling: Factor of the scores.
        softcap: Bound of the scores, through ``softcap * tanh(score / softcap)``.
        options: Block sizes of FlexAttention's kernels; None for its own choice.
        key_block: Keys in a block of the mask.
        quick_tanh: Whether to use the GPU's tanh instruction; see ``soft_cap``.
    """

    scaling: float
    softcap: float | None = None
    options: dict[str, int] | None = None
    key_block: int = BLOCK
    quick_tanh: bool = False


def scores_on(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    scaling: float,
    softcap: float | None,
) -> Scores:
    """Choose fast kernels for a device, dtype and head size.

    Args:
        device: Where attention is computed.
        dtype: Dtype of queries and keys.
        head_dim: Size of a head.
        scaling: Factor of the scores.
        softcap: Bound of the scores, or None.
    """
    options = kernel_options(head_dim, device)
    key_block = FAST_BLOCKS[head_dim]["keys"] if options else BLOCK
    return Scores(scaling, softcap, options, key_block, has_quick_tanh(device, dtype))


def kernel_options(head_dim: int, device: torch.device) -> dict[str, int] | None:
    """Return block sizes for FlexAttention on a device; None for its own choice."""
    if device.type != "cuda" or head_dim not in FAST_BLOCKS:
        return None
    # The sizes were measured on Hopper; another generation has other optima.
    if torch.cuda.get_device_capability(device)[0] != 9:
        return None
    fast = FAST_BLOCKS[head_dim]
    forward = {f"fwd_{k}": v for k, v in zip(FORWARD, fast["fwd"], strict=True)}
    backward = {f"bwd_{k}": v for k, v in zip(BACKWARD, fast["bwd"], strict=True)}
    return forward | backward


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention: Attention,
    scores: Scores,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Compute the attention of one layer.

    Args:
        query: ``(1, n_heads, n_tokens, head_dim)``.
        key: ``(1, n_key_heads, n_tokens, head_dim)``.
        value: Like ``key``.
        attention: From ``PackedLayout.attention``.
        scores: How scores are computed.
        dropout: Share of attention weights to drop; only the CPU supports it.

    Returns:
        ``(n_tokens, n_heads, head_dim)``.
    """
    if isinstance(attention, Grouped):
        outputs = []
        for index in attention.layout.groups:
            states = [x[0][:, index].transpose(0, 1) for x in (query, key, value)]
            output = _group(*states, attention, scores, dropout)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)[attention.layout.scatter]
    if dropout:  # FlexAttention has none
        raise NotPackable("its attention has dropout, which only a CPU computes")
    softcap = scores.softcap
    output = _flex()(
        query,
        key,
        value,
        score_mod=None if softcap is None else soft_cap(softcap, scores.quick_tanh),
        block_mask=attention,
        scale=scores.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=scores.options,
    )
    return output[0].transpose(0, 1)


def attention_of_some(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    scores: Scores,
) -> torch.Tensor:
    """Compute the attention of a few queries, with all scores at once, in float32.

    Args:
        query: ``(n_queries, n_heads, head_dim)``.
        key: ``(n_tokens, n_key_heads, head_dim)``.
        value: Like ``key``.
        seen: ``(n_queries, n_tokens)`` bool, from ``PackedLayout.seen_by_kept``.
        scores: How scores are computed.

    Returns:
        ``(n_queries, n_heads, head_dim)``.
    """
    # Query heads that share keys are adjacent: (n_key_heads, n_repeats * n_queries, _).
    heads = query.unflatten(1, (key.shape[1], -1)).permute(1, 2, 0, 3)
    keys = key.permute(1, 2, 0).float()
    values = _capped(heads.flatten(1, 2).float() @ keys * scores.scaling, scores)
    values = values.unflatten(1, heads.shape[1:3]).masked_fill(~seen, float("-inf"))
    weights = torch.softmax(values, dim=-1).to(value.dtype).flatten(1, 2)
    states = (weights @ value.transpose(0, 1)).view_as(heads)
    return states.permute(2, 0, 1, 3).flatten(1, 2)


def _capped(values: torch.Tensor, scores: Scores) -> torch.Tensor:
    if scores.softcap is None:
        return values
    return scores.softcap * torch.tanh(values / scores.softcap)


def _group(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention: Grouped,
    scores: Scores,
    dropout: float,
) -> torch.Tensor:
    """Compute the attention of right-padded rows, ``(n, heads, length, head_dim)``."""
    layout, window = attention
    length = query.shape[2]
    window = window if window is not None and window < length else None
    n_repeats = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(n_repeats, dim=1)
    value = value.repeat_interleave(n_repeats, dim=1)
    if scores.softcap is None:
        mask = None if window is None else layout.causal_mask(length, window)
        return scaled_dot_product_attention(
            query, key, value, mask, dropout,
            is_causal=mask is None, scale=scores.scaling,
        )  # fmt: skip
    values = _capped(query @ key.transpose(2, 3) * scores.scaling, scores)
    values = values.masked_fill(~layout.causal_mask(length, window), float("-inf"))
    weights = torch.softmax(values, dim=-1, dtype=torch.float32).to(query.dtype)
    return drop(weights, dropout) @ value


def _flex() -> Any:
    """Return FlexAttention, compiled unless it is part of a layer that is."""
    if torch.compiler.is_compiling():
        return flex_attention
    return _compiled_flex_attention()


@cache
def _compiled_flex_attention() -> Any:
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 256
    return torch.compile(flex_attention, dynamic=False)


def register() -> None:
    """Add ``packed`` attention to transformers; repeated calls have no effect."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # No mask function of that name is registered, so transformers builds no mask.
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _layer_attention)


def is_packed(core: torch.nn.Module) -> bool:
    """Tell whether a transformers model was loaded with packed attention."""
    return core.config._attn_implementation == ATTENTION


def _layer_attention(
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
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Compute ``packed_attention`` for a transformers layer, in transformers' form.

    Raises:
        ValueError: If the model was called without a layout.
        NotPackable: If the layer passes an argument that is not computed here.
    """
    if packed is None:
        raise ValueError("a model with packed attention must be called with packed=")
    others |= {"attention_mask": attention_mask}
    for name, given in others.items():
        if name not in HARMLESS and given is not None and given is not False:
            raise NotPackable(f"its attention takes {name}")
    if not getattr(module, "is_causal", True):
        raise NotPackable("its attention is not causal")
    scores = scores_on(query.device, query.dtype, query.shape[-1], scaling, softcap)
    attention = packed.attention(sliding_window, scores.key_block)
    states, n_tokens = (query, key, value), query.shape[2]
    # GPTQ's calibration adds a dummy row to the layout, so that attention is compiled
    # for few shapes. The model's states have no tokens for it.
    missing = int(packed.lengths.sum()) - n_tokens
    if missing:
        states = [torch.nn.functional.pad(x, (0, 0, 0, missing)) for x in states]
    output = packed_attention(*states, attention, scores, dropout)
    return output[None, :n_tokens], None

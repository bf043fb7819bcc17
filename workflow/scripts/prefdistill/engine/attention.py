"""Causal attention within each row of a packed batch.

Registered with transformers under the name ``packed``: a model loaded with that
attention passes the ``packed`` argument of its forward through to every layer. On the
CPU, rows of similar length are gathered into small right-padded groups and go through
PyTorch's scaled dot product attention, or through explicit products where scores are
soft-capped (Gemma-2). On CUDA, FlexAttention runs with one block mask a batch, made on
the host from the rows' lengths; where flash-attn is installed, its kernel for rows of
varying length is taken instead, which needs every row whole.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention

from prefdistill.engine.block_masks import BLOCK, block_mask
from prefdistill.engine.packing import sight
from prefdistill.engine.soft_cap import has_quick_tanh, soft_cap
from prefdistill.storage.tensors import to_device

ATTENTION = "packed"
GROUP_FILL = 0.7
# Numbers of rows are rounded up, so that they do not make another shape.
ROWS_STEP = 64

# Where FlexAttention's own choice takes longer on an H100, by the size of heads. Fewer
# keys in a block of the mask leave out more of short rows; FlexAttention measures it
# against its own choice, which is 128 for other heads.
FAST_BLOCKS = {
    128: {"fwd": (64, 64, 3, 4, False), "bwd": (32, 64, 64, 32, 3, 4), "keys": 128},
    256: {"fwd": (128, 64, 2, 8, True), "bwd": (64, 64, 128, 32, 2, 8), "keys": 64},
}
FORWARD = ("BLOCK_M", "BLOCK_N", "num_stages", "num_warps", "USE_TMA")
BACKWARD = ("BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2", "num_stages", "num_warps")


class Grouped(NamedTuple):
    """Attention on the CPU: rows in groups, and a window if any."""

    layout: "PackedLayout"
    window: int | None


class Varlen(NamedTuple):
    """Attention by flash-attn: borders of the rows, ``(n + 1,)`` int32; a window."""

    borders: torch.Tensor
    longest: int
    window: int | None


Attention = Grouped | Varlen | BlockMask


class PackedLayout:
    """Where the rows of a packed batch lie; built once, shared by all layers.

    Args:
        lengths: ``(n_rows,)`` integer tokens laid out for each row.
        device: Where the indices are needed.
        shared: ``(n_rows,)`` tokens of the row before it that a row begins with, laid
            out as ``packing.sight`` says; None for none.
        keep: ``(n_kept,)`` int64 places of the only tokens whose last hidden states
            ``engine.FastLayer`` is to give, on the device; None for all.

    Raises:
        ValueError: If rows share tokens where flash-attn needs them whole.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        device: torch.device,
        shared: np.ndarray | None = None,
        keep: torch.Tensor | None = None,
    ) -> None:
        self.lengths, self.device = np.asarray(lengths, dtype=np.int64), device
        self.keep = keep
        self.shared = np.zeros_like(self.lengths) if shared is None else shared
        if self.shared.any() and not can_share(device):
            raise ValueError("flash-attn knows no rows that share tokens")
        self._masks: dict[Any, Any] = {}
        if device.type == "cpu":
            self.groups, self.scatter = self._grouped()

    def attention(self, window: int | None, block: int = BLOCK) -> Attention:
        """What ``packed_attention`` needs to know of the batch.

        Args:
            window: A sliding window; one that no row exceeds is none.
            block: Keys in a block of the mask, from ``key_block``.
        """
        if window is not None and window >= (self.lengths + self.shared).max():
            window = None
        if self.device.type == "cpu":
            return Grouped(self, window)
        if (window, block) not in self._masks:
            self._masks[window, block] = (
                self._varlen(window)
                if _flash_attn()
                else block_mask(self.lengths, self.shared, window, block, self.device)
            )
        return self._masks[window, block]

    def seen_by_kept(self, window: int | None) -> torch.Tensor:
        """Which places the tokens of ``keep`` see, ``(n_kept, n_tokens)`` bool."""
        key = ("kept", window)
        if key not in self._masks:
            arrays = np.stack(sight(self.lengths, self.shared))
            position, first, last = to_device(arrays, self.device)
            place = torch.arange(len(position), device=self.device)
            seen = (place >= first[self.keep, None]) & (place <= last[self.keep, None])
            if window is not None:
                seen &= position[self.keep, None] - position < window
            self._masks[key] = seen
        return self._masks[key]

    def _grouped(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Places of each group's tokens, ``(n, length)``, and the way back.

        Rows go together while the shortest is at least ``GROUP_FILL`` of the longest.
        Padding repeats place 0: it comes after a row's own tokens, so causal attention
        never looks at it, and its output is not scattered back. Nor is that of tokens
        which a row shares with the row before it: they are the other's.
        """
        rows = self._places()
        whole = np.array([len(places) for places in rows])
        order = np.argsort(-whole, kind="stable")
        groups, scatter = [], np.zeros(int(self.lengths.sum()), dtype=np.int64)
        offset = first = 0
        while first < len(order):
            longest = int(whole[order[first]])
            fits = whole[order[first:]] >= GROUP_FILL * longest
            n_rows = int(fits.sum())
            index = np.zeros((n_rows, longest), dtype=np.int64)
            for number, row in enumerate(order[first : first + n_rows]):
                index[number, : whole[row]] = rows[row]
                own = np.arange(self.shared[row], whole[row])
                scatter[rows[row][own]] = offset + number * longest + own
            groups.append(torch.from_numpy(index))
            offset += index.size
            first += n_rows
        return groups, torch.from_numpy(scatter)

    def _places(self) -> list[np.ndarray]:
        """Where each row's tokens lie, from its first to its last."""
        position = sight(self.lengths, self.shared).position
        rows: list[np.ndarray] = []
        for end, length, n_shared in zip(
            np.cumsum(self.lengths), self.lengths, self.shared, strict=True
        ):
            places = np.arange(end - length, end)
            places = places[np.argsort(position[places])]
            if n_shared:
                places = np.concatenate([rows[-1][:n_shared], places])
            rows.append(places)
        return rows

    def causal_mask(self, length: int, window: int | None) -> torch.Tensor:
        """``(length, length)`` bool: which keys (columns) a query (row) may see."""
        key = ("dense", length, window)
        if key not in self._masks:
            ones = torch.ones(length, length, dtype=torch.bool)
            mask = ones.tril()
            self._masks[key] = mask if window is None else mask & ~ones.tril(-window)
        return self._masks[key]

    def _varlen(self, window: int | None) -> Varlen:
        borders = np.concatenate([[0], np.cumsum(self.lengths)])
        n_borders = -(-len(borders) // ROWS_STEP) * ROWS_STEP + 1
        borders = np.pad(borders, (0, n_borders - len(borders)), mode="edge")
        longest = 1 << int(self.lengths.max() - 1).bit_length()
        return Varlen(to_device(borders.astype(np.int32), self.device), longest, window)


def can_share(device: torch.device) -> bool:
    """Whether rows of a batch may share tokens: flash-attn needs every row whole."""
    return device.type == "cpu" or not _flash_attn()


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention: Attention,
    scaling: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    options: dict[str, int] | None = None,
    quick_tanh: bool = False,
) -> torch.Tensor:
    """Attention of one layer.

    Args:
        query: ``(1, n_heads, n_tokens, head_dim)``.
        key: ``(1, n_key_heads, n_tokens, head_dim)``.
        value: Like ``key``.
        attention: From the batch's layout.
        scaling: Factor of the scores.
        softcap: Bound of the scores, through ``softcap * tanh(score / softcap)``.
        dropout: Share of attention weights dropped; on the CPU only.
        options: From ``kernel_options``.
        quick_tanh: From ``soft_cap.has_quick_tanh``.

    Returns:
        ``(n_tokens, n_heads, head_dim)``.
    """
    if isinstance(attention, Grouped):
        layout, window = attention
        outputs = []
        for index in layout.groups:
            states = [x[0][:, index].transpose(0, 1) for x in (query, key, value)]
            output = _group(*states, scaling, dropout, softcap, window, layout)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)[layout.scatter]
    if isinstance(attention, Varlen):
        return _varlen(query, key, value, attention, scaling, softcap)
    output = _flex()(
        query,
        key,
        value,
        score_mod=None if softcap is None else soft_cap(softcap, quick_tanh),
        block_mask=attention,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=options,
    )
    return output[0].transpose(0, 1)


def attention_of_some(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    scaling: float,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of few queries, with all scores at once, in float32.

    Args:
        query: ``(n_queries, n_heads, head_dim)``.
        key: ``(n_tokens, n_key_heads, head_dim)``.
        value: Like ``key``.
        seen: ``(n_queries, n_tokens)`` bool, from ``PackedLayout.seen_by_kept``.
        scaling: As in ``packed_attention``.
        softcap: Likewise.

    Returns:
        ``(n_queries, n_heads, head_dim)``.
    """
    # Heads that share keys lie together: (n_key_heads, n_repeats * n_queries, ...).
    heads = query.unflatten(1, (key.shape[1], -1)).permute(1, 2, 0, 3)
    scores = heads.flatten(1, 2).float() @ key.permute(1, 2, 0).float() * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.unflatten(1, heads.shape[1:3]).masked_fill(~seen, float("-inf"))
    weights = torch.softmax(scores, dim=-1).to(value.dtype).flatten(1, 2)
    states = (weights @ value.transpose(0, 1)).view_as(heads)
    return states.permute(2, 0, 1, 3).flatten(1, 2)


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
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """``packed_attention`` in the form that transformers calls.

    A layout may end in a dummy row that the model has no tokens for; the attention
    alone is filled up to it.

    Raises:
        ValueError: If the model was called without a layout.
    """
    if packed is None:
        raise ValueError("a model with packed attention must be called with packed=")
    options = kernel_options(query.shape[-1], query.device)
    attention = packed.attention(sliding_window, key_block(query.shape[-1], options))
    states, n_tokens = (query, key, value), query.shape[2]
    missing = int(packed.lengths.sum()) - n_tokens
    if missing:
        states = [torch.nn.functional.pad(x, (0, 0, 0, missing)) for x in states]
    quick = has_quick_tanh(query.device, query.dtype)
    output = packed_attention(
        *states, attention, scaling, softcap, dropout, options, quick
    )
    return output[None, :n_tokens], None


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


def _varlen(query, key, value, attention, scaling, softcap):
    """flash-attn's kernel; untested on a GPU, as no card here had it installed."""
    states = [x[0].transpose(0, 1) for x in (query, key, value)]
    borders, longest, window = attention
    return _flash_attn()(
        *states,
        cu_seqlens_q=borders,
        cu_seqlens_k=borders,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
        softcap=softcap or 0.0,
    )


@cache
def _flash_attn() -> Any:
    """``flash_attn_varlen_func``, or None where it is not installed."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


def kernel_options(head_dim: int, device: torch.device) -> dict[str, int] | None:
    """Block sizes for FlexAttention on a device; None leaves them to it."""
    if device.type != "cuda" or head_dim not in FAST_BLOCKS:
        return None
    if torch.cuda.get_device_capability(device)[0] != 9:
        return None
    fast = FAST_BLOCKS[head_dim]
    forward = {f"fwd_{k}": v for k, v in zip(FORWARD, fast["fwd"], strict=True)}
    backward = {f"bwd_{k}": v for k, v in zip(BACKWARD, fast["bwd"], strict=True)}
    return forward | backward


def key_block(head_dim: int, options: dict[str, int] | None) -> int:
    """Keys in a block of the mask, with or without ``kernel_options``."""
    return FAST_BLOCKS[head_dim]["keys"] if options else BLOCK


def _flex() -> Any:
    """FlexAttention: compiled here, if it is not part of a compiled layer."""
    if torch.compiler.is_compiling():
        return flex_attention
    return _compiled_flex_attention()


@cache
def _compiled_flex_attention() -> Any:
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 256
    return torch.compile(flex_attention, dynamic=False)


def register() -> None:
    """Make ``packed`` known to transformers; safe to call again.

    No mask function of that name is registered, so transformers builds no mask.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _layer_attention)

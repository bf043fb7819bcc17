"""Describe the architectures whose decoder layers the engine computes itself.

This is the only file that knows architectures. ``ARCHITECTURES`` maps a ``model_type``
of transformers to its ``Architecture``. To add a member of a known family, add one
entry. transformers computes models of other types.
"""

from dataclasses import dataclass, replace
from typing import Any

from prefdistill.engine.gated import ACTIVATIONS


@dataclass(frozen=True)
class Architecture:
    """The structure that a family of models gives its decoder layers.

    Attributes:
        groups: Paths of the linear modules in a layer that read the same input, by the
            group's role: ``qkv``, ``out``, ``gate_up`` or ``down``. A product returns
            their outputs side by side, in this order.
        norms: Paths of a layer's RMS norms by place: ``before`` or ``after``, then
            ``_attention`` or ``_mlp``; and ``query`` and ``key``.
        adds_one: Whether norms scale by ``1 + weight``.
        scales_wide: Whether norms scale in float32, before they round.
        activation: Key of the configuration that names the MLP's activation.
        score_scale: Key of the number whose inverse square root scales the attention
            scores; None where that number is the size of a head.
        softcap: Key of the bound of the attention scores; None where there is none.
        rotated_layers: Key of a list that tells for each layer whether it rotates its
            queries and keys; None where all layers do.
        must_be_off: Keys of settings that the engine cannot compute; a model that
            switches one on is left to transformers.
    """

    groups: dict[str, tuple[str, ...]]
    norms: dict[str, str]
    adds_one: bool = False
    scales_wide: bool = False
    activation: str = "hidden_act"
    score_scale: str | None = None
    softcap: str | None = None
    rotated_layers: str | None = None
    must_be_off: tuple[str, ...] = (
        "attention_dropout",
        "resid_pdrop",
        "use_bidirectional_attention",
    )

    @property
    def linear_modules(self) -> tuple[str, ...]:
        """Return the paths of all linear modules in a layer."""
        return tuple(path for paths in self.groups.values() for path in paths)


SEPARATE = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
FUSED = SEPARATE | {"qkv": ("self_attn.qkv_proj",), "gate_up": ("mlp.gate_up_proj",)}
BEFORE = {
    "before_attention": "input_layernorm",
    "before_mlp": "post_attention_layernorm",
}
AFTER = {
    "after_attention": "post_attention_layernorm",
    "after_mlp": "post_feedforward_layernorm",
}
AROUND = AFTER | {
    "before_attention": "input_layernorm",
    "before_mlp": "pre_feedforward_layernorm",
}
OF_HEADS = {"query": "self_attn.q_norm", "key": "self_attn.k_norm"}

LLAMA = Architecture(SEPARATE, BEFORE)
GEMMA2 = Architecture(
    SEPARATE,
    AROUND,
    adds_one=True,
    scales_wide=True,
    activation="hidden_activation",
    score_scale="query_pre_attn_scalar",
    softcap="attn_logit_softcapping",
)
OLMO2 = Architecture(SEPARATE, AFTER | OF_HEADS, scales_wide=True)
# Biases need no entry: products add them wherever a module has one.
ARCHITECTURES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "ministral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": Architecture(SEPARATE, BEFORE | OF_HEADS),
    "phi3": Architecture(FUSED, BEFORE),
    "smollm3": Architecture(SEPARATE, BEFORE, rotated_layers="no_rope_layers"),
    "olmo2": OLMO2,
    "olmo3": OLMO2,
    "gemma2": GEMMA2,
    # transformers computes no soft cap for it, whatever its configuration says.
    "gemma3_text": replace(GEMMA2, norms=AROUND | OF_HEADS, softcap=None),
}
LAYER_TYPES = {"full_attention", "sliding_attention"}


def architecture_of(config: Any) -> Architecture | None:
    """Return a model's architecture; None if the engine cannot compute its layers.

    Args:
        config: The model's transformers configuration.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None or getattr(config, "is_causal", True) is False:
        return None
    if any(getattr(config, key, None) for key in architecture.must_be_off):
        return None
    if not set(getattr(config, "layer_types", None) or ()) <= LAYER_TYPES:
        return None
    has_kernels = getattr(config, architecture.activation) in ACTIVATIONS
    return architecture if has_kernels else None


def head_dim_of(config: Any) -> int:
    """Return the size of an attention head."""
    own = getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def window_of(config: Any, layer: int) -> int | None:
    """Return the sliding window of a layer, counted from 0; None if it has none."""
    types = getattr(config, "layer_types", None)  # None: all layers are alike
    if types is not None and types[layer] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def rope_of(config: Any, layer: int) -> str | None:
    """Name a layer's rotary embedding.

    Returns:
        The layer's type, where types have rotary embeddings of their own; else an empty
        name; None if the layer rotates nothing.
    """
    architecture = ARCHITECTURES[config.model_type]
    if architecture.rotated_layers is not None:
        rotated = getattr(config, architecture.rotated_layers)
        if rotated is not None and not rotated[layer]:
            return None
    types = getattr(config, "layer_types", None) or ()
    return types[layer] if set(types) & set(config.rope_parameters or ()) else ""


def widths_of(config: Any) -> tuple[int, int, int, int]:
    """Return the number of values per token at four places in a layer.

    Returns:
        The widths of the residual stream, the queries, the keys and the MLP's gate.
    """
    head_dim = head_dim_of(config)
    query = head_dim * config.num_attention_heads
    keys = head_dim * config.num_key_value_heads
    return config.hidden_size, query, keys, config.intermediate_size


def lora_values(config: Any) -> int:
    """Count one layer's weights in an adapter of rank 1 on all linear modules.

    A model of an unknown type is counted as a Llama.
    """
    # A module with n inputs and m outputs has n + m of them.
    groups = ARCHITECTURES.get(config.model_type, LLAMA).groups
    hidden, query, keys, gated = widths_of(config)
    qkv = len(groups["qkv"]) * hidden + query + 2 * keys
    gate_up = len(groups["gate_up"]) * hidden + 2 * gated
    return qkv + (query + hidden) + gate_up + (gated + hidden)


def n_norms_after(config: Any) -> int:
    """Count a layer's norms on the outputs of attention and MLP.

    A model of an unknown type is counted as a Llama.
    """
    norms = ARCHITECTURES.get(config.model_type, LLAMA).norms
    return sum(place.startswith("after") for place in norms)

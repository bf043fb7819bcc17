"""The fast path through a model's decoder layers.

Gemma-2, Llama and Qwen2 share one layer here: packed attention, one product for linear
layers that read the same input, lean LoRA without casts and copies, and on a GPU one
compiled graph for each half of a layer (attention; MLP) that all layers share. Where
only some tokens' states are asked for, the last layer computes no others but for their
keys and values. It computes what transformers and PEFT compute; a layer that it does
not know (another architecture, GPTQ, a base in parts) goes through them.

Dropout of LoRA draws one mask for layers that read the same input.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prefdistill.engine.attention import PackedLayout, kernel_options
from prefdistill.engine.decoder_layer import (
    Shape,
    after_attention,
    attention_half,
    attention_of_kept,
    heads_of,
    mlp_half,
)
from prefdistill.engine.fp8 import to_fp8
from prefdistill.engine.frozen import Group, gather, kind_of
from prefdistill.engine.gated import ACTIVATIONS
from prefdistill.engine.soft_cap import has_quick_tanh
from prefdistill.errors import UserError
from prefdistill.models.sharding import SHARDED

CPU = torch.device("cpu")
ARCHITECTURES = ("gemma2", "llama", "qwen2")
GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
NORMS = {
    "before_attention": "input_layernorm",
    "before_mlp": "post_attention_layernorm",
}
GEMMA_NORMS = {
    "before_attention": "input_layernorm",
    "after_attention": "post_attention_layernorm",
    "before_mlp": "pre_feedforward_layernorm",
    "after_mlp": "post_feedforward_layernorm",
}
RECOMPUTE = ("none", "selective", "full")
# Compiling takes a minute, in which an H100 does so much.
COMPILE_FLOP = 1e16


@cache
def _compiled() -> tuple[Callable, Callable, Callable]:
    import torch._dynamo

    # A build for each of up to eight shapes, with and without gradients, of a few
    # masks.
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 1024
    build = partial(torch.compile, dynamic=False, fullgraph=True)
    return build(attention_half), build(mlp_half), build(heads_of)


class FastLayer:
    """A decoder layer's weights, gathered; called in place of the layer's forward.

    Args:
        layer: The layer of transformers, with or without LoRA.
        shape: From ``shape_of``.
        window: Its sliding window, if it has one.
        has_gradient: Whether the loss's gradient passes through it.
        is_last: Whether it is the model's last, which gives the tokens of the layout's
            ``keep`` alone.
    """

    def __init__(
        self,
        layer: nn.Module,
        shape: Shape,
        window: int | None,
        has_gradient: bool,
        is_last: bool,
    ) -> None:
        self.layer, self.shape, self.window = layer, shape, window
        self.is_last = is_last
        self.recompute, self.compiled = "none", True
        self.groups = {
            name: _group(layer, paths, has_gradient) for name, paths in GROUPS.items()
        }
        self.versions: list[int] = []
        names = GEMMA_NORMS if shape.is_gemma else NORMS
        self.norms = {key: getattr(layer, name).weight for key, name in names.items()}

    def refresh(self) -> None:
        """Take over what has changed in LoRA's weights since last time.

        Autograd's version of a weight tells. Fused optimisers and changes through
        ``.data`` leave it as it is: whoever makes them calls
        ``torch.autograd.graph.increment_version``, as ``training`` does.
        """
        versions = [b._version for group in self.groups.values() for b in group.b]
        if versions != self.versions:
            for group in self.groups.values():
                group.refresh()
            self.versions = versions

    def __call__(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        packed: PackedLayout,
        **_: Any,
    ) -> torch.Tensor:
        """``(1, n, hidden)`` to the same, as transformers calls a layer.

        The last layer returns ``(1, n_kept, hidden)`` where the layout says so.
        """
        x = hidden_states[0]
        cos, sin = (part[0][:, None] for part in position_embeddings)
        keep = packed.keep if self.is_last else None
        on_gpu = x.device.type == "cuda"
        plain = attention_half, mlp_half, heads_of
        half, feed, look = _compiled() if on_gpu and self.compiled else plain
        with_gradient = torch.is_grad_enabled()
        selective = with_gradient and self.recompute == "selective"
        common = self.groups, self.norms, self.shape, self.layer.training

        def first(x: torch.Tensor) -> torch.Tensor:
            if keep is None:
                attention = packed.attention(self.window, self.shape.key_block)
                return half(x, cos, sin, attention, *common)
            heads = look(x, cos, sin, *common)
            states = attention_of_kept(heads, packed, self.window, self.shape)
            return after_attention(x[keep], states, *common)

        def second(x: torch.Tensor) -> torch.Tensor:
            # So few tokens as are kept are not worth a graph of their own.
            return (feed if keep is None else mlp_half)(x, *common, selective)

        if with_gradient and self.recompute == "full":
            x = checkpoint(lambda x: second(first(x)), x, use_reentrant=False)
        else:
            x = second(first(x))
        return x[None]


def _group(layer: nn.Module, paths: tuple[str, ...], has_gradient: bool) -> Group:
    modules = [layer.get_submodule(path) for path in paths]
    bases = [_base(module) for module in modules]
    adapted = [index for index, module in enumerate(modules) if _has_lora(module)]
    loras = [modules[index] for index in adapted]
    a = tuple(module.lora_A["default"].weight for module in loras)
    kind = kind_of(bases[0])
    rates = [getattr(module.lora_dropout["default"], "p", 0.0) for module in loras]
    return Group(
        kind,
        gather(kind, bases, sum(map(len, a)), has_gradient),
        tuple(base.out_features for base in bases),
        tuple(adapted),
        a,
        tuple(module.lora_B["default"].weight for module in loras),
        loras[0].scaling["default"] if loras else 1.0,
        rates[0] if rates else 0.0,
    )


def _base(module: nn.Module) -> nn.Module:
    return module.base_layer if _has_lora(module) else module


def _has_lora(module: nn.Module) -> bool:
    return hasattr(module, "lora_A")


def shape_of(
    config: Any, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> Shape | None:
    """What a model's layers have in common; None if they are not known here."""
    if config.model_type not in ARCHITECTURES:
        return None
    is_gemma = config.model_type == "gemma2"
    activation = config.hidden_activation if is_gemma else config.hidden_act
    if activation not in ACTIVATIONS or config.attention_dropout:
        return None
    n_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    scale_of = config.query_pre_attn_scalar if is_gemma else head_dim
    return Shape(
        n_heads,
        config.num_key_value_heads,
        head_dim,
        scale_of**-0.5,
        config.attn_logit_softcapping if is_gemma else None,
        config.rms_norm_eps,
        activation,
        is_gemma,
        kernel_options(head_dim, device),
        has_quick_tanh(device, dtype),
    )


def _is_fast(layer: nn.Module) -> bool:
    """Whether a layer's linear modules are of kinds known here, alike in a group."""
    for paths in GROUPS.values():
        modules = [layer.get_submodule(path) for path in paths]
        kinds = {kind_of(_base(module)) for module in modules}
        if len(kinds) > 1 or None in kinds:
            return False
        loras = [module for module in modules if _has_lora(module)]
        if len({(m.scaling["default"], m.r["default"]) for m in loras}) > 1:
            return False
        if any(m.lora_variant or m.disable_adapters or m.merged for m in loras):
            return False
    return True


@torch.inference_mode(False)
@torch.no_grad()
def attach(core: nn.Module) -> bool:
    """Let a model's layers compute the fast way; gathers their weights where needed.

    Args:
        core: A transformers model of ``models``, with or without LoRA inside; weights
            may have moved, and LoRA may have come, since the last call.

    Returns:
        Whether they do; otherwise they compute as before.
    """
    if shape_of(core.config) is None:
        return False
    layers = core.model.layers
    state = _state(core)
    if core.__dict__.get("_fast_state") == state:
        if core.__dict__["_is_fast"]:
            for layer in layers:
                layer.forward.refresh()
        return core.__dict__["_is_fast"]
    detach(core)
    sharded = getattr(core, SHARDED, False)
    fast = not sharded and all(_is_fast(layer) for layer in layers)
    if fast:
        shape = shape_of(core.config, core.device, core.dtype)
        has_gradient = False
        for layer in layers:
            has_gradient |= any(weight.requires_grad for weight in layer.parameters())
            window = getattr(layer.self_attn, "sliding_window", None)
            is_last = layer is layers[-1]
            layer.forward = FastLayer(layer, shape, window, has_gradient, is_last)
            layer.forward.recompute = core.__dict__.get("_recompute", "none")
            layer.forward.compiled = core.__dict__.get("_compiled", True)
            layer.forward.refresh()
    core.__dict__.update(_fast_state=_state(core), _is_fast=fast)
    return fast


def _state(core: nn.Module) -> list[tuple]:
    """The linear modules of the first and last layer, and where their weights lie.

    Moving a model, and adding or removing LoRA, changes one of the two.
    """
    state: list[tuple] = []
    for layer in (core.model.layers[0], core.model.layers[-1]):
        for path in (path for paths in GROUPS.values() for path in paths):
            module = layer.get_submodule(path)
            base = _base(module)
            weight = getattr(base, "fp8_weight", getattr(base, "weight", None))
            is_tensor = isinstance(weight, torch.Tensor)  # GPTQ's is not
            place = (weight.data_ptr(), weight.device) if is_tensor else None
            lora = _has_lora(module) and (module.disable_adapters, module.merged)
            state.append((id(module), place, lora))
    return state


def detach(core: nn.Module) -> None:
    """Let a model's layers compute as transformers and PEFT do."""
    for layer in core.model.layers:
        layer.__dict__.pop("forward", None)
    core.__dict__.pop("_fast_state", None)


def quantise_to_fp8(core: nn.Module) -> None:
    """Turn the linear layers of a loaded model's decoder into fp8, in place.

    Raises:
        UserError: If its layers are not known here.
    """
    if shape_of(core.config) is None:
        raise UserError(
            f"precision fp8: not for {core.config.model_type} models; use bf16 or nf4"
        )
    for layer in core.model.layers:
        for path in (path for paths in GROUPS.values() for path in paths):
            to_fp8(layer.get_submodule(path))


def set_recompute(core: nn.Module, how: str) -> None:
    """Choose which activations the backward pass computes anew.

    Args:
        core: A transformers model.
        how: ``none``, ``selective`` (an MLP's norm, gate and up, which are half of what
            is kept) or ``full`` (all of a layer).
    """
    core.__dict__["_recompute"] = how
    if attach(core):
        for layer in core.model.layers:
            layer.forward.recompute = how
    elif how != "none":
        core.activation_checkpointing_enable({"use_reentrant": False})


def set_compiled(core: nn.Module, n_operations: float, how: str = "auto") -> None:
    """Choose whether layers are compiled on a GPU; FlexAttention always is.

    Args:
        core: A transformers model.
        n_operations: Of the work to come.
        how: ``always``, ``never``, or ``auto``: where the work makes up for it.
    """
    enough = n_operations > COMPILE_FLOP
    core.__dict__["_compiled"] = how == "always" or (how == "auto" and enough)
    if attach(core):
        for layer in core.model.layers:
            layer.forward.compiled = core.__dict__["_compiled"]

"""Compute a model's decoder on packed batches, faster than transformers and PEFT.

For a known architecture, an ``Engine`` gathers the layers' weights. It then computes
packed attention, one matrix product for all linear modules that read the same input,
and LoRA without casts and copies. On a GPU, one compiled graph per half of a layer
serves all layers. transformers computes any other model: an unknown architecture, GPTQ,
or a base sharded over GPUs; packed too, or a row at a time where a model cannot be
packed.

Results are those of transformers and PEFT, with one exception: linear modules that read
the same input share LoRA's dropout mask.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prefdistill.engine.architectures import (
    Architecture,
    architecture_of,
    head_dim_of,
    rope_of,
    window_of,
)
from prefdistill.engine.attention import is_packed, scores_on
from prefdistill.engine.decoder_layer import (
    Rope,
    Shape,
    Weights,
    after_attention,
    attention_half,
    attention_of_kept,
    heads_of,
    mlp_half,
)
from prefdistill.engine.device import SHARDED, to_device
from prefdistill.engine.fp8 import to_fp8
from prefdistill.engine.frozen import Group, gather, kind_of
from prefdistill.engine.layout import PackedLayout
from prefdistill.engine.packing import PackedBatch
from prefdistill.engine.rope import follow_rows, tell_lengths
from prefdistill.errors import UserError

RECOMPUTE = ("none", "selective", "full")
# From this many operations on, compiling saves more time than it takes: an H100 does
# this many operations in the minute that compiling takes.
COMPILE_FLOP = 1e16


class Engine:
    """Compute a model's decoder, from packed batches to last hidden states.

    Args:
        core: A transformers model, with or without LoRA inside. Without packed
            attention, it computes one row at a time.

    Attributes:
        recompute: Which activations the backward pass computes again; set it with
            ``set_recompute``.
        compiled: Whether layers are compiled on a GPU; set it with ``set_compiled``.
        layers: The gathered layers; empty while transformers computes them.
    """

    def __init__(self, core: nn.Module) -> None:
        self.core = core
        follow_rows(core.base_model)
        self.recompute, self.compiled = "none", True
        self.layers: list[Layer] = []
        self._gathered_from: list[tuple] | None = None

    def forward(
        self, batch: PackedBatch, keep: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the last hidden states of a packed batch.

        Args:
            batch: Rows laid end to end.
            keep: ``(n_kept,)`` int64 places of the tokens to return, on the model's
                device; None for all. For the other tokens, the last layer computes only
                keys and values.

        Returns:
            ``(n_tokens, hidden)`` or ``(n_kept, hidden)``, in the model's dtype.
        """
        tell_lengths(self.core.base_model, batch)
        if self.refresh():
            return self._by_layers(batch, keep)
        if is_packed(self.core):
            states = self._by_transformers(batch)
        else:
            states = self._by_rows(batch)
        return states if keep is None else states[keep]

    def _by_layers(self, batch: PackedBatch, keep: torch.Tensor | None) -> torch.Tensor:
        decoder, device = self.core.base_model, self.core.device
        layout = PackedLayout(batch.lengths, device, batch.shared, keep)
        states = decoder.embed_tokens(to_device(batch.input_ids, device))
        ropes = self._ropes(states, to_device(batch.position_ids, device))
        halves = _compiled() if self.compiled and device.type == "cuda" else _plain()
        x = states[0]
        for layer in self.layers:
            x = layer.forward(x, ropes[layer.rope], layout, halves, self.recompute)
        return decoder.norm(x[None])[0]

    def _ropes(
        self, states: torch.Tensor, position_ids: torch.Tensor
    ) -> dict[str | None, Rope]:
        """Compute the layers' rotary embeddings by name; see ``rope_of``."""
        ropes: dict[str | None, Rope] = {None: None}
        for name in {layer.rope for layer in self.layers} - {None}:
            kind = {"layer_type": name} if name else {}
            embedding = self.core.base_model.rotary_emb
            cos, sin = embedding(states, position_ids, **kind)
            ropes[name] = cos[0][:, None], sin[0][:, None]
        return ropes

    def _by_transformers(self, batch: PackedBatch) -> torch.Tensor:
        layout = PackedLayout(batch.lengths, self.core.device, batch.shared)
        return self._transformed(batch.input_ids, batch.position_ids, packed=layout)

    def _by_rows(self, batch: PackedBatch) -> torch.Tensor:
        if batch.shared.any():
            raise ValueError("a model without packed attention needs whole rows")
        tell_lengths(self.core.base_model, None)
        cuts = batch.cu_lengths[1:-1]
        rows = zip(
            np.split(batch.input_ids, cuts, axis=1),
            np.split(batch.position_ids, cuts, axis=1),
            strict=True,
        )
        return torch.cat([self._transformed(*row) for row in rows])

    def _transformed(
        self, input_ids: np.ndarray, position_ids: np.ndarray, **settings: Any
    ) -> torch.Tensor:
        device, dtype = self.core.device, self.core.dtype
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = self.core.base_model(
                input_ids=to_device(input_ids, device),
                position_ids=to_device(position_ids, device),
                use_cache=False,
                **settings,
            )
        return output.last_hidden_state[0]

    # Weights gathered in inference mode could not take part in training later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def refresh(self) -> bool:
        """Gather the model's weights again if any were added, moved or changed.

        Returns:
            Whether this class computes the layers; if not, transformers does.
        """
        architecture = architecture_of(self.core.config)
        if architecture is None or not is_packed(self.core):
            return False
        if self._gathered_from != _weights_of(self.core, architecture):
            self.layers = []  # frees the old weights before the new ones are gathered
            if not getattr(self.core, SHARDED, False) and all(
                _is_known(layer, architecture) for layer in self.core.base_model.layers
            ):
                self.layers = self._gathered(architecture)
            # After gathering, as it moves weights.
            self._gathered_from = _weights_of(self.core, architecture)
        for layer in self.layers:
            layer.refresh()
        return bool(self.layers)

    def _gathered(self, architecture: Architecture) -> list["Layer"]:
        core, layers, has_gradient = self.core, [], False
        shape = shape_of(core.config, architecture, core.device, core.dtype)
        modules = core.base_model.layers
        for number, module in enumerate(modules):
            # The gradient passes through every layer above the first trained one.
            has_gradient |= any(weight.requires_grad for weight in module.parameters())
            layers.append(
                Layer(
                    module,
                    gathered_weights(module, architecture, shape, has_gradient),
                    window=window_of(core.config, number),
                    rope=rope_of(core.config, number),
                    is_last=module is modules[-1],
                )
            )
        return layers

    def set_recompute(self, how: str) -> None:
        """Choose which activations the backward pass computes again.

        Args:
            how: ``none``; ``selective`` for an MLP's norm, gate and up, which are half
                of the activations; or ``full`` for all of a layer. If transformers
                computes the model, ``selective`` means ``full``.
        """
        self.recompute = how
        if not self.refresh() and how != "none":
            self.core.activation_checkpointing_enable({"use_reentrant": False})

    def set_compiled(self, n_operations: float, how: str = "auto") -> None:
        """Choose whether layers are compiled on a GPU; FlexAttention always is.

        Args:
            n_operations: Floating point operations of the work to come.
            how: ``always``, ``never``, or ``auto``: if compiling saves more time on
                this work than it takes.
        """
        enough = n_operations > COMPILE_FLOP
        self.compiled = how == "always" or (how == "auto" and enough)


class Halves(NamedTuple):
    """The functions that compute layers, compiled or not."""

    attention: Callable
    mlp: Callable
    heads: Callable


def _plain() -> Halves:
    return Halves(attention_half, mlp_half, heads_of)


@cache
def _compiled() -> Halves:
    import torch._dynamo

    # torch's default limit is too low: there is one build for each of up to eight
    # shapes, a few masks, and with or without gradients.
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 1024
    build = partial(torch.compile, dynamic=False, fullgraph=True)
    return Halves(build(attention_half), build(mlp_half), build(heads_of))


class Layer:
    """Compute one decoder layer from its gathered weights.

    Args:
        module: The layer of transformers, with or without LoRA.
        weights: From ``gathered_weights``.
        window: Its sliding window, if it has one.
        rope: The name of its rotary embedding; see ``rope_of``.
        is_last: Whether it is the model's last, which returns only the tokens of the
            layout's ``keep``.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: Weights,
        window: int | None,
        rope: str | None,
        is_last: bool,
    ) -> None:
        self.module, self.weights = module, weights
        self.window, self.rope, self.is_last = window, rope, is_last
        self._versions: list[int] = []

    def refresh(self) -> None:
        """Copy LoRA's weights again if they changed since the last call.

        A change is seen by a weight's version in autograd. Fused optimisers and changes
        through ``.data`` do not raise the version, so their callers must call
        ``torch.autograd.graph.increment_version``, as ``training.trainer`` does.
        """
        groups = self.weights.groups.values()
        versions = [b._version for group in groups for b in group.b]
        if versions != self._versions:
            for group in groups:
                group.refresh()
            self._versions = versions

    def forward(
        self,
        x: torch.Tensor,
        rope: Rope,
        layout: PackedLayout,
        halves: Halves,
        recompute: str,
    ) -> torch.Tensor:
        """Compute the residual stream after this layer.

        Args:
            x: The residual stream before it, ``(n, hidden)``.
            rope: Cosines and sines of the rotary embedding.
            layout: The batch's layout.
            halves: The functions that compute a layer.
            recompute: ``none``, ``selective`` or ``full``.

        Returns:
            ``(n, hidden)``; from the last layer ``(n_kept, hidden)`` if the layout has
            a ``keep``.
        """
        if not torch.is_grad_enabled():
            recompute = "none"
        selective = recompute == "selective"
        compute = partial(
            self._compute, rope=rope, layout=layout, halves=halves, selective=selective
        )
        if recompute == "full":
            return checkpoint(compute, x, use_reentrant=False)
        return compute(x)

    def _compute(
        self,
        x: torch.Tensor,
        rope: Rope,
        layout: PackedLayout,
        halves: Halves,
        selective: bool,
    ) -> torch.Tensor:
        common, scores = (self.weights, self.module.training), self.weights.shape.scores
        if not self.is_last or layout.keep is None:
            attention = layout.attention(self.window, scores.key_block)
            x = halves.attention(x, rope, attention, *common)
            return halves.mlp(x, *common, selective)
        heads = halves.heads(x, rope, *common)
        states = attention_of_kept(heads, layout, self.window, scores)
        x = after_attention(x[layout.keep], states, *common)
        # Not compiled: the kept tokens are too few to make up for another graph.
        return mlp_half(x, *common, selective)


def shape_of(
    config: Any, architecture: Architecture, device: torch.device, dtype: torch.dtype
) -> Shape:
    """Read the shape of a model's layers from its configuration.

    Args:
        config: The model's transformers configuration.
        architecture: The model's architecture.
        device: Where the model computes.
        dtype: The dtype that it computes in.
    """
    head_dim, scale, cap = head_dim_of(config), architecture.score_scale, None
    if architecture.softcap is not None:
        cap = getattr(config, architecture.softcap)
    scaled_by = head_dim if scale is None else getattr(config, scale)
    return Shape(
        config.num_attention_heads,
        config.num_key_value_heads,
        head_dim,
        config.rms_norm_eps,
        getattr(config, architecture.activation),
        scores_on(device, dtype, head_dim, scaled_by**-0.5, cap),
    )


def gathered_weights(
    module: nn.Module, architecture: Architecture, shape: Shape, has_gradient: bool
) -> Weights:
    """Gather a layer's weights; the module's own weights become views of them.

    Args:
        module: The layer of transformers, with or without LoRA.
        architecture: The model's architecture.
        shape: The shape of the model's layers.
        has_gradient: Whether the loss's gradient passes through the layer.
    """
    groups = {
        role: _group([module.get_submodule(path) for path in paths], has_gradient)
        for role, paths in architecture.groups.items()
    }
    norms = {
        place: _norm(module.get_submodule(path).weight, architecture)
        for place, path in architecture.norms.items()
    }
    return Weights(groups, norms, shape)


def _norm(weight: torch.Tensor, architecture: Architecture) -> torch.Tensor:
    """Prepare a norm's weight: float32 where the norm scales before it rounds."""
    weight = weight.detach()
    if architecture.scales_wide:
        weight = weight.float()
    return 1.0 + weight if architecture.adds_one else weight


def _group(modules: list[nn.Module], has_gradient: bool) -> Group:
    bases = [base_of(module) for module in modules]
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


def base_of(module: nn.Module) -> nn.Module:
    """Return a linear module without its LoRA."""
    return module.base_layer if _has_lora(module) else module


def _has_lora(module: nn.Module) -> bool:
    return hasattr(module, "lora_A")


def _is_known(layer: nn.Module, architecture: Architecture) -> bool:
    """Tell whether a layer's linear modules are of known kinds, one kind per group."""
    for paths in architecture.groups.values():
        modules = [layer.get_submodule(path) for path in paths]
        kinds = {kind_of(base_of(module)) for module in modules}
        if len(kinds) > 1 or None in kinds:
            return False
        loras = [module for module in modules if _has_lora(module)]
        if len({(m.scaling["default"], m.r["default"]) for m in loras}) > 1:
            return False
        if any(m.lora_variant or m.disable_adapters or m.merged for m in loras):
            return False
    return True


def _weights_of(core: nn.Module, architecture: Architecture) -> list[tuple]:
    """Describe the linear modules of two layers, and where their weights are stored."""
    # Moving a model, or adding or removing LoRA, changes the first and the last layer.
    # Inspecting all layers would take too long in every pass.
    found: list[tuple] = []
    for layer in (core.base_model.layers[0], core.base_model.layers[-1]):
        for path in architecture.linear_modules:
            module = layer.get_submodule(path)
            base = base_of(module)
            weight = getattr(base, "fp8_weight", getattr(base, "weight", None))
            is_tensor = isinstance(weight, torch.Tensor)  # GPTQ's is not
            place = (weight.data_ptr(), weight.device) if is_tensor else None
            lora = _has_lora(module) and (module.disable_adapters, module.merged)
            found.append((id(module), place, lora))
    return found


def quantise_to_fp8(core: nn.Module) -> None:
    """Quantise the linear modules of a loaded model's decoder to fp8, in place.

    Args:
        core: A transformers model of a known architecture.

    Raises:
        UserError: If the engine does not know its layers.
    """
    architecture = architecture_of(core.config)
    if architecture is None:
        raise UserError(
            f"precision fp8: not for {core.config.model_type} models; use bf16 or nf4"
        )
    for layer in core.base_model.layers:
        for path in architecture.linear_modules:
            to_fp8(layer.get_submodule(path))

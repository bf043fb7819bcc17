"""Find the linear modules that an adapter's targets mean in a loaded model.

An architecture may fuse modules that others keep apart, or hold experts as one tensor.
A name that PEFT does not find would leave these without LoRA, silently.
"""

import logging
from collections import Counter

from torch import nn

from prefdistill.errors import UserError

logger = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
# The modules that hold a target's weights in architectures that fuse it with others.
FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}


def find_targets(
    decoder: nn.Module, targets: tuple[str, ...], lowest_layer: int
) -> tuple[list[str], int]:
    """Find the linear modules of a decoder's layers that get an adapter.

    Args:
        decoder: A transformers model without its head.
        targets: Names of modules, or ``all-linear``.
        lowest_layer: Lowest layer with an adapter.

    Returns:
        The names of the modules, and the number of modules that they mean.

    Raises:
        UserError: If a target names no linear module, if a fused module is meant only
            in part, or if a target's weights are no linear module, as experts' are.
    """
    layers = getattr(decoder, "layers", None)
    kind = decoder.config.model_type
    if layers is None:
        raise UserError(f"lora: a {kind} model has no list of decoder layers to adapt")
    if lowest_layer >= len(layers):
        raise UserError(
            f"lora.lowest_layer: {lowest_layer}, but the model's layers are "
            f"0 to {len(layers) - 1}"
        )
    linear = [
        (int(number), name.rpartition(".")[2])
        for number, layer in layers.named_children()
        for name, module in layer.named_modules()
        if hasattr(module, "in_features")
    ]
    names = {name for _, name in linear}
    _check_experts(layers, targets, kind)
    meant = names if ALL_LINEAR in targets else _meant(targets, names, kind)
    found = Counter(n for layer, n in linear if n in meant and layer >= lowest_layer)
    return sorted(found), found.total()


def log_adapted(model: nn.Module) -> None:
    """Log which linear modules of a model with an adapter carry LoRA, and which not."""
    adapted: Counter[str] = Counter()
    plain: Counter[str] = Counter()
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        is_linear = hasattr(module, "in_features") and ".layers." in path
        if hasattr(module, "lora_A"):
            adapted[name] += 1
        elif is_linear and name != "base_layer" and ".lora_" not in path:
            plain[name] += 1
    logger.info("LoRA on %s; without LoRA: %s", _listed(adapted), _listed(plain))


def _listed(counts: Counter[str]) -> str:
    each = (f"{count} {name}" for name, count in sorted(counts.items()))
    return ", ".join(each) or "no linear layer"


def _meant(targets: tuple[str, ...], names: set[str], kind: str) -> set[str]:
    """Replace targets that an architecture fuses by the modules that hold them."""
    meant = set()
    for target in targets:
        name = target if target in names else FUSED.get(target, target)
        if name not in names:
            raise UserError(
                f"lora.targets: {target}: a {kind} model has {', '.join(sorted(names))}"
            )
        parts = {part for part, whole in FUSED.items() if whole == name}
        missing = sorted(parts - set(targets)) if name != target else []
        if missing:
            raise UserError(
                f"lora.targets: a {kind} model holds {', '.join(sorted(parts))} in one "
                f"module, {name}: name {', '.join(missing)} too, or none of them"
            )
        meant.add(name)
    return meant


def _check_experts(layers: nn.ModuleList, targets: tuple[str, ...], kind: str) -> None:
    """Refuse targets that are tensors of many matrices: LoRA would not reach them."""
    meant = {*targets, *(FUSED.get(target) for target in targets)}
    for path, weight in layers.named_parameters():
        parent, _, name = path.rpartition(".")
        is_convolution = hasattr(layers.get_submodule(parent), "kernel_size")
        if weight.dim() < 3 or is_convolution:
            continue
        if ALL_LINEAR in targets or name in meant:
            raise UserError(
                f"lora.targets: a {kind} model holds its experts in one tensor "
                f"(layers.{path}), which LoRA does not reach; take a dense model, or "
                "name only the targets of its attention"
            )

"""Load base models whose frozen weights are sharded over a job's processes (FSDP2).

Each process holds one shard of every decoder layer, and gathers the other shards just
before the layer computes. Adapters and heads are added later and stay whole in every
process, so training and checkpoints are the same as for an unsharded model.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from prefdistill.engine.attention import ATTENTION, register
from prefdistill.engine.device import SHARDED
from prefdistill.errors import UserError
from prefdistill.models.manifests import weight_files

logger = logging.getLogger(__name__)

TensorOf = Callable[[str, torch.Size], torch.Tensor]


def empty_model(auto_class: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """Make a model with packed attention whose weights take no memory.

    Args:
        auto_class: The transformers class that makes the model.
        config: The model's configuration.
        dtype: Dtype of the weights.
    """
    from accelerate import init_empty_weights

    register()
    with init_empty_weights(include_buffers=False):
        return auto_class.from_config(
            config, dtype=dtype, attn_implementation=ATTENTION
        )


def load_sharded(
    auto_class: Any,
    folder: Path,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    *,
    nf4: bool,
) -> tuple[nn.Module, set[str]]:
    """Load this process's shards of a frozen model; all processes call this together.

    Args:
        auto_class: The transformers class that makes the model.
        folder: Holds safetensors files of plain weights.
        config: The model's configuration.
        dtype: Dtype of the weights that are not quantised.
        device: This process's device.
        nf4: Whether to quantise the linear layers of the decoder.

    Returns:
        The model; and the names of weights that the folder lacks, which are 0.

    Raises:
        UserError: If the folder's weights are quantised already.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"{folder}: quantised weights cannot be spread over GPUs; use a base of "
            "plain weights, or one GPU with more memory"
        )
    files = weight_files(Path(folder))
    missing = set()

    def tensor_of(name: str, shape: torch.Size) -> torch.Tensor:
        if name == "lm_head.weight" and name not in files:
            name = "model.embed_tokens.weight"  # tied
        if name not in files:
            missing.add(name)
            return torch.zeros(shape)
        with safe_open(files[name], framework="pt") as archive:
            return archive.get_tensor(name)

    model = empty_model(auto_class, config, dtype)
    materialise(model, tensor_of, dtype, device, nf4=nf4)
    logger.info(
        "%s: %s, %s weights in %s, sharded",
        folder, type(model).__name__, "NF4" if nf4 else "plain", dtype,
    )  # fmt: skip
    return model, missing


def materialise(
    model: nn.Module,
    tensor_of: TensorOf,
    dtype: torch.dtype,
    device: torch.device,
    *,
    nf4: bool,
    sharded: bool = True,
) -> None:
    """Fill an empty model layer by layer, and keep this process's shard of each layer.

    Args:
        model: A transformers model whose weights, not buffers, are on the meta device.
        tensor_of: Function from a weight's name and shape to its values.
        dtype: Dtype of the weights that are not quantised.
        device: Where this process's shards go.
        nf4: Whether to quantise the linear layers of the decoder.
        sharded: Whether to keep only one shard of each layer.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model.requires_grad_(False)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),)) if sharded else None
    layers = enumerate(model.model.layers)
    blocks = [(f"model.layers.{number}", layer) for number, layer in layers]
    # One block after the other: a process never holds more than its shards and a layer.
    for prefix, block in [*blocks, ("model", model.model)]:
        _fill(block, prefix, tensor_of, dtype, device, nf4)
        if mesh is not None:
            fully_shard(block, mesh=mesh)
    _fill(model, "", tensor_of, dtype, device)
    for module in model.modules():
        if hasattr(module, "quant_state"):  # PEFT reads these from an NF4 weight
            module.weight.compress_statistics = True
            module.weight.quant_type = "nf4"
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    model.is_loaded_in_4bit = nf4  # for PEFT, as transformers sets it
    setattr(model, SHARDED, sharded)


def _fill(
    block: nn.Module,
    prefix: str,
    tensor_of: TensorOf,
    dtype: torch.dtype,
    device: torch.device,
    nf4: bool = False,
) -> None:
    """Give the empty weights of a block their values."""
    for path, module in list(block.named_modules()):
        if nf4 and type(module) is nn.Linear:
            module = _nf4_linear(module, dtype)
            block.set_submodule(path, module)
        for name, weight in list(module.named_parameters(recurse=False)):
            if not weight.is_meta:
                continue
            full_name = ".".join(filter(None, [prefix, path, name]))
            value = tensor_of(full_name, weight.shape).to(device, dtype)
            if name == "weight" and hasattr(module, "quant_state"):
                value, module.quant_state = _quantise(value)
            setattr(module, name, nn.Parameter(value, requires_grad=False))


def _nf4_linear(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """Make an empty bitsandbytes layer in place of a linear one.

    Its weight will be a plain tensor of bytes, which FSDP can shard. bitsandbytes finds
    the scales in the layer's own ``quant_state``, which every process holds whole.
    """
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=dtype,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    layer.support_avx512bf16_for_cpu = False  # it would repack the gathered bytes
    return layer.requires_grad_(False)


def _quantise(value: torch.Tensor) -> tuple[torch.Tensor, Any]:
    from bitsandbytes.functional import quantize_4bit

    # FSDP of torch below 2.13 shards only floating point tensors, so the bytes are
    # stored as float32. With bfloat16, gathering would change bytes that look like a
    # NaN.
    return quantize_4bit(
        value,
        compress_statistics=True,
        quant_type="nf4",
        quant_storage=torch.float32,
    )

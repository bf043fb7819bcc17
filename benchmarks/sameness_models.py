"""Build the small models that `gpu_sameness` compares, and fp8 by its definition."""

import argparse
import zlib
from typing import Any

import torch
from torch.nn.functional import linear

TARGETS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]


def scaled(options: argparse.Namespace, n: int) -> int:
    """Return a size, or an eighth of it for tiny runs."""
    return max(1, n // 8) if options.tiny else n


def dtype_of(options: argparse.Namespace, base: str) -> torch.dtype:
    """Choose a base's dtype: float32 in tiny runs, as all jobs on a CPU."""
    if options.tiny:
        return torch.float32
    return torch.float16 if base == "fp16" else torch.bfloat16


def configuration(options: argparse.Namespace, architecture: str) -> Any:
    """Configure three layers, with Gemma's windows shorter than the longest row."""
    from transformers import AutoConfig

    hidden, head_dim = scaled(options, 512), scaled(options, 128)
    settings = {
        "vocab_size": 500,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_labels": 3,
        "pad_token_id": 0,
        "use_cache": False,
    }
    if architecture.startswith("gemma"):
        window = scaled(options, 300)
        more = {"query_pre_attn_scalar": head_dim, "sliding_window": window}
        settings |= {"head_dim": head_dim, **more}
    if architecture == "gemma3_text":
        settings["layer_types"] = ["sliding_attention"] * 2 + ["full_attention"]
    if architecture == "qwen3":
        settings["head_dim"] = head_dim
    return AutoConfig.for_model(architecture, **settings)


def build(options: argparse.Namespace, architecture: str, base: str) -> torch.nn.Module:
    """Build a judge with random weights, the same for all bases up to rounding."""
    from transformers import AutoModelForSequenceClassification

    from prefdistill.engine.attention import register
    from prefdistill.engine.engine import quantise_to_fp8
    from prefdistill.models.head import prepare_head
    from prefdistill.models.sharding import empty_model, materialise

    def tensor_of(name: str, shape: torch.Size) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            is_one = "norm" in name and not architecture.startswith("gemma")
            return is_one + 0.1 * values
        return values if "embed" in name else values * config.hidden_size**-0.5

    register()
    config, dtype = configuration(options, architecture), dtype_of(options, base)
    model = empty_model(AutoModelForSequenceClassification, config, dtype)
    device = torch.device(options.device)
    nf4 = base == "nf4"
    materialise(model, tensor_of, dtype, device, nf4=nf4, sharded=False)
    if base == "fp8":
        quantise_to_fp8(model)
    prepare_head(model, 0)
    return model.eval()


def adapt(
    model: torch.nn.Module, *, rank: int, lowest_layer: int, fresh: bool
) -> torch.nn.Module:
    """Add an adapter, with B as it is initialised or random."""
    from prefdistill.models.lora import add_adapter
    from prefdistill.settings import LoraSettings, read

    lora = {"r": rank, "alpha": 2 * rank, "dropout": 0.0, "targets": TARGETS}
    lora |= {"lowest_layer": lowest_layer}
    model = add_adapter(model, read(LoraSettings, lora), seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name and not fresh:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            values = 0.02 * torch.randn(weight.shape, generator=generator)
            weight.data.copy_(values)
    return model


class Fp8Product(torch.autograd.Function):
    """A linear layer that follows the definition of fp8, with products in float32."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        """Round inputs and weight by rows."""
        ctx.save_for_backward(weight)
        output = linear(rounded(x.float()), weight)
        return (output if bias is None else output + bias.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        """Round gradients by rows, the weight by columns."""
        (weight,) = ctx.saved_tensors
        columns = rounded(weight.t()).t()
        return (rounded(gradient.float()) @ columns).to(gradient.dtype), None, None


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Round float32 values to e4m3 with one scale per row."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def define_fp8(core: torch.nn.Module) -> None:
    """Make the linear layers of an fp8 base compute without the engine."""
    for module in core.modules():
        if hasattr(module, "fp8_weight"):
            weight = module.fp8_weight.float() * module.fp8_scale

            def forward(x, weight=weight, bias=module.bias):
                with torch.autocast(x.device.type, enabled=False):
                    return Fp8Product.apply(x, weight, bias)

            module.forward = forward

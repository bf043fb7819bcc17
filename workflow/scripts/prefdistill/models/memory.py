"""Estimate the memory of training, and react when memory runs out."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from prefdistill.engine.architectures import lora_values, n_norms_after, widths_of
from prefdistill.errors import UserError
from prefdistill.models.forward import core_model, device_of, is_sharded
from prefdistill.models.head import classifier_class
from prefdistill.models.precision import base_precision, is_gptq
from prefdistill.models.sharding import empty_model
from prefdistill.running.processes import n_processes
from prefdistill.settings import OptimisationSettings

logger = logging.getLogger(__name__)

# Bytes per weight: four bits, plus a byte per block of 64 weights and four bytes per
# 256 blocks.
NF4_BYTES = 0.516
# Share of the GPU that an estimate may fill, as estimates are within a tenth.
USABLE = 0.9
# `recompute: auto` halves passes down to this many tokens before it recomputes more.
LEAST_TOKENS = 2048
NOTHING = torch.empty(0)


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Count a model's parameters by kind.

    Returns:
        Counts for ``embedding``, ``linear``, ``other`` (norms), ``head`` and ``lora``.
    """
    counts = dict.fromkeys(("embedding", "linear", "other", "head", "lora"), 0)
    for name, module in model.named_modules():
        for weight in module.parameters(recurse=False):
            if "original_module" in name:
                continue
            if "lora_" in name:
                kind = "lora"
            elif "score" in name:
                kind = "head"
            elif "embed_tokens" in name:
                kind = "embedding"
            else:
                kind = "linear" if hasattr(module, "in_features") else "other"
            # A byte of NF4 holds two parameters.
            is_nf4 = type(weight).__name__ == "Params4bit"
            counts[kind] += weight.numel() * (2 if is_nf4 else 1)
        counts["linear"] += getattr(module, "fp8_weight", NOTHING).numel()
    return counts


def estimate_memory(
    config: Any,
    counts: dict[str, int],
    precision: str,
    token_budget: int,
    *,
    recompute: str,
    dropout: float = 0.0,
) -> float:
    """Estimate the peak memory of LoRA training; measured peaks are within a tenth.

    The peak is the sum of

    - the weights, by precision (fp8 training keeps two copies of one byte);
    - 16 bytes for each trained parameter (float32 weight, gradient and two moments of
      AdamW), and its 16-bit copy;
    - what each layer of the engine keeps for the backward pass;
    - one layer's activations to work in.

    Args:
        config: The model's transformers configuration.
        counts: From ``count_parameters``.
        precision: How the base is stored: bf16, fp16, fp32, nf4 or fp8.
        token_budget: Tokens in a forward pass.
        recompute: ``none``, ``selective`` or ``full``.
        dropout: LoRA's dropout; its masks and inputs are kept for the backward pass.

    Returns:
        The peak in GiB.
    """
    n_bytes = 4 if precision == "fp32" else 2
    linear_bytes = NF4_BYTES if precision == "nf4" else n_bytes
    weights = counts["linear"] * linear_bytes
    weights += (counts["embedding"] + counts["other"]) * n_bytes
    trained = (16 + n_bytes) * (counts["lora"] + counts["head"])
    hidden, query, keys, gated = widths_of(config)
    # In values per token: the residual stream twice and its norm; query, key and value
    # as one product, then query and key rotated; attention's output in two layouts.
    kept = 3 * hidden + (query + 2 * keys) + (query + keys) + 2 * query
    # A norm keeps its input. A norm before a product reads the residual stream, which
    # is counted; a norm after a product reads values that nothing else keeps.
    kept += n_norms_after(config) * hidden
    mlp = hidden + 2 * gated
    # Each LoRA keeps its low-rank values. The rank is the mean over all linear modules,
    # as an adapter may leave some out.
    rank = counts["lora"] // (config.num_hidden_layers * lora_values(config))
    kept, mlp = kept + 4 * rank, mlp + 3 * rank
    if dropout:  # a mask takes one byte per value; the inputs of two products are kept
        kept += (hidden + query) // 2 + query
        mlp += hidden // 2 + gated + gated // 2
    layer = kept + mlp
    by_layer = {"none": layer, "selective": kept, "full": hidden}[recompute]
    values = config.num_hidden_layers * by_layer + layer
    values += layer if recompute == "full" else 0
    return (weights + trained + token_budget * values * n_bytes) / 2**30


def note_short_memory(model: torch.nn.Module, error: torch.OutOfMemoryError) -> None:
    """Log that memory ran out.

    Raises:
        UserError: If the model is sharded. The other processes are inside the same
            pass, so it cannot be repeated.
    """
    logger.warning("%s", str(error).splitlines()[0])
    if is_sharded(model):
        raise UserError(
            "out of memory in a model sharded over several GPUs; lower its "
            "token_budget or raise its gpus"
        ) from error


def halved_budget(token_budget: int, longest_row: int) -> int:
    """Halve the tokens in a pass after memory ran out; the longest row still fits.

    Args:
        token_budget: Most tokens in a pass so far.
        longest_row: Tokens of the longest row.

    Returns:
        The new budget, at least ``longest_row``.

    Raises:
        UserError: If a pass held only one row.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if token_budget <= longest_row:
        raise UserError(
            f"out of memory with one row of {longest_row} tokens in a pass; set "
            "recompute: full, precision: nf4, more gpus or a smaller text.max_length"
        )
    halved = max(token_budget // 2, longest_row)
    logger.warning(
        "token_budget lowered to %d for the rest of the job; results stay as they are",
        halved,
    )
    return halved


def fit_training(
    model: torch.nn.Module, settings: OptimisationSettings, longest_row: int
) -> tuple[str, int]:
    """Choose what to recompute, and how many tokens a pass holds, to fit the GPU.

    A pass holds ``token_budget`` tokens at most. ``recompute: auto`` recomputes as
    little as possible; it halves the tokens, down to 2048, before it recomputes more.
    On the CPU it recomputes nothing, in a sharded model everything.

    Args:
        model: With its adapter.
        settings: The ``training`` or ``post_pretrain`` settings.
        longest_row: Tokens that a pass must hold.

    Returns:
        ``none``, ``selective`` or ``full``, and the token budget.
    """
    how, budget = settings.recompute, settings.token_budget
    device = device_of(model)
    if is_sharded(model) or device.type == "cpu":
        auto = "full" if is_sharded(model) else "none"
        return (auto if how == "auto" else how), budget
    core, counts = core_model(model), count_parameters(model)
    precision = base_precision(core)
    rates = [
        m.p for n, m in model.named_modules() if "lora_dropout" in n and hasattr(m, "p")
    ]
    half = max(budget // 2, longest_row)
    sizes = [budget, half] if half >= LEAST_TOKENS else [budget]
    choices = [(how, tokens) for how in ("none", "selective") for tokens in sizes]
    choices += [("full", budget), ("full", half), ("full", max(half // 2, longest_row))]
    if how != "auto":
        choices = [(how, budget), (how, half), (how, max(half // 2, longest_row))]
    available = available_gib()
    for how, tokens in choices:
        needed = estimate_memory(
            core.config,
            counts,
            precision,
            tokens,
            recompute=how,
            dropout=max(rates, default=0.0),
        )
        if needed <= USABLE * available:
            break
    logger.info(
        "%.1f GiB of %.1f needed: recompute %s, %d tokens in a pass",
        needed, available, how, tokens,
    )  # fmt: skip
    return how, tokens


def available_gib() -> float:
    """Return the total memory of the current GPU in GiB."""
    return torch.cuda.get_device_properties().total_memory / 2**30


def place(
    folder: Path, precision: str, token_budget: int, lora_rank: int = 0
) -> tuple[str, bool]:
    """Choose how to store a base on this machine, and whether to shard it.

    ``auto`` becomes nf4 if 16-bit weights would not fit the GPU; see also
    ``precision.resolve_precision``. A base is sharded if one GPU cannot hold it whole.

    Args:
        folder: Folder of the base model.
        precision: As configured.
        token_budget: Tokens in a pass.
        lora_rank: Rank of the adapter to train, assumed to be on every linear layer; 0
            if nothing is trained.

    Returns:
        The precision, and whether to shard.
    """
    if not torch.cuda.is_available() or is_gptq(folder):
        return precision, False
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    model = empty_model(classifier_class(), config, torch.bfloat16)
    counts = count_parameters(model)
    counts["lora"] = lora_rank * sum(
        module.in_features + module.out_features
        for module in model.modules()
        if hasattr(module, "in_features")
    )
    available = available_gib()

    def fits(precision: str) -> bool:
        needed = estimate_memory(
            config, counts, precision, token_budget, recompute="full"
        )
        logger.info(
            "%.1f GiB of %.1f needed by a whole model in %s",
            needed, available, precision,
        )  # fmt: skip
        return needed <= USABLE * available

    if precision == "auto" and not fits("bf16") and find_spec("bitsandbytes"):
        precision = "nf4"
    return precision, n_processes() > 1 and not fits(precision)

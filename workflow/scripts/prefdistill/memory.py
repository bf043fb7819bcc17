"""How much memory training takes, and what to do when it is short."""

import logging
from pathlib import Path
from typing import Any

import torch

from prefdistill.distributed import n_processes
from prefdistill.job import UserError
from prefdistill.models import core_model, device_of, is_gptq, is_sharded
from prefdistill.sharding import empty_model

logger = logging.getLogger(__name__)


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Parameters by kind: embedding, linear, other (norms), head, lora.

    NF4 weights hold two parameters a byte and are counted as the parameters they are.
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
            is_nf4 = type(weight).__name__ == "Params4bit"
            counts[kind] += weight.numel() * (2 if is_nf4 else 1)
    return counts


def estimate_memory(
    config: Any,
    counts: dict[str, int],
    precision: str,
    token_budget: int,
    *,
    recompute: bool,
) -> float:
    """Rough peak memory of LoRA training, in GiB.

    Weights by precision; 16 bytes for each trained parameter (float32 weight, gradient
    and two moments of AdamW); activations of ``4 intermediate + 8 hidden`` values a
    token and layer, which fits Gemma-2-9B as measured on an H100 within a tenth. With
    recomputation a layer's input stays, and all of one layer.

    Args:
        config: The model's transformers configuration.
        counts: From ``count_parameters``.
        precision: The base's, as configured.
        token_budget: Tokens in a forward pass.
        recompute: Whether activations are recomputed in the backward pass.
    """
    n_bytes = 4 if precision == "fp32" else 2
    linear_bytes = 0.55 if precision == "nf4" else n_bytes
    weights = counts["linear"] * linear_bytes
    weights += (counts["embedding"] + counts["other"]) * n_bytes
    trained = 16 * (counts["lora"] + counts["head"])
    layer = 4 * config.intermediate_size + 8 * config.hidden_size
    values = config.num_hidden_layers * (config.hidden_size if recompute else layer)
    values += layer if recompute else 0
    return (weights + trained + token_budget * values * n_bytes) / 2**30


def note_short_memory(model: torch.nn.Module, error: torch.OutOfMemoryError) -> None:
    """Log that memory ran out.

    Raises:
        UserError: If the model is sharded: the other processes are in the middle of the
            same pass, so it cannot be taken back.
    """
    logger.warning("%s", str(error).splitlines()[0])
    if is_sharded(model):
        raise UserError(
            "out of memory in a model sharded over several GPUs; lower its "
            "token_budget or raise its gpus"
        ) from error


def halved_budget(token_budget: int, longest_row: int) -> int:
    """Half the tokens in a pass, after memory ran out; at least one row fits in it.

    Raises:
        UserError: If each pass held but one row.
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


def choose_recompute(model: torch.nn.Module, settings: dict[str, Any]) -> str:
    """Which activations to recompute, ``none``, ``selective`` or ``full``.

    As set, or with ``auto`` as few as memory allows: on the CPU none, in a sharded
    model all.
    """
    if settings["recompute"] != "auto":
        return settings["recompute"]
    device, core = device_of(model), core_model(model)
    if is_sharded(model):
        return "full"
    if device.type == "cpu":
        return "none"
    nf4 = getattr(core, "is_loaded_in_4bit", False)
    precision = "nf4" if nf4 else "fp32" if core.dtype == torch.float32 else "bf16"
    needed = estimate_memory(
        core.config,
        count_parameters(model),
        precision,
        settings["token_budget"],
        recompute=False,
    )
    available = torch.cuda.get_device_properties(device).total_memory / 2**30
    logger.info("%.1f GiB of %.1f needed without recomputation", needed, available)
    return "full" if needed > 0.9 * available else "none"


def must_shard(
    folder: Path, precision: str, token_budget: int, lora_rank: int = 0
) -> bool:
    """Whether a model is too large for each of several processes to hold whole.

    Args:
        folder: The base model's.
        precision: How the base is stored.
        token_budget: Tokens in a pass.
        lora_rank: Of the adapter to train, taken to be on every linear layer; 0 where
            nothing is trained.
    """
    if n_processes() == 1 or not torch.cuda.is_available() or is_gptq(folder):
        return False
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    model = empty_model(AutoModelForSequenceClassification, config, torch.bfloat16)
    counts = count_parameters(model)
    counts["lora"] = lora_rank * sum(
        module.in_features + module.out_features
        for module in model.modules()
        if hasattr(module, "in_features")
    )
    needed = estimate_memory(config, counts, precision, token_budget, recompute=True)
    available = torch.cuda.get_device_properties().total_memory / 2**30
    logger.info("%.1f GiB of %.1f needed by a whole model", needed, available)
    return needed > 0.9 * available

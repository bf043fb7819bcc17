"""Add, load, merge and save LoRA adapters of a loaded model, through PEFT.

``adapter_files`` reads and writes the same two files as plain tensors, without a model.
PEFT is imported inside functions, for the reason that ``loading`` gives.
"""

from pathlib import Path

import torch

from prefdistill.errors import DamagedFile, UserError
from prefdistill.models.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PREFIX,
    read_adapter_config,
)
from prefdistill.models.folder_checks import fitting
from prefdistill.models.forward import device_of
from prefdistill.models.head import Head
from prefdistill.models.lora_targets import find_targets
from prefdistill.settings import LoraSettings
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.tensors import check_finite, read_tensors, write_tensors
from prefdistill.storage.whole_files import reading


def add_adapter(
    model: torch.nn.Module, lora: LoraSettings, seed: int
) -> torch.nn.Module:
    """Wrap a model with a fresh float32 LoRA adapter, and make its head trainable.

    Args:
        model: A classifier, or a language model, which has no score head.
        lora: The adapter's shape.
        seed: Seed of the initialisation; torch's global generator is not used.

    Raises:
        UserError: If no layer or no target is left to adapt.
    """
    from peft import LoraConfig, get_peft_model

    layers = range(lora.lowest_layer, model.config.num_hidden_layers)
    targets, n_modules = find_targets(model.base_model, lora.targets, lora.lowest_layer)
    config = LoraConfig(
        task_type="SEQ_CLS" if hasattr(model, "score") else "CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        layers_to_transform=list(layers),
        modules_to_save=["score"] if hasattr(model, "score") else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(model, config)
    n_adapted = sum(name.endswith(".lora_A") for name, _ in model.named_modules())
    if n_adapted != n_modules:
        raise UserError(f"lora: PEFT adapted {n_adapted} of {n_modules} linear modules")
    return model


def load_adapter(
    model: torch.nn.Module, folder: Path, *, trainable: bool
) -> torch.nn.Module:
    """Wrap a classifier with a saved adapter and its head.

    Args:
        model: The base, as a frozen classifier.
        folder: The adapter's folder.
        trainable: Whether adapter and head are to be trained further.

    Raises:
        DamagedFile: If the adapter's weights are not exactly those of the model.
    """
    from peft import PeftModel

    path = Path(folder) / ADAPTER_WEIGHTS
    read_adapter_config(path.parent)
    saved = read_tensors(path)
    with reading(path, "an adapter"):
        check_finite(saved)
    device = str(device_of(model))
    with fitting(path, "this base model"):
        model = PeftModel.from_pretrained(
            model, str(folder), is_trainable=trainable, torch_device=device
        )
    expected = set(adapter_tensors(model))
    if set(saved) != expected:
        name = min(set(saved) ^ expected)
        raise DamagedFile(path, f"does not fit this base model; first at {name}")
    return model


def adapter_rank(folder: Path) -> int:
    """Read the rank of a saved adapter."""
    return read_json(Path(folder) / ADAPTER_CONFIG)["r"]


def adapter_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return an adapter's weights by PEFT's names in its file, float32 on the CPU."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in sorted(state.items())
    }


def save_adapter(
    model: torch.nn.Module, folder: Path, head: Head | None = None
) -> None:
    """Write an adapter in PEFT's format, in float32.

    Args:
        model: A PEFT model.
        folder: Where ``adapter_model.safetensors`` and ``adapter_config.json`` go.
        head: A float32 head that replaces the model's own; needed for a language model,
            which has none.

    Raises:
        UserError: If a weight is NaN or infinite.
    """
    tensors = adapter_tensors(model)
    if head is not None:
        tensors |= {PREFIX + name: weight for name, weight in head.tensors.items()}
    config = model.peft_config["default"].to_dict()
    config.update(
        task_type="SEQ_CLS",
        modules_to_save=["score"],
        inference_mode=True,
        peft_type=config["peft_type"].value,
    )
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    write_json(Path(folder) / ADAPTER_CONFIG, dict(sorted(plain.items())))
    write_tensors(Path(folder) / ADAPTER_WEIGHTS, tensors)

"""Loading base models as three-class judges, with LoRA adapters through PEFT.

transformers and PEFT are imported inside functions, so that a job can first hide
optional packages whose import would cost it seconds (``unused_packages``; see
``imports``).
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from prefdistill.adapters import read_adapter_config
from prefdistill.attention import ATTENTION, PackedLayout, can_share, register
from prefdistill.bases import base_folder as manifest_folder
from prefdistill.bases import check_model_files, weights_path
from prefdistill.engine import attach, quantise_to_fp8
from prefdistill.files import reading
from prefdistill.io import read_json, write_json
from prefdistill.job import UserError
from prefdistill.model_checks import (
    check_class,
    check_missing,
    check_vocabulary,
    check_weights,
    fitting,
)
from prefdistill.packing import PackedBatch
from prefdistill.producers import rerun_advice
from prefdistill.sharding import SHARDED, load_sharded
from prefdistill.tensors import check_finite, read_tensors, to_device, write_tensors

logger = logging.getLogger(__name__)

CLASSES = {0: "first", 1: "second", 2: "tie"}
HEAD_STD = 0.02
ADAPTER_FILE = "adapter_model.safetensors"
UNUSED_BY_GPTQ = ("bitsandbytes", "sklearn", "torchao")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def base_folder(path: Path) -> Path:
    """Folder of a model, from its manifest or from a file inside the folder."""
    path = Path(path)
    return manifest_folder(path) if path.name == "manifest.json" else path.parent


def is_gptq(folder: Path) -> bool:
    """Whether a model folder holds a GPTQ checkpoint."""
    config = read_json(Path(folder) / "config.json")
    return config.get("quantization_config", {}).get("quant_method") == "gptq"


def unused_packages(precision: str, folder: Path | None = None) -> list[str]:
    """Installed packages that loading a model this way never needs.

    Their import, through transformers and PEFT, costs 1 to 4 seconds a job, so
    ``imports.import_model_libraries`` hides them.
    """
    if folder is not None and is_gptq(folder):
        return list(UNUSED_BY_GPTQ)
    # Not pandas: pyarrow, which looks for it, fails on one that is hidden.
    names = ["gptqmodel", "optimum", "torchao", "sklearn", "scipy"]
    may_be_nf4 = precision == "auto" and torch.cuda.is_available()
    needed = precision == "nf4" or may_be_nf4
    return names if needed else [*names, "bitsandbytes"]


def device_of(model: torch.nn.Module) -> torch.device:
    """The device that a model's weights lie on."""
    return next(model.parameters()).device


def _default_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def resolve_precision(precision: str, device: torch.device) -> tuple[torch.dtype, bool]:
    """The dtype to compute in, and whether the base is quantised to NF4.

    ``auto`` and ``nf4`` compute in bf16 where the GPU has it, in fp16 on older GPUs.
    The CPU always computes in fp32, as its 16-bit products are about ten times slower.
    """
    if device.type == "cpu":
        return torch.float32, precision == "nf4"
    if precision == "fp8" and torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError("precision fp8: this GPU has no fp8; use auto, bf16 or nf4")
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision in ("bf16", "fp8") and not has_bf16:
        raise UserError("precision bf16: this GPU has no bf16; use auto, fp16 or nf4")
    auto = torch.bfloat16 if has_bf16 else torch.float16
    return DTYPES.get(precision, auto), precision == "nf4"


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer in a model folder.

    Raises:
        UserError: If its files are not whole, or are not of the model beside them.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_json(folder / name)
    with reading(folder / "tokenizer_config.json", "a tokenizer that is known here"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    check_vocabulary(folder, tokenizer)
    return tokenizer


def seeded_head(hidden_size: int, seed: int) -> torch.Tensor:
    """Fresh score weights, ``(3, hidden_size)`` float32; the same for all folds."""
    generator = torch.Generator().manual_seed(seed)
    return HEAD_STD * torch.randn(len(CLASSES), hidden_size, generator=generator)


def _load(
    auto_class: Any,
    folder: Path,
    precision: str,
    device: Any,
    shard: bool = False,
    **settings: Any,
):
    """A frozen model with packed attention, and the names of its missing weights."""
    from transformers import AutoConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
    register()
    device = torch.device(device) if device is not None else _default_device()
    check_model_files(folder)
    with reading(folder / "config.json", "settings of a model that is known here"):
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **settings
        )
    check_class(folder, config, auto_class)
    gptq = getattr(config, "quantization_config", None) is not None
    dtype, nf4 = resolve_precision(precision, device)
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    config.use_cache = False
    if gptq:
        from prefdistill.gptq_check import use_eager_kernels, use_torch_kernels

        use_torch_kernels(config)
    if shard and precision == "fp8":
        raise UserError(
            f"{folder}: precision fp8 cannot be spread over GPUs; use bf16 or nf4"
        )
    if shard:
        return load_sharded(auto_class, folder, config, dtype, device, nf4=nf4)
    if nf4 and not gptq:
        settings["quantization_config"] = _nf4(dtype)
    settings.pop("num_labels", None)
    with fitting(weights_path(folder), "its config.json"):
        model, info = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=ATTENTION,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    check_weights(folder, model)
    model.requires_grad_(False)
    if precision == "fp8" and not gptq:
        quantise_to_fp8(model)
    if gptq:
        use_eager_kernels(model)
    kind = "GPTQ" if gptq else "plain" if precision == "auto" else precision
    kind = "nf4" if nf4 else kind
    logger.info(
        "%s: %s, %s weights, computing in %s on %s (precision %s)",
        folder, type(model).__name__, kind, dtype, device, precision,
    )  # fmt: skip
    return model, set(info["missing_keys"])


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["score", "lm_head"],
    )


def load_classifier(
    folder: Path,
    precision: str,
    *,
    head_seed: int = 0,
    device: str | torch.device | None = None,
    shard: bool = False,
) -> torch.nn.Module:
    """Load a model folder as a frozen three-class judge with packed attention.

    The float32 score head is the folder's own, or drawn from ``head_seed`` where the
    folder holds a language model. Only local safetensors files are read, and no code.

    Args:
        folder: A transformers model folder: language model, classifier, or a GPTQ one.
        precision: fp32, bf16, fp16, nf4 or auto; see ``resolve_precision``.
        head_seed: Seed of a fresh head.
        device: Where to load; by default the GPU if there is one.
        shard: Whether each of the job's processes is to hold a part of the weights.

    Raises:
        UserError: If weights other than the head are missing from the folder.
    """
    from transformers import AutoModelForSequenceClassification

    model, missing = _load(
        AutoModelForSequenceClassification,
        folder,
        precision,
        device,
        shard,
        num_labels=len(CLASSES),
    )
    model.config.id2label = dict(CLASSES)
    model.config.label2id = {name: label for label, name in CLASSES.items()}
    check_missing(folder, missing - {"score.weight"})
    model.score.to(torch.float32)
    if missing:
        head = seeded_head(model.config.hidden_size, head_seed)
        model.score.weight.data.copy_(head)
    return model.eval()


def load_language_model(
    folder: Path, precision: str, *, shard: bool = False
) -> torch.nn.Module:
    """Load a model folder as a frozen language model; see ``load_classifier``."""
    from transformers import AutoModelForCausalLM

    model, missing = _load(AutoModelForCausalLM, folder, precision, None, shard)
    check_missing(folder, missing)
    return model.eval()


def core_model(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def base_precision(core: torch.nn.Module) -> str:
    """How a loaded model's base is stored: nf4, fp8, bf16, fp16 or fp32."""
    if getattr(core, "is_loaded_in_4bit", False):
        return "nf4"
    if hasattr(core.model.layers[0].mlp.down_proj, "fp8_weight"):
        return "fp8"
    return next(name for name, dtype in DTYPES.items() if dtype == core.dtype)


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether each process holds but a part of the model's base."""
    return getattr(core_model(model), SHARDED, False)


def hidden_states(model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
    """Last hidden states of a packed batch, ``(n_tokens, hidden_size)``."""
    core, device = core_model(model), device_of(model)
    fast = attach(core)
    dtype = core.dtype
    autocast = not fast and dtype != torch.float32
    with torch.autocast(device.type, dtype, enabled=autocast):
        output = core.model(
            input_ids=to_device(batch.input_ids, device),
            position_ids=to_device(batch.position_ids, device),
            use_cache=False,
            packed=PackedLayout(batch.lengths, device, batch.shared),
        )
    return output.last_hidden_state[0]


def shares_prompts(model: torch.nn.Module) -> bool:
    """Whether both orders of a pair may have their common prompt computed once.

    Not in a language model, which reads more of a row than its last token, nor where
    flash-attn is installed.
    """
    return hasattr(core_model(model), "score") and can_share(device_of(model))


def classify(model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
    """Logits of a packed batch's rows, ``(n_rows, 3)`` float32.

    Only the last token of a row is scored, in float32.
    """
    states = hidden_states(model, batch)
    last = to_device(batch.last, states.device)
    return core_model(model).score(states[last].float())


def add_adapter(
    model: torch.nn.Module, lora: dict[str, Any], seed: int
) -> torch.nn.Module:
    """Wrap a model with a fresh float32 LoRA adapter (and its trainable head).

    Args:
        model: A classifier, or a language model, which has no head to train.
        lora: ``r``, ``alpha``, ``dropout``, ``targets``, ``lowest_layer``.
        seed: Seed of the initialisation; it leaves torch's own generator alone.

    Raises:
        UserError: If no layer or no target is left to adapt.
    """
    from peft import LoraConfig, get_peft_model

    n_layers = model.config.num_hidden_layers
    if lora["lowest_layer"] >= n_layers:
        raise UserError(
            f"lora.lowest_layer: {lora['lowest_layer']}, but the model's layers are "
            f"0 to {n_layers - 1}"
        )
    config = LoraConfig(
        task_type="SEQ_CLS" if hasattr(model, "score") else "CAUSAL_LM",
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=sorted(lora["targets"]),
        layers_to_transform=list(range(lora["lowest_layer"], n_layers)),
        modules_to_save=["score"] if hasattr(model, "score") else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def load_adapter(
    model: torch.nn.Module, folder: Path, *, trainable: bool
) -> torch.nn.Module:
    """Wrap a classifier with a saved adapter and its head.

    Raises:
        UserError: If the adapter's weights are not exactly those that fit the model.
    """
    from peft import PeftModel

    path = Path(folder) / ADAPTER_FILE
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
        raise UserError(
            f"{path}: does not fit this base model; first at {name}; "
            f"{rerun_advice(path)}"
        )
    return model


def load_merged(folder: Path, adapter: Path, precision: str) -> torch.nn.Module:
    """A classifier with an adapter merged into it in float32, then cast.

    An NF4 base becomes a 16-bit one, as the merged weights no longer fit its blocks.
    """
    device = _default_device()
    dtype, _ = resolve_precision(precision, device)
    model = load_classifier(folder, "fp32", device="cpu")
    model = load_adapter(model, adapter, trainable=False).merge_and_unload()
    model.to(device, dtype)
    model.score.to(torch.float32)
    return model.eval()


def adapter_rank(folder: Path) -> int:
    """The rank of a saved adapter."""
    return read_json(Path(folder) / "adapter_config.json")["r"]


def adapter_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """An adapter's weights under PEFT's file names, float32 on the CPU."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in sorted(state.items())
    }


def save_adapter(
    model: torch.nn.Module, folder: Path, head: torch.Tensor | None = None
) -> None:
    """Write an adapter in PEFT's format, float32, each file whole or absent.

    Args:
        model: A PEFT model.
        folder: Where ``adapter_model.safetensors`` and ``adapter_config.json`` go.
        head: Score weights that replace the model's own, or supply a language model's.

    Raises:
        UserError: If a weight is NaN or infinite.
    """
    tensors = adapter_tensors(model)
    if head is not None:
        tensors["base_model.model.score.weight"] = head
    config = model.peft_config["default"].to_dict()
    config.update(
        task_type="SEQ_CLS",
        modules_to_save=["score"],
        inference_mode=True,
        peft_type=config["peft_type"].value,
    )
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    write_json(Path(folder) / "adapter_config.json", dict(sorted(plain.items())))
    write_tensors(Path(folder) / ADAPTER_FILE, tensors)

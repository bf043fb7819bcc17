"""Load base models as three-class judges, and compute their logits.

transformers is imported inside functions, so that a job can first hide optional
packages whose import would cost it seconds; see ``unused_packages``.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefdistill.classes import CLASSES
from prefdistill.engine.attention import ATTENTION, register
from prefdistill.engine.device import SHARDED, to_device
from prefdistill.engine.engine import Engine, quantise_to_fp8
from prefdistill.engine.packing import PackedBatch
from prefdistill.errors import UserError
from prefdistill.models.folder_checks import (
    check_class,
    check_missing,
    check_vocabulary,
    check_weights,
    fitting,
)
from prefdistill.models.manifests import base_folder as manifest_folder
from prefdistill.models.manifests import check_model_files, weights_path
from prefdistill.models.sharding import load_sharded
from prefdistill.storage.tables import read_json
from prefdistill.storage.whole_files import reading

logger = logging.getLogger(__name__)

HEAD_STD = 0.02
# Scored rows are rounded up to a multiple of it: each other number of rows would cost
# another compilation.
ROWS_STEP = 64
UNUSED_BY_GPTQ = ("bitsandbytes", "sklearn", "torchao")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def base_folder(path: Path) -> Path:
    """Return a model's folder, from its manifest or from a file inside the folder."""
    path = Path(path)
    return manifest_folder(path) if path.name == "manifest.json" else path.parent


def is_gptq(folder: Path) -> bool:
    """Tell whether a model folder holds a GPTQ checkpoint."""
    config = read_json(Path(folder) / "config.json")
    return config.get("quantization_config", {}).get("quant_method") == "gptq"


def unused_packages(precision: str, folder: Path | None = None) -> list[str]:
    """List installed packages that loading a model this way never needs.

    transformers and PEFT would import them, which costs a job 1 to 4 seconds, so
    ``imports.import_model_libraries`` hides them.
    """
    if folder is not None and is_gptq(folder):
        return list(UNUSED_BY_GPTQ)
    # pandas is not listed: pyarrow looks for it and fails if it is hidden.
    names = ["gptqmodel", "optimum", "torchao", "sklearn", "scipy"]
    may_be_nf4 = precision == "auto" and torch.cuda.is_available()
    needed = precision == "nf4" or may_be_nf4
    return names if needed else [*names, "bitsandbytes"]


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device that a model's weights lie on."""
    return next(model.parameters()).device


def default_device() -> torch.device:
    """Return the process's GPU if there is one, otherwise the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def resolve_precision(precision: str, device: torch.device) -> tuple[torch.dtype, bool]:
    """Choose the dtype to compute in, and whether to quantise the base to NF4.

    ``auto`` and ``nf4`` compute in bf16 where the GPU has it, in fp16 on older GPUs.
    The CPU always computes in fp32, as its 16-bit products are about ten times slower.

    Raises:
        UserError: If the GPU lacks the precision.
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
    """Load the fast tokenizer of a model folder.

    Raises:
        UserError: If its files are damaged or do not fit the model beside them.
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
    """Draw score weights, ``(3, hidden_size)`` float32; the same for all folds."""
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
    """Load a frozen model with packed attention; also name its missing weights."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
    register()
    device = torch.device(device) if device is not None else default_device()
    config = _configuration(auto_class, folder, settings)
    gptq = getattr(config, "quantization_config", None) is not None
    dtype, nf4 = resolve_precision(precision, device)
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


def _configuration(auto_class: Any, folder: Path, settings: dict[str, Any]) -> Any:
    """Check a model's files and read its configuration, with settings added."""
    from transformers import AutoConfig

    check_model_files(folder)
    with reading(folder / "config.json", "settings of a model that is known here"):
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **settings
        )
    check_class(folder, config, auto_class)
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    config.use_cache = False
    if getattr(config, "quantization_config", None) is not None:
        use_torch_kernels(config)
    return config


def use_torch_kernels(config: Any) -> None:
    """Choose PyTorch's own products for a GPTQ model on a GPU, in place.

    GPTQModel would choose kernels made for a few tokens and, where there is a compiler,
    compile them for minutes first. Here a pass holds thousands of tokens, so that
    dequantising each layer for it costs little.

    Args:
        config: The model's transformers configuration.
    """
    if torch.cuda.is_available():
        config.quantization_config["backend"] = "gptq_torch"


def use_eager_kernels(model: torch.nn.Module) -> None:
    """Undo GPTQModel's ``torch.compile`` of dequantisation, in place.

    Compiling takes half a minute before the first 8-bit logits are there. A few
    thousand rows never save that much.
    """
    for module in model.modules():
        vars(module).pop("dequantize_weight", None)


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
        shard: Whether each of the job's processes holds only a part of the weights.

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
    model.config.id2label = dict(enumerate(CLASSES))
    model.config.label2id = {name: label for label, name in enumerate(CLASSES)}
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
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def engine_of(model: torch.nn.Module) -> Engine:
    """Return the engine that computes a model's decoder, made on first use.

    A model keeps it when adapters come or go.
    """
    core = core_model(model)
    if not hasattr(core, "engine"):
        core.engine = Engine(core)
    return core.engine


def base_precision(core: torch.nn.Module) -> str:
    """Tell how a loaded model's base is stored: nf4, fp8, bf16, fp16 or fp32."""
    if getattr(core, "is_loaded_in_4bit", False):
        return "nf4"
    if any(hasattr(module, "fp8_weight") for module in core.model.layers[0].modules()):
        return "fp8"
    return next(name for name, dtype in DTYPES.items() if dtype == core.dtype)


def is_sharded(model: torch.nn.Module) -> bool:
    """Tell whether each process holds only a part of the model's base."""
    return getattr(core_model(model), SHARDED, False)


def shares_prompts(model: torch.nn.Module) -> bool:
    """Tell whether both orders of a pair may compute their common prompt once.

    A language model's loss reads every token of a row, so its rows must be whole.
    """
    return hasattr(core_model(model), "score")


def classify(model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
    """Compute the logits of a packed batch's rows, ``(n_rows, 3)`` float32.

    Only the last token of a row is scored, in float32.
    """
    n_rows = len(batch.last)
    keep = np.pad(batch.last, (0, -n_rows % ROWS_STEP), mode="edge")
    states = engine_of(model).forward(batch, to_device(keep, device_of(model)))
    return core_model(model).score(states[:n_rows].float())

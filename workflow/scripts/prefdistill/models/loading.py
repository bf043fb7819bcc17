"""Load base models as frozen three-class judges or language models.

transformers is imported inside functions, so that a job can first hide optional
packages whose import would cost it seconds; see ``quick_imports``.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from prefdistill.classes import CLASSES
from prefdistill.engine.attention import ATTENTION, register
from prefdistill.engine.engine import quantise_to_fp8
from prefdistill.errors import UserError
from prefdistill.models.folder_checks import (
    check_class,
    check_missing,
    check_vocabulary,
    check_weights,
    fitting,
)
from prefdistill.models.gptq_kernels import use_eager_kernels, use_torch_kernels
from prefdistill.models.head import classifier_class, is_head, prepare_head
from prefdistill.models.lora import load_adapter
from prefdistill.models.manifests import check_model_files, weights_path
from prefdistill.models.precision import (
    default_device,
    find_device,
    resolve_precision,
)
from prefdistill.models.probe import attention_of
from prefdistill.models.sharding import load_sharded
from prefdistill.storage.records import read_json
from prefdistill.storage.whole_files import reading

logger = logging.getLogger(__name__)


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
        precision: fp32, bf16, fp16, nf4, fp8 or auto; see
            ``precision.resolve_precision``.
        head_seed: Seed of a fresh head.
        device: Where to load; by default the GPU if there is one.
        shard: Whether each of the job's processes holds only one shard of the weights.

    Raises:
        UserError: If weights other than the head are missing from the folder.
    """
    model, missing = _load(
        classifier_class(),
        folder,
        precision,
        device,
        shard,
        num_labels=len(CLASSES),
    )
    check_missing(folder, {name for name in missing if not is_head(name)})
    prepare_head(model, head_seed if missing else None)
    return model.eval()


def load_language_model(
    folder: Path, precision: str, *, shard: bool = False
) -> torch.nn.Module:
    """Load a model folder as a frozen language model; see ``load_classifier``.

    Raises:
        UserError: If weights are missing from the folder.
    """
    from transformers import AutoModelForCausalLM

    model, missing = _load(AutoModelForCausalLM, folder, precision, None, shard)
    check_missing(folder, missing)
    return model.eval()


def load_merged(folder: Path, adapter: Path, precision: str) -> torch.nn.Module:
    """Load a classifier with an adapter merged into it in float32, then cast.

    An NF4 base becomes a 16-bit one, as the merged weights no longer fit the scales of
    its blocks.
    """
    device = default_device()
    dtype, _ = resolve_precision(precision, device)
    model = load_classifier(folder, "fp32", device="cpu")
    model = load_adapter(model, adapter, trainable=False).merge_and_unload()
    model.to(device, dtype)
    model.score.to(torch.float32)
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    """Load the fast tokenizer of a model folder.

    Raises:
        UserError: If its files are damaged, or do not fit the model beside them.
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


def _load(
    auto_class: Any,
    folder: Path,
    precision: str,
    device: str | torch.device | None,
    shard: bool = False,
    **settings: Any,
) -> tuple[torch.nn.Module, set[str]]:
    """Load a frozen model with packed attention; also name its missing weights.

    Args:
        auto_class: The transformers class that makes the model.
        folder: The model folder.
        precision: How to store the weights, as configured.
        device: Where to load; by default the GPU if there is one.
        shard: Whether each process holds only one shard of the weights.
        **settings: Settings of the configuration, such as ``num_labels``.
    """
    _silence_transformers()
    register()
    device = find_device(device)
    config = read_configuration(folder, auto_class, **settings)
    attention = attention_of(config, f"{folder}/config.json")
    gptq = getattr(config, "quantization_config", None) is not None
    dtype, nf4 = resolve_precision(precision, device)
    if shard and precision == "fp8":
        raise UserError(
            f"{folder}: precision fp8 cannot be spread over GPUs; use bf16 or nf4"
        )
    if shard and attention != ATTENTION:
        raise UserError(
            f"{folder}: a {config.model_type} model's rows cannot be packed, so it "
            "cannot be spread over GPUs; use one GPU with more memory"
        )
    if shard:
        return load_sharded(auto_class, folder, config, dtype, device, nf4=nf4)
    quantised = {"quantization_config": _nf4(dtype)} if nf4 and not gptq else {}
    with fitting(weights_path(folder), "its config.json"):
        model, info = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **quantised,
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


def _silence_transformers() -> None:
    """Keep progress bars and warnings about weights out of the job's log."""
    from transformers.utils import logging as transformers_logging

    # Missing and misshapen weights are reported by ``folder_checks``, in one line.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)


def read_configuration(folder: Path, auto_class: Any = None, **settings: Any) -> Any:
    """Check a model's files, and read its configuration with settings added.

    Args:
        folder: The model folder.
        auto_class: The transformers class that will load it; by default a classifier's.
        **settings: Settings of the configuration, such as ``num_labels``.

    Raises:
        UserError: If a file is damaged, or if the class cannot load such a model.
    """
    from transformers import AutoConfig

    check_model_files(folder)
    with reading(folder / "config.json", "settings of a model that is known here"):
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **settings
        )
    check_class(folder, config, auto_class or classifier_class())
    # transformers finds the last token of a padded row by its padding token.
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    config.use_cache = False
    if getattr(config, "quantization_config", None) is not None:
        use_torch_kernels(config)
    return config


def _nf4(dtype: torch.dtype) -> Any:
    """Describe NF4 for transformers, with double quantisation and a plain head."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["score", "lm_head"],
    )

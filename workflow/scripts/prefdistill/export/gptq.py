"""Quantise a sequence classifier with GPTQ (Frantar et al. 2022, arXiv 2210.17323).

GPTQModel rounds one layer after the other, and corrects a layer's later columns for the
error of its earlier ones on calibration rows. It loads models as causal language
models, which silently drops the score head. So its loader is replaced here, and
``gptq_check`` reloads and checks the model that it writes.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from prefdistill.data.prompts import encode_pairs
from prefdistill.engine.attention import ATTENTION, register
from prefdistill.engine.packing import CPU_TOKENS
from prefdistill.errors import UserError
from prefdistill.export.gptq_calibration import packed_classifier, packed_passes
from prefdistill.export.gptq_check import compare, default_dtype
from prefdistill.models.head import HEAD_NAMES
from prefdistill.models.loading import load_tokenizer
from prefdistill.models.manifests import copy_tokenizer, tensor_header
from prefdistill.settings import GptqSettings, TextSettings
from prefdistill.storage.digests import file_digest
from prefdistill.storage.logits import VIEWS
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.tables import FOLD_SCHEMA, read_table
from prefdistill.storage.tensors import read_tensors, write_tensors
from prefdistill.storage.whole_files import temporary_folder

PACK_WIDTH = 32  # GPTQ packs 32-bit words along both sides of a weight
N_COMPARED_PAIRS = 32
GPTQ_OPTIONS = ("group_size", "desc_act", "damp_percent")

logger = logging.getLogger(__name__)


def sample_pairs(table: pa.Table, split: str, n_pairs: int, seed: int) -> pa.Table:
    """Draw a seeded sample of one split's pairs, in the order of the table.

    Args:
        table: A fold's rows.
        split: The split.
        n_pairs: Number of pairs; all if there are fewer.
        seed: Of the sample.
    """
    rows = table.filter(pc.equal(table["split"], split))
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(rows.num_rows)[:n_pairs]
    return rows.take(np.sort(chosen))


def token_rows(table: pa.Table, tokenizer: Any, text: TextSettings) -> list[np.ndarray]:
    """Tokenise both orders of each pair, as at inference.

    Args:
        table: The pairs.
        tokenizer: The classifier's tokenizer.
        text: The ``text`` section.

    Returns:
        ``(length,)`` int32 tokens of each row, AB and BA of a pair together.
    """
    encoded = encode_pairs(table, tokenizer, text)
    return [
        encoded.tokens(row, view) for row in range(len(encoded.ids)) for view in VIEWS
    ]


def check_group_size(folder: Path, group_size: int) -> None:
    """Check that every linear layer of a classifier can be quantised.

    Args:
        folder: The classifier's folder.
        group_size: Weights that share a scale along the in-features.

    Raises:
        UserError: If a layer's in-features are not a multiple of ``group_size``, or its
            sides do not fill 32-bit words; it names the first such layer.
    """
    for name, entry in sorted(tensor_header(folder / "model.safetensors").items()):
        if ".layers." not in name or len(entry["shape"]) != 2:
            continue
        n_out, n_in = entry["shape"]
        layer = name.removesuffix(".weight")
        if n_in % group_size:
            raise UserError(
                f"quantisation.group_size: {group_size} does not divide the {n_in} "
                f"in-features of {layer}; choose a common divisor such as "
                f"{np.gcd(n_in, group_size)}"
            )
        if n_in % PACK_WIDTH or n_out % PACK_WIDTH:
            raise UserError(
                f"{layer}: {n_out}x{n_in} cannot be packed, as both sides must be "
                f"multiples of {PACK_WIDTH}"
            )


@contextmanager
def _classifier_loader(model_type: str, token_budget: int) -> Iterator[Any]:
    """Yield GPTQModel with its class for a model type replaced by a packed classifier.

    Raises:
        UserError: If GPTQModel does not know the model type.
    """
    # Without these, the first quantisation compiles a packing kernel for 50 s, and on
    # two cores it waits for workers that never start.
    os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    with open(os.devnull, "w") as silence, redirect_stdout(silence):
        from gptqmodel import GPTQModel
        from gptqmodel.models.auto import MODEL_MAP
        from logbar import LogBar

        LogBar.shared().setLevel("WARN")
        if model_type not in MODEL_MAP:
            raise UserError(f"model_type {model_type}: unknown to GPTQModel")
        definition = MODEL_MAP[model_type]
        MODEL_MAP[model_type] = packed_classifier(definition, token_budget)
        try:
            yield GPTQModel
        finally:
            MODEL_MAP[model_type] = definition


def _quantise(
    source: Path,
    scratch: Path,
    rows: list[np.ndarray],
    token_budget: int,
    options: dict[str, Any],
) -> None:
    """Quantise a classifier with GPTQModel, and save its files in a scratch folder."""
    if not torch.cuda.is_available():
        token_budget = min(token_budget, CPU_TOKENS)
    register()
    model_type = read_json(source / "config.json")["model_type"]
    with _classifier_loader(model_type, token_budget) as loader:
        from gptqmodel import QuantizeConfig

        config = QuantizeConfig(**options, offload_to_disk=False)
        model = loader.load(
            str(source),
            config,
            trust_remote_code=False,
            dtype=default_dtype(),
            attn_implementation=ATTENTION,
        )
        model.quantize(packed_passes(rows, token_budget))
        model.save(str(scratch), max_shard_size=None)


def _install(source: Path, scratch: Path, target: Path) -> None:
    """Write GPTQModel's result to the target folder, with one file of weights.

    Raises:
        UserError: If the score head is missing.
    """
    # Packed weights are copied bit by bit, as loading and saving a quantised model
    # would break them. All other weights are those of the 16-bit model, in its dtypes.
    original = read_tensors(source / "model.safetensors")
    tensors = {}
    for path in sorted(scratch.glob("*.safetensors")):
        for name, tensor in read_tensors(path).items():
            tensors[name] = original[name] if name in original else tensor.contiguous()
    if not tensors.keys() >= set(HEAD_NAMES):
        raise UserError(f"{source}: GPTQModel dropped the score head; report this")
    settings = read_json(scratch / "config.json")["quantization_config"]
    # GPTQModel's own configuration holds a path of this machine.
    settings.get("meta", {}).pop("offload_to_disk_path", None)
    settings.pop("dataset", None)
    config = read_json(source / "config.json")
    write_json(target / "config.json", {**config, "quantization_config": settings})
    write_json(target / "quantize_config.json", settings)
    copy_tokenizer(source, target)
    write_tensors(target / "model.safetensors", tensors)


def quantise_classifier(
    source: Path,
    target: Path,
    rows: list[np.ndarray],
    *,
    bits: int,
    group_size: int,
    desc_act: bool,
    damp_percent: float,
    seed: int,
    token_budget: int,
) -> None:
    """Quantise a classifier's linear layers; embedding and score head stay as they are.

    Args:
        source: A classifier folder from ``merging.write_classifier``.
        target: Folder for ``model.safetensors``, ``config.json`` and the tokenizer.
        rows: Calibration tokens, ``(length,)`` integer each.
        bits: 4 or 8.
        group_size: Weights that share a scale along the in-features.
        desc_act: Whether to quantise columns in order of falling activation.
        damp_percent: Damping of the Hessian's diagonal, as a share of its mean.
        seed: Of everything random in GPTQModel.
        token_budget: Most calibration tokens in a forward pass.

    Raises:
        UserError: If there are no rows, or layers cannot be divided into groups.
    """
    check_group_size(source, group_size)
    if not rows:
        raise UserError(f"{source}: no training pairs to calibrate quantisation on")
    torch.manual_seed(seed)
    options = {
        "bits": bits,
        "group_size": group_size,
        "desc_act": desc_act,
        "damp_percent": damp_percent,
    }
    with temporary_folder(target) as scratch:
        _quantise(source, scratch, rows, token_budget, options)
        _install(source, scratch, target)


def export_quantised(
    source: Path,
    target: Path,
    fold_path: Path,
    bits: int,
    settings: GptqSettings,
    text: TextSettings,
    token_budget: int,
) -> None:
    """Quantise a classifier, reload and check it, and write ``quantisation.json``.

    It is calibrated on training pairs, and compared with the 16-bit model on ``select``
    pairs. Both are tokenised as at inference.

    Args:
        source: The 16-bit classifier folder.
        target: Folder of the quantised one.
        fold_path: A fold file, which holds training and ``select`` pairs.
        bits: 4 or 8.
        settings: The ``quantisation`` section without ``bits``.
        text: The ``text`` section.
        token_budget: Most calibration tokens in a forward pass.

    Raises:
        UserError: If the model cannot be quantised, or differs from its files once it
            is reloaded.
    """
    table = read_table(fold_path, FOLD_SCHEMA)
    tokenizer = load_tokenizer(source)
    seed = settings.seed
    options = {key: getattr(settings, key) for key in GPTQ_OPTIONS}

    def rows_of(split: str, n_pairs: int) -> list[np.ndarray]:
        return token_rows(sample_pairs(table, split, n_pairs, seed), tokenizer, text)

    rows = rows_of("train", settings.n_calibration_pairs)
    logger.info("quantising %s to %d bits on %d rows", source, bits, len(rows))
    quantise_classifier(
        source,
        target,
        rows,
        bits=bits,
        token_budget=token_budget,
        seed=seed,
        **options,
    )
    compared = rows_of("select", N_COMPARED_PAIRS)
    gap, kernel_error = compare(source, target, compared, bits)
    sizes = _sizes(source / "model.safetensors", target / "model.safetensors")
    logger.info("logit gap %s, size %.2f", gap, sizes["size_ratio"])
    record = {
        "bits": bits,
        **options,
        "n_calibration_rows": len(rows),
        "n_calibration_tokens": sum(map(len, rows)),
        "gap_to_16_bit": asdict(gap),
        "kernel_error": kernel_error,
        **sizes,
    }
    write_json(target / "quantisation.json", record)


def _sizes(source: Path, target: Path) -> dict[str, Any]:
    """Describe sizes and digests of the weights before and after quantisation."""
    n_bytes, n_bytes_before = target.stat().st_size, source.stat().st_size
    return {
        "n_bytes": n_bytes,
        "n_bytes_16_bit": n_bytes_before,
        "size_ratio": n_bytes / n_bytes_before,
        "source_sha256": file_digest(source),
        "model_sha256": file_digest(target),
    }

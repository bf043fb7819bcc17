"""Merge an adapter into its 16-bit base, and write one plain classifier.

Tensors are read, merged and written one at a time, so a 9B model needs only the memory
of its largest tensor. The sum is computed in float32 and rounded once. PEFT's
``merge_and_unload`` on a bf16 base would round the delta too.
"""

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from prefdistill.classes import CLASSES
from prefdistill.errors import UserError
from prefdistill.models.adapter_files import Adapter
from prefdistill.models.head import Head, is_head
from prefdistill.models.manifests import copy_tokenizer, tensor_header, weight_files
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.whole_files import atomic_path

DTYPES = {"bfloat16": ("BF16", torch.bfloat16), "float16": ("F16", torch.float16)}


@dataclass(frozen=True)
class CastError:
    """The error of rounding merged weights to 16 bits.

    Attributes:
        max_abs: Largest absolute error of a weight.
        merged_over_delta: Frobenius norm of the adapted modules' rounding errors, over
            the norm of their deltas; None without an adapter.
    """

    max_abs: float
    merged_over_delta: float | None


def classifier_config(base: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Build the config.json of a classifier from that of a causal language model.

    The three classes are as shown: (first answer, second answer, tie).

    Args:
        base: Content of the base's config.json.
        dtype: ``bfloat16`` or ``float16``.

    Raises:
        UserError: If the base is quantised or not a known kind of architecture.
    """
    architecture = base["architectures"][0]
    stem = architecture.removesuffix("ForCausalLM")
    stem = stem.removesuffix("ForSequenceClassification")
    if stem == architecture or "quantization_config" in base:
        raise UserError(
            f"base model of architecture {architecture}: expected 16- or 32-bit "
            "weights of a causal language model or a sequence classifier"
        )
    dropped = ("torch_dtype", "_name_or_path", "auto_map", "transformers_version")
    config = {key: value for key, value in base.items() if key not in dropped}
    # transformers finds a row's last token in a padded batch by the padding token.
    pad = base.get("pad_token_id")
    if pad is None:
        pad = base.get("eos_token_id")
        pad = pad[0] if isinstance(pad, list) else pad
    return {
        **config,
        "architectures": [f"{stem}ForSequenceClassification"],
        "dtype": dtype,
        "id2label": {str(label): name for label, name in enumerate(CLASSES)},
        "label2id": {name: label for label, name in enumerate(CLASSES)},
        "pad_token_id": pad,
        "use_cache": False,
    }


class _TensorWriter:
    """Write a safetensors file whose tensors arrive one by one, in a known order.

    Args:
        path: The file.
        entries: Dtype code and shape of each tensor, in the order of writing.
    """

    def __init__(self, path: Path, entries: dict[str, tuple[str, list[int]]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, (dtype, shape) in entries.items():
            end = offset + math.prod(shape) * (4 if dtype == "F32" else 2)
            header[name] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [offset, end],
            }
            offset = end
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)  # the format aligns data to 8 bytes
        self.handle = open(path, "wb")  # noqa: SIM115
        self.handle.write(len(raw).to_bytes(8, "little") + raw)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append the next tensor's data.

        Raises:
            UserError: If a value is NaN or infinite.
        """
        if not torch.isfinite(tensor).all():
            raise UserError(f"{name}: not finite in {tensor.dtype}; merge to bfloat16")
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        self.handle.write(memoryview(flat.numpy()))

    def __enter__(self) -> "_TensorWriter":
        return self

    def __exit__(self, *_error: object) -> None:
        self.handle.close()


class _Merger:
    """Add deltas in float32, round once, and sum up the rounding errors."""

    def __init__(self, adapter: Adapter | None, dtype: torch.dtype) -> None:
        self.adapter, self.dtype = adapter, dtype
        self.max_abs = self.squared_error = self.squared_delta = 0.0

    def merge(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rounded sum of a tensor and its delta, if it has one."""
        exact = tensor.float()
        module = name.removesuffix(".weight")
        delta = None
        if self.adapter is not None and module in self.adapter.layers:
            delta = self.adapter.delta(module)
            exact = exact + delta
        rounded = exact.to(self.dtype)
        error = rounded.float() - exact
        self.max_abs = max(self.max_abs, float(error.abs().max()))
        if delta is not None:
            self.squared_error += float(error.square().sum(dtype=torch.float64))
            self.squared_delta += float(delta.square().sum(dtype=torch.float64))
        return rounded

    def cast_error(self) -> CastError:
        """Return the rounding error over all tensors so far."""
        known = self.squared_delta > 0
        ratio = math.sqrt(self.squared_error / self.squared_delta) if known else None
        return CastError(self.max_abs, ratio)


def _check_targets(adapter: Adapter, shapes: dict[str, list[int]], base: Path) -> None:
    for module, (a, b) in adapter.layers.items():
        shape = shapes.get(f"{module}.weight")
        if shape != [b.shape[0], a.shape[1]]:
            raise UserError(
                f"{adapter.name}: adapts {module} of shape {b.shape[0]}x{a.shape[1]}, "
                f"but the base {base} has {shape or 'no such module'}"
            )


def _read(files: dict[str, Path], names: list[str]) -> Iterator[torch.Tensor]:
    with ExitStack() as stack:
        handles = {
            path: stack.enter_context(safe_open(path, framework="pt"))
            for path in set(files.values())
        }
        for name in names:
            yield handles[files[name]].get_tensor(name)


def write_classifier(
    base: Path,
    target: Path,
    head: Head,
    adapter: Adapter | None = None,
    dtype: str = "bfloat16",
) -> CastError:
    """Write base + delta as a classifier that plain transformers loads.

    The folder gets ``config.json``, the tokenizer files, and one ``model.safetensors``
    in 16 bits without an LM head. The score head is float32 in the file; transformers
    casts it to the dtype that the caller loads the model in.

    Args:
        base: Folder with single or sharded safetensors weights.
        target: Folder to write to.
        head: The score head.
        adapter: Its deltas are added; its own head is ignored.
        dtype: ``bfloat16`` or ``float16``.

    Returns:
        The error of rounding to 16 bits.

    Raises:
        UserError: If the adapter does not fit the base, or a weight is not finite.
    """
    code, torch_dtype = DTYPES[dtype]
    files = weight_files(base)
    shapes = {
        name: entry["shape"]
        for path in set(files.values())
        for name, entry in tensor_header(path).items()
    }
    if adapter is not None:
        _check_targets(adapter, shapes, base)
    config = classifier_config(read_json(base / "config.json"), dtype)
    names = [n for n in sorted(files) if not (n.startswith("lm_head.") or is_head(n))]
    entries = {n: ("F32", list(weight.shape)) for n, weight in head.tensors.items()}
    entries |= {name: (code, shapes[name]) for name in names}
    merger = _Merger(adapter, torch_dtype)
    write_json(target / "config.json", config)
    copy_tokenizer(base, target)
    # The weights last: whoever finds them finds the other files too.
    with (
        atomic_path(target / "model.safetensors") as temporary,
        _TensorWriter(temporary, entries) as writer,
    ):
        for name, weight in head.tensors.items():
            writer.write(name, weight.float())
        for name, tensor in zip(names, _read(files, names), strict=True):
            writer.write(name, merger.merge(name, tensor))
    return merger.cast_error()

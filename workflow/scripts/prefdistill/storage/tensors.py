"""Read and write safetensors files of torch tensors, whole and finite."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from prefdistill.errors import UserError
from prefdistill.storage.whole_files import atomic_path, reading


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors under their names.

    Args:
        path: The file.
        tensors: Contiguous tensors of any shapes and dtypes.

    Raises:
        UserError: If a value is NaN or infinite; nothing is written then.
    """
    try:
        check_finite(tensors)
    except ValueError as error:
        raise UserError(f"{path}: not written, as {error}") from error
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def check_finite(tensors: dict[str, torch.Tensor]) -> None:
    """Check that no tensor holds NaN or infinity.

    Raises:
        ValueError: If one does; it names the first such tensor.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity")


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a file to the CPU, by name.

    Raises:
        UserError: If the file is not whole.
    """
    with reading(path, "a whole safetensors file"):
        return load_file(path)

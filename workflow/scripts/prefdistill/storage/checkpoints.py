"""Keep the state of an unfinished job: safetensors and JSON, two generations."""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prefdistill.errors import UserError
from prefdistill.storage.digests import file_digest
from prefdistill.storage.records import write_json
from prefdistill.storage.whole_files import atomic_path

logger = logging.getLogger(__name__)

N_GENERATIONS = 2


def identity_of(settings: Any, *files: Path) -> str:
    """Hash all that decides a job's result: its settings and input files."""
    return _digest([settings, *map(file_digest, files)])[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """Save and load the checkpoints of one job, in a folder of its own.

    A generation is ``<identity>-step-<n>.safetensors`` and, written after it,
    ``<identity>-step-<n>.json`` with the SHA-256 of the tensors and its own. Both
    appear by rename.

    Args:
        folder: Made when first needed, removed by ``remove``.
        identity: Fingerprint of code, settings and inputs; a checkpoint of another
            identity is left alone until ``remove``.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = Path(folder), identity

    def save(
        self, step: int, tensors: dict[str, torch.Tensor], info: dict[str, Any]
    ) -> None:
        """Add a generation and remove those before the last two.

        Raises:
            UserError: If a tensor is not finite; nothing is written then.
        """
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        for name, tensor in whole.items():
            if not torch.isfinite(tensor).all():
                raise UserError(
                    f"step {step}: {name} is not finite, so it is not saved; the "
                    "checkpoint before stays; lower learning_rate or change precision"
                )
        path = self.folder / f"{self.identity}-step-{step:09d}.safetensors"
        with atomic_path(path) as temporary:
            save_file(whole, temporary)
            digest = file_digest(temporary)
        content = {"step": step, "tensors_sha256": digest, "info": info}
        sidecar = {"content": content, "sha256": _digest(content)}
        write_json(path.with_suffix(".json"), sidecar)
        for old in self._paths(self.identity)[N_GENERATIONS:]:
            _unlink(old)

    def load(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        """Load the newest whole generation: its step, tensors (CPU) and info.

        A broken generation is skipped with a warning. All those of another identity
        are skipped with one warning.
        """
        own = self._paths(self.identity)
        foreign = [path for path in self._paths("*") if path not in own]
        if foreign:
            logger.warning(
                "checkpoint %s belongs to other code, settings or inputs; not used",
                foreign[0],
            )
        for path in own:
            try:
                sidecar = json.loads(path.with_suffix(".json").read_text())
                content = sidecar["content"]
                if sidecar["sha256"] == _digest(content) and content[
                    "tensors_sha256"
                ] == file_digest(path):
                    return content["step"], load_file(path), content["info"]
                problem = "is damaged"
            except FileNotFoundError:
                problem = "is incomplete"
            except (ValueError, KeyError, TypeError, SafetensorError):
                problem = "is damaged"
            logger.warning("checkpoint %s %s; passed over", path, problem)
        return None

    def remove(self) -> None:
        """Delete all generations, once the job's outputs are in place.

        The newest goes last: a job that is killed here resumes from it.
        """
        for path in reversed(self._paths("*")):
            _unlink(path)
        for path in self.folder.glob(".*"):  # of copies that were killed in a save
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _paths(self, identity: str) -> list[Path]:
        """List the generations' tensor files, newest first, whole or not."""
        files = self.folder.glob(f"{identity}-step-*")
        paths = {
            file.with_suffix(".safetensors")
            for file in files
            if not file.name.startswith(".")  # "*" finds unfinished files too
        }
        return sorted(paths, key=lambda path: path.stem[-9:], reverse=True)


def _unlink(path: Path) -> None:
    """Delete a generation, the file that vouches for it first."""
    for suffix in (".json", ".safetensors"):
        path.with_suffix(suffix).unlink(missing_ok=True)

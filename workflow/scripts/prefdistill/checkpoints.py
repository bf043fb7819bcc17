"""State of an unfinished job: safetensors and JSON, two generations, checked."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from prefdistill.io import atomic_path, file_digest, write_json

logger = logging.getLogger(__name__)

N_GENERATIONS = 2


def identity_of(settings: Any, *files: Path) -> str:
    """Fingerprint of all that decides a job's result: its settings and input files."""
    return _digest([settings, *map(file_digest, files)])[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of one job in a folder of its own.

    A generation is ``step-<n>.safetensors`` and, written after it, ``step-<n>.json``
    with the SHA-256 of the tensors and its own. Both appear by rename.

    Args:
        folder: Made when first needed, removed by ``remove``.
        identity: Fingerprint of code, settings and inputs; a checkpoint of another
            identity is not used.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = Path(folder), identity

    def save(
        self, step: int, tensors: dict[str, torch.Tensor], info: dict[str, Any]
    ) -> None:
        """Add a generation and remove those before the last two."""
        path = self.folder / f"step-{step:09d}.safetensors"
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        with atomic_path(path) as temporary:
            save_file(whole, temporary)
            digest = file_digest(temporary)
        content = {
            "step": step,
            "identity": self.identity,
            "tensors_sha256": digest,
            "info": info,
        }
        sidecar = {"content": content, "sha256": _digest(content)}
        write_json(path.with_suffix(".json"), sidecar)
        for old in self._steps()[N_GENERATIONS:]:
            for suffix in (".json", ".safetensors"):
                old.with_suffix(suffix).unlink(missing_ok=True)

    def load(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        """The newest whole generation: its step, tensors (CPU) and info.

        A broken or foreign generation is passed over with one warning.
        """
        for path in self._steps():
            problem = None
            try:
                sidecar = json.loads(path.with_suffix(".json").read_text())
                content = sidecar["content"]
                if sidecar["sha256"] != _digest(content):
                    problem = "is damaged"
                elif content["identity"] != self.identity:
                    problem = "belongs to other code, settings or inputs"
                elif content["tensors_sha256"] != file_digest(path):
                    problem = "is damaged"
                else:
                    return content["step"], load_file(path), content["info"]
            except FileNotFoundError:
                problem = "is incomplete"
            except (ValueError, KeyError, TypeError):
                problem = "is damaged"
            logger.warning("checkpoint %s %s; passed over", path, problem)
        return None

    def remove(self) -> None:
        """Delete all generations, once the job's outputs are in place."""
        for path in self._steps():
            for suffix in (".json", ".safetensors"):
                path.with_suffix(suffix).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _steps(self) -> list[Path]:
        """Paths of the generations' tensors, newest first, whole or not."""
        files = self.folder.glob("step-*")
        return sorted(
            {file.with_suffix(".safetensors") for file in files}, reverse=True
        )

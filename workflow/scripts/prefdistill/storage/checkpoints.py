"""Save and load the state of an unfinished job, as safetensors and JSON files."""

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

# Scoring saves this often. Training saves every ``checkpoint_steps`` steps, a setting.
SAVE_EVERY_S = 300.0
# If the newest is damaged, the one before still serves.
N_GENERATIONS = 2


def identity_of(settings: Any, *files: Path) -> str:
    """Hash everything that decides a job's result: its settings and input files.

    Args:
        settings: Values that JSON can hold.
        *files: The input files; their bytes count, not their names or times.

    Returns:
        The first 16 hex digits of a SHA-256.
    """
    return _digest([settings, *map(file_digest, files)])[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """Save and load the checkpoints of one job, in a folder of its own.

    A generation is two files: ``<identity>-step-<n>.safetensors`` and, written after
    it, ``<identity>-step-<n>.json``. The JSON file holds the SHA-256 of the tensors'
    file and of its own content. Both files appear by rename.

    Args:
        folder: Created by the first ``save``, deleted by ``remove``.
        identity: Fingerprint of code, settings and inputs. Checkpoints of another
            identity stay untouched until ``remove``.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = Path(folder), identity

    def save(
        self, step: int, tensors: dict[str, torch.Tensor], info: dict[str, Any]
    ) -> None:
        """Write a generation, and delete all but the newest two.

        Args:
            step: Number of the step that the state is from.
            tensors: The state, of any shapes and dtypes.
            info: More of the state; values that JSON can hold.

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
        """Load the newest whole generation.

        A damaged generation is skipped with a warning. Generations of another identity
        are skipped with one warning for all of them.

        Returns:
            Its step, its tensors on the CPU, and its info; None if there is none.
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
            logger.warning("checkpoint %s %s; skipped", path, problem)
        return None

    def remove(self) -> None:
        """Delete all generations, once the job's outputs are in place."""
        # The newest is deleted last: a job that is killed here resumes from it.
        for path in reversed(self._paths("*")):
            _unlink(path)
        for path in self.folder.glob(".*"):  # left by copies that were killed in a save
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _paths(self, identity: str) -> list[Path]:
        """List the generations' tensor files, newest first, damaged ones included."""
        files = self.folder.glob(f"{identity}-step-*")
        paths = {
            file.with_suffix(".safetensors")
            for file in files
            if not file.name.startswith(".")  # "*" finds unfinished files too
        }
        return sorted(paths, key=lambda path: path.stem[-9:], reverse=True)


def _unlink(path: Path) -> None:
    """Delete the two files of a generation."""
    # JSON first: a tensors' file without it counts as incomplete, not as damaged.
    for suffix in (".json", ".safetensors"):
        path.with_suffix(suffix).unlink(missing_ok=True)

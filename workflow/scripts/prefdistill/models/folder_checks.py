"""Whether a model folder's parts fit each other and this pipeline: clear refusals."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prefdistill.errors import DamagedFile, UserError
from prefdistill.models.manifests import weights_path
from prefdistill.storage.tables import read_json
from prefdistill.storage.whole_files import LONGEST_REASON


def check_vocabulary(folder: Path, tokenizer: Any) -> None:
    """Refuse a tokenizer some of whose ids the model beside it has no embedding for."""
    if not (folder / "config.json").is_file():
        return
    size = read_json(folder / "config.json", ["model_type"]).get("vocab_size")
    highest = max([len(tokenizer) - 1, *tokenizer.added_tokens_decoder])
    if size is not None and highest >= size:
        raise UserError(
            f"{folder / 'tokenizer.json'}: has token id {highest}, but config.json a "
            f"vocab_size of {size}; take the tokenizer that the model was made with"
        )


def check_class(folder: Path, config: Any, auto_class: Any) -> None:
    """Refuse an architecture that is no language model of decoder layers.

    Raises:
        UserError: If transformers has no such class, or builds it in another way than
            the layers in ``model.model.layers`` that this pipeline goes through.
    """
    task = auto_class.__name__.removeprefix("AutoModelFor")
    path = folder / "config.json"
    advice = "name a base of another architecture, such as llama, qwen2 or gemma2"
    if type(config) not in auto_class._model_mapping:
        raise UserError(
            f"{path}: transformers has no {task} class for model_type "
            f"{config.model_type}; {advice}"
        )
    model_class = auto_class._model_mapping[type(config)]
    if model_class.base_model_prefix != "model":
        raise UserError(
            f"{path}: {model_class.__name__} is not built of decoder layers; {advice}"
        )


@contextmanager
def fitting(path: Path, what: str) -> Iterator[None]:
    """Say in one line that the shapes in a file do not fit.

    Args:
        path: The file that is at fault.
        what: What its shapes should be those of.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if "mismatch" not in reason:
            raise
        said = "" if "ignore_mismatched" in reason else f" ({reason[:LONGEST_REASON]})"
        raise DamagedFile(path, f"its shapes are not those of {what}{said}") from error


def check_missing(folder: Path, missing: set[str]) -> None:
    """Refuse a model that lacks weights.

    Raises:
        DamagedFile: Naming the first of them.
    """
    if missing:
        path = weights_path(folder)
        raise DamagedFile(
            path, f"{len(missing)} weights are missing, such as {min(missing)}"
        )


def check_weights(folder: Path, model: torch.nn.Module) -> None:
    """Check that a loaded model's weights are finite.

    Raises:
        DamagedFile: Naming the first that is not.
    """
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or not weight.numel():
            continue
        # The extremes carry NaN and infinity on, without a copy of the weight.
        extremes = torch.stack(torch.aminmax(weight.detach()))
        if not torch.isfinite(extremes).all():
            path = weights_path(folder)
            raise DamagedFile(path, f"{name} holds NaN or infinity")

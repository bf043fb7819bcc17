"""Check that the files of a model folder fit each other and this workflow."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prefdistill.errors import DamagedFile, UserError, one_line
from prefdistill.models.manifests import weights_path
from prefdistill.storage.records import read_json
from prefdistill.storage.whole_files import LONGEST_REASON


def check_vocabulary(folder: Path, tokenizer: Any) -> None:
    """Check that a tokenizer has no id beyond the vocabulary of the model beside it.

    Args:
        folder: Holds the tokenizer, and maybe a model.
        tokenizer: The folder's tokenizer, as transformers loaded it.

    Raises:
        UserError: If the model has no embedding for an id; it names the highest one.
    """
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
    """Check that a model is a language model of decoder layers.

    Args:
        folder: The model folder, for the message.
        config: The model's transformers configuration.
        auto_class: The transformers class that will load it.

    Raises:
        UserError: If transformers has no class for this task, or does not keep the
            layers in ``model.model.layers``, where this pipeline looks for them.
    """
    task = auto_class.__name__.removeprefix("AutoModelFor")
    path = folder / "config.json"
    advice = "name a base of another architecture; docs/models.md lists some"
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
    """Report an error about shapes, or about numbers that are none, in one line.

    Args:
        path: The file whose shapes do not fit.
        what: What they should fit, for the message.

    Raises:
        DamagedFile: If torch or transformers raises such an error in the body.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = one_line(error)
        if type(error) is RuntimeError and "mismatch" not in reason:
            raise
        said = "" if "ignore_mismatched" in reason else f" ({reason[:LONGEST_REASON]})"
        raise DamagedFile(path, f"its shapes are not those of {what}{said}") from error


def check_missing(folder: Path, missing: set[str]) -> None:
    """Check that a model lacks no weights.

    Args:
        folder: The model folder, for the message.
        missing: Names of the weights that it lacks.

    Raises:
        DamagedFile: If it lacks any; it names the first.
    """
    if missing:
        path = weights_path(folder)
        raise DamagedFile(
            path, f"{len(missing)} weights are missing, such as {min(missing)}"
        )


def check_weights(folder: Path, model: torch.nn.Module) -> None:
    """Check that a loaded model's weights are finite.

    Raises:
        DamagedFile: If one holds NaN or infinity; it names the first.
    """
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or not weight.numel():
            continue
        # Minimum and maximum propagate NaN and infinity without a copy of the weight.
        extremes = torch.stack(torch.aminmax(weight.detach()))
        if not torch.isfinite(extremes).all():
            path = weights_path(folder)
            raise DamagedFile(path, f"{name} holds NaN or infinity")

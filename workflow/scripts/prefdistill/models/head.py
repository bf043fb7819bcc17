"""Draw, install, find and average the score head of three classes.

Only this module knows which weights a head has, and which class loads it. The module
that holds them is ``score`` in every classifier of transformers.
"""

from dataclasses import dataclass
from typing import Any

import torch

from prefdistill.classes import CLASSES

HEAD_STD = 0.02
HEAD_NAMES = ("score.weight",)  # the head's weights, as a checkpoint names them


@dataclass(frozen=True)
class Head:
    """The weights of a score head.

    Attributes:
        tensors: ``{name: weight}`` for each of ``HEAD_NAMES``; the weight is
            ``(3, hidden)``.
    """

    tensors: dict[str, torch.Tensor]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of each weight."""
        return [tuple(tensor.shape) for tensor in self.tensors.values()]


def classifier_class() -> Any:
    """Return transformers' class that loads a classifier with this head."""
    # Imported here, so that a job can first hide packages that this would import.
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification


def is_head(name: str) -> bool:
    """Return whether a checkpoint's tensor belongs to a score head of any kind."""
    return name.startswith("score.")


def seeded_head(hidden_size: int, seed: int) -> Head:
    """Draw the weights of a score head, float32.

    Equal seeds give equal weights, so all folds start from the same head.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(CLASSES), hidden_size, generator=generator)
    return Head({"score.weight": HEAD_STD * weight})


def prepare_head(model: torch.nn.Module, seed: int | None) -> None:
    """Name a classifier's classes, and make its score head float32, in place.

    Args:
        model: A sequence classifier of three classes.
        seed: Seed of fresh head weights; None keeps the weights that were loaded.
    """
    model.config.id2label = dict(enumerate(CLASSES))
    model.config.label2id = {name: label for label, name in enumerate(CLASSES)}
    # The loss needs the logits in float32, whatever the base computes in.
    model.score.to(torch.float32)
    if seed is not None:
        fresh = seeded_head(model.config.hidden_size, seed)
        for name, weight in fresh.tensors.items():
            model.get_parameter(name).data.copy_(weight)


def head_of(model: torch.nn.Module) -> Head:
    """Return the score head of a classifier, without a copy."""
    return Head({name: model.get_parameter(name) for name in HEAD_NAMES})


def take_head(tensors: dict[str, torch.Tensor], prefix: str) -> Head:
    """Remove the score head from a file's tensors, and return it.

    Args:
        tensors: Tensors by name.
        prefix: What precedes the names of the head's weights.

    Raises:
        ValueError: If a weight is missing or is not a matrix.
    """
    head = {name: tensors.pop(prefix + name, None) for name in HEAD_NAMES}
    for name, weight in head.items():
        if weight is None or weight.ndim != 2:
            raise ValueError(f"no score head ({prefix + name})")
    return Head(head)


def mean_head(heads: list[Head], weights: list[float]) -> Head:
    """Compute the weighted mean of score heads of equal shapes.

    Args:
        heads: The heads.
        weights: One per head.
    """
    return Head(
        {
            name: sum(
                weight * head.tensors[name]
                for head, weight in zip(heads, weights, strict=True)
            )
            for name in HEAD_NAMES
        }
    )

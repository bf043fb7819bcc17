"""Give a classifier its score head of three classes."""

import torch

from prefdistill.classes import CLASSES

HEAD_STD = 0.02


def seeded_head(hidden_size: int, seed: int) -> torch.Tensor:
    """Draw the weights of a score head, ``(3, hidden_size)`` float32.

    Equal seeds give equal weights, so all folds start from the same head.
    """
    generator = torch.Generator().manual_seed(seed)
    return HEAD_STD * torch.randn(len(CLASSES), hidden_size, generator=generator)


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
        model.score.weight.data.copy_(seeded_head(model.config.hidden_size, seed))

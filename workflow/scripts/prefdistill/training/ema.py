"""Keep a running mean of the weights in training.

After every update, phi <- tau phi + (1 - tau) theta, with phi = theta at the start.
This is the baseline of RLP (arXiv 2510.01265), and Polyak averaging with exponential
weights.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

PREFIX = "average."


class WeightAverage:
    """The exponential moving average of a model's trainable weights.

    Args:
        weights: The weights by name, as the optimiser updates them in place.
        decay: tau, at least 0 and less than 1. The mean covers about the last
            1 / (1 - tau) updates.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], decay: float) -> None:
        self.weights, self.decay = weights, decay
        self.means = {name: weight.detach().clone() for name, weight in weights.items()}

    def update(self) -> None:
        """Move the mean towards the weights; call this after each optimiser step."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                self.means[name].lerp_(weight, 1 - self.decay)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the means under the names that they have in a checkpoint."""
        return {f"{PREFIX}{name}": mean for name, mean in self.means.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the means from a checkpoint's tensors."""
        for name, mean in self.means.items():
            mean.copy_(tensors[f"{PREFIX}{name}"])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block."""
        kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(self.means[name])
            try:
                yield
            finally:
                for name, weight in self.weights.items():
                    weight.copy_(kept[name])

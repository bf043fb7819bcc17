"""Plan the steps of a training: the pairs that each takes, and its learning rate."""

import math
from dataclasses import dataclass

import numpy as np

from prefdistill.settings import OptimisationSettings


@dataclass(frozen=True)
class Plan:
    """The number of steps, and the pairs and learning rate of each.

    Attributes:
        n_pairs: Pairs to train on.
        pairs_per_step: Pairs in each step.
        n_steps: Number of steps.
        n_warmup: Steps in which the learning rate rises.
        seed: Of the order of the pairs.
    """

    n_pairs: int
    pairs_per_step: int
    n_steps: int
    n_warmup: int
    seed: int

    @classmethod
    def from_settings(
        cls, settings: OptimisationSettings, n_pairs: int, epochs: float
    ) -> "Plan":
        """Round the epochs to whole steps, at least one and at most ``max_steps``.

        Args:
            settings: The ``training`` or ``post_pretrain`` settings.
            n_pairs: Pairs to train on.
            epochs: Passes over the pairs; may be a fraction.
        """
        pairs_per_step = min(settings.pairs_per_step, n_pairs)
        n_steps = max(1, round(epochs * n_pairs / pairs_per_step))
        if settings.max_steps is not None:
            n_steps = min(n_steps, settings.max_steps)
        n_warmup = settings.warmup_steps
        if n_warmup is None:
            n_warmup = round(settings.warmup_fraction * n_steps)
        return cls(n_pairs, pairs_per_step, n_steps, n_warmup, settings.seed)

    def pairs(self, step: int) -> np.ndarray:
        """Return the pair indices of a step, ``(pairs_per_step,)`` int64.

        Steps are cut from an endless sequence of shuffled epochs. So all steps have the
        same size, and a pair is seen again only after all others.
        """
        first = step * self.pairs_per_step
        places = np.arange(first, first + self.pairs_per_step)
        epochs, within = np.divmod(places, self.n_pairs)
        orders = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(self.n_pairs)
            for epoch in np.unique(epochs).tolist()
        }
        places = zip(epochs.tolist(), within.tolist(), strict=True)
        return np.array([orders[epoch][place] for epoch, place in places])

    def learning_rate(self, step: int, settings: OptimisationSettings) -> float:
        """Return a step's learning rate: linear warm-up, then the schedule's decay."""
        peak = settings.learning_rate
        if step < self.n_warmup:
            return peak * (step + 1) / self.n_warmup
        if settings.schedule == "constant":
            return peak
        done = (step - self.n_warmup) / max(1, self.n_steps - self.n_warmup)
        left = (
            (1 + math.cos(math.pi * done)) / 2
            if settings.schedule == "cosine"
            else 1 - done
        )
        floor = settings.min_lr_ratio
        return peak * (floor + (1 - floor) * left)

"""Estimate how many pairs and tokens jobs handle, before the data are read.

Numbers of pairs follow from the sizes of files and the simulator's settings. Imported
by the Snakefile, so it stays light.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prefdistill.settings import (
    SIMULATED_FOLDER,
    DataSettings,
    FoldSettings,
    HubData,
    InferenceSettings,
    PostPretrainSettings,
    SimulationSettings,
    TrainingSettings,
)

# A pair of the LMSYS competition: its train.csv has 184 MB for 57,477 pairs.
BYTES_PER_PAIR = 3_200
TOKENS_PER_PAIR = 800
# Text in parquet, .gz and .zst takes about a third.
COMPRESSION = 3
# Pairs of a source whose size is not known, such as a Hub data set.
UNKNOWN_PAIRS = 60_000


@dataclass(frozen=True)
class Pairs:
    """Hold estimated numbers of pairs.

    Attributes:
        train: On the train side of a fold.
        dev: Of a fold.
        held_out: In select and test.
        post_pretrain: For post-pretraining.
        unlabelled: To predict for the submission.
        pseudo: To learn from without a verdict.
    """

    train: int
    dev: int
    held_out: int
    post_pretrain: int
    unlabelled: int
    pseudo: int = 0

    @property
    def all(self) -> int:
        """Count all pairs that the data stages read."""
        own = self.train + self.dev + self.held_out
        return own + self.post_pretrain + self.unlabelled + self.pseudo


def count_pairs(
    data: DataSettings, folds: FoldSettings, simulation: SimulationSettings
) -> Pairs:
    """Estimate the pairs of a configuration from its settings and file sizes."""

    def total(entries: Iterable[HubData | str]) -> int:
        return sum(_source_pairs(entry, simulation) for entry in entries)

    n_own = total(data.train)
    n_held_out = round(n_own * (folds.select_fraction + folds.test_fraction))
    n_dev = (n_own - n_held_out) // folds.n
    return Pairs(
        train=n_own - n_held_out - n_dev + total(data.extra),
        dev=n_dev,
        held_out=n_held_out,
        post_pretrain=total(data.ultra),
        unlabelled=total(data.entries["test"]),
        pseudo=total(data.unlabelled),
    )


def _source_pairs(entry: HubData | str, simulation: SimulationSettings) -> int:
    if isinstance(entry, HubData):
        return UNKNOWN_PAIRS
    if entry.startswith(SIMULATED_FOLDER):
        return getattr(simulation, f"n_{Path(entry).stem}", UNKNOWN_PAIRS)
    try:
        n_bytes = os.stat(entry).st_size
    except OSError:
        return UNKNOWN_PAIRS
    plain = entry.lower().endswith((".csv", ".jsonl"))
    return math.ceil(n_bytes * (1 if plain else COMPRESSION) / BYTES_PER_PAIR)


def trained_pairs(
    settings: TrainingSettings | PostPretrainSettings, n_pairs: int
) -> float:
    """Count the pairs that a training shows; each epoch shows them again.

    Args:
        settings: Of the training.
        n_pairs: Pairs that there are.
    """
    if isinstance(settings, TrainingSettings):
        shown = min(settings.n_rows or n_pairs, n_pairs) * settings.epochs
    elif settings.objective == "none":
        return 0.0
    else:
        shown = n_pairs * settings.fraction_of_epoch
    if settings.max_steps is None:
        return shown
    return min(shown, settings.max_steps * settings.pairs_per_step)


def scored_pairs(settings: InferenceSettings, pairs: Pairs) -> int:
    """Count the pairs of a fold that a teacher scores."""
    start, end = settings.rows or (0, settings.n_rows or pairs.train)
    n_train = min(end, pairs.train) - min(start, pairs.train)
    return n_train + pairs.dev + pairs.held_out


def count_tokens(n_pairs: float, max_length: int, n_views: int = 2) -> float:
    """Count the tokens of pairs, each scored or shown in ``n_views`` orders."""
    return n_pairs * n_views * min(TOKENS_PER_PAIR, max_length)

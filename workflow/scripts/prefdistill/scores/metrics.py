"""Score three-class predictions, with intervals by a bootstrap over prompts.

Classes are (A, B, tie) throughout; losses are in nats.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdistill.errors import UserError
from prefdistill.storage.joining import find_rows
from prefdistill.storage.tables import TARGET_COLUMNS, read_table, table_targets

LEAST_PROBABILITY = 1e-15
# Group draws that are held in memory at once: 16 MB of int64.
_DRAWS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Labels:
    """Labelled rows without their texts, found by id.

    Attributes:
        ids: ``(n,)`` unicode row ids, unique.
        split: ``(n,)`` unicode.
        label: ``(n,)`` int64 class index: 0 A, 1 B, 2 tie.
        group: ``(n,)`` unicode, the normalised prompt's key.
        source: ``(n,)`` unicode.
    """

    ids: np.ndarray
    split: np.ndarray
    label: np.ndarray
    group: np.ndarray
    source: np.ndarray

    def rows(self, rows: np.ndarray) -> "Labels":
        """Select the rows of a boolean mask or an index array."""
        return Labels(
            self.ids[rows],
            self.split[rows],
            self.label[rows],
            self.group[rows],
            self.source[rows],
        )

    def of(self, ids: np.ndarray) -> "Labels":
        """Select the rows of the given ids, in their order.

        Raises:
            UserError: If an id has no label.
        """
        rows = find_rows(self.ids, ids)
        missing = ids[rows < 0]
        if len(missing):
            raise UserError(f"{len(missing)} ids have no label, such as {missing[0]}")
        return self.rows(rows)

    def check_splits(self, ids: np.ndarray, split: np.ndarray) -> None:
        """Check that logits are of these rows' fold: splits differ between folds.

        Args:
            ids: ``(n,)`` unicode ids of rows with logits.
            split: ``(n,)`` unicode split of each, as it was scored.

        Raises:
            UserError: If a row was scored in another split.
        """
        rows = find_rows(self.ids, ids)
        known = rows >= 0
        wrong = np.flatnonzero(self.split[rows[known]] != split[known])
        if len(wrong):
            name, scored = ids[known][wrong[0]], split[known][wrong[0]]
            raise UserError(
                f"row id {name} was scored as {scored}, but is "
                f"{self.split[rows[known]][wrong[0]]} in the fold file; the logits are "
                "of another fold"
            )


def labels_of(table: pa.Table) -> Labels:
    """Take the labelled rows of a table in the schema of fold files.

    Raises:
        UserError: If a labelled row is not one-hot.
    """
    for name in TARGET_COLUMNS:
        table = table.filter(pc.is_valid(table.column(name)))
    return Labels(
        ids=_unicode(table, "id"),
        split=_unicode(table, "split"),
        label=table_targets(table).argmax(axis=1).astype(np.int64),
        group=_unicode(table, "group"),
        source=_unicode(table, "source"),
    )


def read_labels(path: Path) -> Labels:
    """Read the labelled rows of a fold file, without its texts.

    Raises:
        UserError: If the file is not such a parquet file.
    """
    columns = ["id", "source", "split", "group", *TARGET_COLUMNS]
    return labels_of(read_table(path, columns=columns))


def _unicode(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table.column(name).to_pylist(), dtype=np.str_)


def with_unlabelled(labels: Labels, table: pa.Table) -> Labels:
    """Append a table's unlabelled rows, with label 0 in place of a label."""
    columns = [_unicode(table, name) for name in ("id", "split", "group", "source")]
    ids, split, group, source = columns
    return Labels(
        ids=np.concatenate([labels.ids, ids]),
        split=np.concatenate([labels.split, split]),
        label=np.concatenate([labels.label, np.zeros(len(ids), np.int64)]),
        group=np.concatenate([labels.group, group]),
        source=np.concatenate([labels.source, source]),
    )


def null_rows(labels: Labels) -> np.ndarray:
    """Mark the train rows that baselines are fitted on, ``(n,)`` bool.

    They are those of the scored sources (of dev, select and test), or all if a scored
    source has no train rows.
    """
    # An extra source has other class shares and answers, which weakens a baseline: on
    # real pairs the trees' log loss is 0.870 without the extra source, 0.942 with it.
    train = labels.split == "train"
    scored = np.isin(labels.source, np.unique(labels.source[~train]))
    return train & scored if (train & scored).any() else train


def class_prior(labels: Labels) -> np.ndarray:
    """Compute class shares of the train side, ``(3,)`` float64, add-one smoothed."""
    counts = np.bincount(labels.label[null_rows(labels)], minlength=3) + 1.0
    return counts / counts.sum()


def row_log_loss(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute each row's log loss, ``(n,)`` nats, clipped at p = 1e-15."""
    own = np.take_along_axis(probs, labels[:, None], axis=1)[:, 0]
    return -np.log(np.clip(own, LEAST_PROBABILITY, 1.0))


def log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    """Compute the mean log loss of ``(n, 3)`` probabilities, in nats."""
    return float(row_log_loss(probs, labels).mean())


def accuracy(probs: np.ndarray, labels: np.ndarray) -> float:
    """Compute the share of rows whose most probable class is the label."""
    return float((probs.argmax(axis=1) == labels).mean())


def brier(probs: np.ndarray, labels: np.ndarray) -> float:
    """Compute the mean squared distance to the one-hot label, from 0 to 2."""
    return float(((probs - np.eye(3)[labels]) ** 2).sum(axis=1).mean())


def reliability(
    probs: np.ndarray, labels: np.ndarray, n_bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute mean confidence, accuracy and row counts in equal bins of confidence.

    Returns:
        Three ``(n_bins,)`` arrays; the first two are 0 where a bin is empty.
    """
    confidence = probs.max(axis=1)
    # A confidence of exactly 1 belongs to the last bin.
    bins = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    n_rows = np.bincount(bins, minlength=n_bins)
    correct = (probs.argmax(axis=1) == labels).astype(np.float64)
    divisor = np.maximum(n_rows, 1)
    return (
        np.bincount(bins, confidence, n_bins) / divisor,
        np.bincount(bins, correct, n_bins) / divisor,
        n_rows,
    )


def ece(probs: np.ndarray, labels: np.ndarray, n_bins: int = 15) -> float:
    """Compute the expected calibration error of the top class (Guo et al. 2017)."""
    confidence, correct, n_rows = reliability(probs, labels, n_bins)
    return float((n_rows * np.abs(confidence - correct)).sum() / len(labels))


def swap_agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the share of rows whose most probable class is equal in both views.

    Args:
        first: ``(n, 3)`` probabilities of one view, classes (A, B, tie).
        second: ``(n, 3)`` of the other view, swapped back to (A, B, tie).
    """
    return float((first.argmax(axis=1) == second.argmax(axis=1)).mean())


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def _group_counts(
    n_groups: int, n_bootstrap: int, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``(first draw, counts)``; counts say how often a draw takes each group."""
    rng = np.random.default_rng(seed)
    n_at_once = max(1, _DRAWS_AT_ONCE // n_groups)
    for start in range(0, n_bootstrap, n_at_once):
        n_draws = min(n_at_once, n_bootstrap - start)
        drawn = rng.integers(n_groups, size=(n_draws, n_groups))
        drawn += np.arange(n_draws)[:, None] * n_groups
        counts = np.bincount(drawn.ravel(), minlength=n_draws * n_groups)
        yield start, counts.reshape(n_draws, n_groups).astype(np.float64)


def group_bootstrap(
    values: np.ndarray, groups: np.ndarray, *, n_bootstrap: int = 1000, seed: int = 0
) -> Interval:
    """Compute the mean of row values and its 95 % bootstrap interval over groups.

    Rows that share a prompt are not independent, so a draw takes whole groups: as many
    as there are, with replacement. For a paired comparison pass row-wise differences.

    Args:
        values: ``(n,)`` floats.
        groups: ``(n,)`` group of each row.
        n_bootstrap: Number of draws.
        seed: Seed of the draws.

    Raises:
        ValueError: If there are no rows, or the shapes differ.
    """
    if not len(values) or values.shape != groups.shape:
        raise ValueError(f"cannot pair values {values.shape}, groups {groups.shape}")
    _, group = np.unique(groups, return_inverse=True)
    # Sums within groups make a draw two products, without a loop over rows.
    n_rows = np.bincount(group).astype(np.float64)
    sums = np.bincount(group, values)
    means = np.empty(n_bootstrap)
    for start, counts in _group_counts(len(n_rows), n_bootstrap, seed):
        means[start : start + len(counts)] = (counts @ sums) / (counts @ n_rows)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))

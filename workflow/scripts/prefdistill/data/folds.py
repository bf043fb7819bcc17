"""Split rows into folds and held-out parts, stratified by label, grouped by prompt.

Every row of the train source falls into one bin: ``test``, ``select``, or the dev side
of one fold. Rows of one normalised prompt share a bin, so no model is scored on a
prompt that it was trained on. Extra rows are only trained on, and ultra rows only serve
post-pretraining.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefdistill.classes import VERDICTS
from prefdistill.data.pairs import BATCH_ROWS, open_parquet_writer
from prefdistill.errors import UserError
from prefdistill.settings import FoldSettings
from prefdistill.storage.tables import FOLD_SCHEMA, TARGET_COLUMNS

# Bins: test, select, then the dev side of each fold.
TEST, SELECT, FIRST_FOLD = 0, 1, 2
SPLITS = ("train", "dev", "select", "test")


def _deal_groups(
    counts: np.ndarray, wanted: np.ndarray, filled: np.ndarray
) -> np.ndarray:
    """Assign groups, one after the other, to the bin whose cost each raises least.

    The cost of a bin is the squared difference between rows held and rows wanted,
    divided by the rows wanted, summed over classes.

    Args:
        counts: ``(n_groups, n_classes)`` number of rows of each class in each group.
        wanted: ``(n_bins, n_classes)`` rows that each bin should get.
        filled: ``(n_bins, n_classes)`` rows that each bin holds; updated in place.

    Returns:
        ``(n_groups,)`` int64 bin indices.
    """
    bins = np.empty(len(counts), np.int64)
    weight = 1 / np.maximum(wanted, 1e-9)
    for row, count in enumerate(counts):
        # (filled + count - wanted)^2 - (filled - wanted)^2, multiplied out.
        cost = (count * (2 * (filled - wanted) + count) * weight).sum(axis=1)
        bins[row] = cost.argmin()
        filled[bins[row]] += count
    return bins


def _split_into_quotas(n_rows: int, missing: np.ndarray) -> np.ndarray:
    """Split ``n_rows`` over bins in proportion to ``missing``, in whole rows.

    Rows that rounding leaves over go to the bins with the largest remainders.
    """
    missing = np.maximum(missing, 0)
    if not missing.sum():
        missing = np.ones(len(missing))
    exact = n_rows * missing / missing.sum()
    quotas = np.floor(exact).astype(np.int64)
    largest_rest = np.argsort(quotas - exact, kind="stable")
    quotas[largest_rest[: n_rows - quotas.sum()]] += 1
    return quotas


def assign_groups(
    labels: np.ndarray, groups: np.ndarray, shares: Sequence[float], seed: int
) -> np.ndarray:
    """Assign rows to bins of given shares, keeping groups together and classes even.

    Groups of several rows are assigned first, the largest before the others, each to
    the bin that lacks its classes most. Groups of one row then fill the gaps, class by
    class. The work grows as n log n. The result does not depend on the order of the
    rows.

    Args:
        labels: ``(n,)`` integer class of each row, from 0.
        groups: ``(n,)`` group of each row, of any sortable type.
        shares: Share of the rows that each bin should get; they sum to 1.
        seed: Seed of the shuffle that orders groups of equal size.

    Returns:
        ``(n,)`` int64 bin of each row; rows of a group share it.
    """
    names, group_of_row = np.unique(groups, return_inverse=True)
    n_groups, n_classes = len(names), int(labels.max(initial=0)) + 1
    counts = np.bincount(
        group_of_row * n_classes + labels, minlength=n_groups * n_classes
    ).reshape(n_groups, n_classes)
    sizes = counts.sum(axis=1)
    wanted = np.outer(shares, counts.sum(axis=0))
    filled = np.zeros(wanted.shape)

    # A stable sort after a shuffle: by size, and at random among equals.
    rng = np.random.default_rng(seed)
    order = rng.permutation(n_groups)
    order = order[np.argsort(-sizes[order], kind="stable")]
    n_several = int(np.count_nonzero(sizes > 1))
    bins = np.empty(n_groups, np.int64)
    several, single = order[:n_several], order[n_several:]
    bins[several] = _deal_groups(counts[several], wanted, filled)
    for label in range(n_classes):
        rows = single[counts[single, label] == 1]
        quotas = _split_into_quotas(len(rows), wanted[:, label] - filled[:, label])
        bins[rows] = np.repeat(np.arange(len(shares)), quotas)
    return bins[group_of_row]


@dataclass(frozen=True)
class Plan:
    """Say which file and split each of the ``n`` rows of the clean table goes to.

    Attributes:
        splits: ``(n_folds, n)`` int8 index into ``SPLITS`` of each row in each fold's
            file; -1 where the row is left out.
        post_pretrain: ``(n,)`` bool, rows of the post-pretraining file.
        unlabelled: ``(n,)`` bool, rows of the test file, which a submission scores.
        pseudo: ``(n,)`` bool, unlabelled rows that students only learn from.
        report: Number of rows left out, by reason, and of rows whose prompt also stands
            in the test file.
    """

    splits: np.ndarray
    post_pretrain: np.ndarray
    unlabelled: np.ndarray
    pseudo: np.ndarray
    report: dict[str, Any]


def bin_shares(settings: FoldSettings) -> list[float]:
    """List the shares of the bins: test, select, and each fold's dev side."""
    test, select = settings.test_fraction, settings.select_fraction
    return [test, select] + [(1 - test - select) / settings.n] * settings.n


def assign_bins(
    labels: np.ndarray, groups: np.ndarray, settings: FoldSettings
) -> np.ndarray:
    """Assign each train row to a bin: test, select, or a fold's dev side.

    With ``test_part``, the rows are first cut into parts that do not depend on which
    part is the test split. One run per part then tests every row exactly once.

    Args:
        labels: ``(n,)`` integer class.
        groups: ``(n,)`` prompt group.
        settings: The ``folds`` section.

    Returns:
        ``(n,)`` int64 bins.
    """
    shares, seed = bin_shares(settings), settings.seed
    if settings.test_part is None:
        return assign_groups(labels, groups, shares, seed)
    # Cross-validation: the test fraction is one part of several equal ones.
    n_parts = round(1 / shares[TEST])
    parts = assign_groups(labels, groups, [1 / n_parts] * n_parts, seed)
    rest = parts != settings.test_part
    bins = np.full(len(labels), TEST)
    left = np.array(shares[SELECT:]) / sum(shares[SELECT:])
    bins[rest] = SELECT + assign_groups(labels[rest], groups[rest], left, seed)
    return bins


def _count(rows: np.ndarray) -> int:
    return int(np.count_nonzero(rows))


def plan_folds(
    source: np.ndarray, labels: np.ndarray, groups: np.ndarray, settings: FoldSettings
) -> Plan:
    """Decide the split of every row in every fold.

    Args:
        source: ``(n,)`` unicode: train, extra, ultra, test or unlabelled.
        labels: ``(n,)`` integer class; any value for an unlabelled row.
        groups: ``(n,)`` prompt group.
        settings: The ``folds`` section.

    Raises:
        UserError: If the train rows have too few prompts, a split would be empty, or a
            dev side would lack a class.
    """
    is_train, is_test = source == "train", source == "test"
    bins = _assign_train_bins(is_train, labels, groups, settings)
    names, group_of_row = np.unique(groups, return_inverse=True)
    bin_of_group = np.full(len(names), -1)
    bin_of_group[group_of_row[is_train]] = bins[is_train]
    prompt_bin = bin_of_group[group_of_row]
    in_test_file = np.zeros(len(names), bool)
    in_test_file[group_of_row[is_test]] = True
    unlabelled_prompt = in_test_file[group_of_row]

    splits, left_out = _split_folds(source, bins, prompt_bin, settings.n)
    # A prompt of a train row is scored in some fold, and the base of every fold is the
    # same post-pretrained model: so ultra rows with such a prompt serve no fold.
    is_ultra = source == "ultra"
    trained_prompt = is_ultra & (prompt_bin >= 0)
    shared = is_ultra & unlabelled_prompt & ~trained_prompt
    report = {
        "left_out_of_folds": left_out,
        "left_out_of_post_pretrain": {
            "ultra_prompt_in_train_source": _count(trained_prompt),
            "ultra_prompt_in_unlabelled": _count(shared),
        },
        "prompt_shared_with_unlabelled": {
            name: _count((source == name) & unlabelled_prompt)
            for name in ("train", "extra")
        },
    }
    post_pretrain = is_ultra & ~trained_prompt & ~shared
    return Plan(splits, post_pretrain, is_test, source == "unlabelled", report)


def _assign_train_bins(
    is_train: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    settings: FoldSettings,
) -> np.ndarray:
    """Assign train rows to checked bins: ``(n,)`` int64, -1 for all other rows.

    Raises:
        UserError: See ``plan_folds``.
    """
    n_groups, n_bins = len(np.unique(groups[is_train])), settings.n + FIRST_FOLD
    if n_groups < n_bins:
        raise UserError(
            f"folds.n: {settings.n} folds with select and test need {n_bins} "
            f"different prompts, the train rows have {n_groups}; lower folds.n or add "
            "data"
        )
    bins = np.full(len(is_train), -1)
    bins[is_train] = assign_bins(labels[is_train], groups[is_train], settings)
    check_bins(bins[is_train], labels[is_train], settings.n)
    return bins


def _split_folds(
    source: np.ndarray, bins: np.ndarray, prompt_bin: np.ndarray, n_folds: int
) -> tuple[np.ndarray, dict[str, dict[str, int]]]:
    """Split train and extra rows in every fold.

    Args:
        source: ``(n,)`` unicode.
        bins: ``(n,)`` bin of each train row, -1 for other rows.
        prompt_bin: ``(n,)`` bin of the train rows that share the row's prompt, or -1.
        n_folds: Number of folds.

    Returns:
        ``Plan.splits``, and for each fold the number of extra rows left out because
        their prompt is held out there.
    """
    is_train, is_extra = source == "train", source == "extra"
    splits = np.full((n_folds, len(source)), -1, np.int8)
    left_out = {}
    for fold in range(n_folds):
        held_out = {"dev": FIRST_FOLD + fold, "select": SELECT, "test": TEST}
        splits[fold, is_train | is_extra] = SPLITS.index("train")
        for split, number in held_out.items():
            splits[fold, is_train & (bins == number)] = SPLITS.index(split)
            splits[fold, is_extra & (prompt_bin == number)] = -1
        left_out[str(fold)] = {
            f"extra_prompt_in_{split}": _count(is_extra & (prompt_bin == number))
            for split, number in held_out.items()
        }
    return splits, left_out


def check_bins(bins: np.ndarray, labels: np.ndarray, n_folds: int) -> None:
    """Refuse bins that are too small to score or calibrate on.

    Raises:
        UserError: If select, test or a dev side is empty, or a dev side lacks a class.
    """
    counts = np.zeros((n_folds + FIRST_FOLD, len(VERDICTS)), np.int64)
    np.add.at(counts, (bins, labels), 1)
    for number, row in enumerate(counts):
        fold = number - FIRST_FOLD
        name = {TEST: "test", SELECT: "select"}.get(number, f"dev of fold {fold}")
        setting = "folds.n" if fold >= 0 else f"folds.{name}_fraction"
        change = f"lower {setting}" if fold >= 0 else f"raise {setting}"
        if not row.sum():
            raise UserError(f"{setting}: {name} gets no rows; {change} or add data")
        if fold >= 0 and not row.all():
            missing = VERDICTS[int(np.argmin(row))].lower()
            raise UserError(
                f"{setting}: {name} has {row.sum()} rows and none of class {missing}; "
                f"{change} or add data"
            )


def read_keys(
    clean: pq.ParquetFile,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read what the splits are planned from.

    Returns:
        ``(n,)`` each: sources (unicode), labels (int64; 0 without a label) and groups
        (bytes).
    """
    keys = clean.read(columns=["source", "group", *TARGET_COLUMNS])
    source = np.array(keys.column("source").to_pylist())
    # Group names are 16 ASCII digits: bytes take a quarter of what unicode takes.
    groups = np.array(keys.column("group").to_pylist(), dtype="S16")
    targets = [keys.column(name).fill_null(0).to_numpy() for name in TARGET_COLUMNS]
    return source, np.argmax(targets, axis=0), groups


def describe_split(source: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Count the rows of one split by source, and compute its class shares."""
    shares = np.bincount(labels, minlength=len(VERDICTS)) / max(len(labels), 1)
    sources, n_rows = np.unique(source, return_counts=True)
    return {
        "n": len(labels),
        "n_by_source": dict(zip(sources.tolist(), n_rows.tolist(), strict=True)),
        "class_shares": {
            name.lower(): round(float(share), 4)
            for name, share in zip(VERDICTS, shares, strict=True)
        },
    }


def describe_plan(plan: Plan, source: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Describe every file and split for ``folds.json``: rows and class shares."""
    folds = {
        str(fold): {
            name: describe_split(source[splits == code], labels[splits == code])
            for code, name in enumerate(SPLITS)
        }
        for fold, splits in enumerate(plan.splits)
    }
    rows = plan.post_pretrain
    return {
        "folds": folds,
        "post_pretrain": describe_split(source[rows], labels[rows]),
        "n_unlabelled": _count(plan.unlabelled),
        "n_pseudo": _count(plan.pseudo),
        **plan.report,
    }


def write_splits(pairs: pq.ParquetFile, files: dict[Path, np.ndarray]) -> None:
    """Write files of ``FOLD_SCHEMA`` in one pass, with rows in the table's order.

    Args:
        pairs: The clean table of ``n`` rows.
        files: For each path, the ``(n,)`` unicode split of each row; empty where the
            row is left out.
    """
    with ExitStack() as stack:
        writers = {
            path: stack.enter_context(open_parquet_writer(path, FOLD_SCHEMA))
            for path in files
        }
        start = 0
        for batch in pairs.iter_batches(BATCH_ROWS):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            for path, splits in files.items():
                split = splits[start : start + len(batch)]
                columns["split"] = pa.array(split.tolist(), pa.string())
                chosen = pa.record_batch(
                    [columns[name] for name in FOLD_SCHEMA.names], schema=FOLD_SCHEMA
                ).filter(pa.array(split != ""))
                if len(chosen):  # an empty batch would still cost a row group
                    writers[path].write_batch(chosen)
            start += len(batch)

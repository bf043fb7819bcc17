"""Choose the rows that may train or score a model, and write them with clean texts.

Cleaning reads the table twice, so memory stays bounded. The first pass reduces each
row to a few numbers (``RowKeys``), from which the rows are chosen. The second pass
writes the chosen rows.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdistill.data.pairs import (
    BATCH_ROWS,
    SOURCES,
    TEXT_COLUMNS,
    UNLABELLED,
    open_parquet_writer,
)
from prefdistill.data.texts import (
    clean_batch,
    count_special_strings,
    digest,
    normalise_prompt,
)
from prefdistill.errors import UserError
from prefdistill.settings import CleaningSettings
from prefdistill.storage.tables import CLEAN_SCHEMA, TARGET_COLUMNS, open_table

# Of two copies, the one whose source comes first here is kept. Test rows come first, so
# that no model trains on a copy of a row that it will score.
PRECEDENCE = ("test", "train", "extra", "ultra", "unlabelled")
REASONS = (
    "none_hot",
    "multi_hot",
    "empty",
    "identical",
    "duplicate",
    "duplicate_contradictory",
)
# Reasons that an unlabelled test row can have; it stays, and is counted.
TEST_REASONS = ("empty", "identical", "duplicate")
NO_LABEL = -1
# Separates turns in a key. Cleaning removes NUL, so no text can imitate the separator.
_TURN_BREAK = " \x00 "


@dataclass(frozen=True)
class RowKeys:
    """Hold the numbers from which rows are chosen: arrays with one entry per row.

    Attributes:
        group: uint64 value of the 16 hex digits of ``prompt_group``.
        pair: uint64 digest of the group and both answers, the same in either order.
            Among a million rows, two different pairs collide with probability 3e-8.
        flipped: bool, answer A has the larger digest of the two.
        rank: int8 position of the source in ``PRECEDENCE``.
        label: int8 class 0, 1, 2 (A, B, tie); -1 if the target is not one-hot.
        n_hot: int8 number of ones in the target; -1 for an unlabelled row.
        empty: bool, the prompt is blank or both answers are.
        identical: bool, the answers differ at most in white space.
    """

    group: np.ndarray
    pair: np.ndarray
    flipped: np.ndarray
    rank: np.ndarray
    label: np.ndarray
    n_hot: np.ndarray
    empty: np.ndarray
    identical: np.ndarray

    @classmethod
    def concatenate(cls, parts: list["RowKeys"]) -> "RowKeys":
        """Join the keys of several batches, in their order."""
        return cls(
            *(
                np.concatenate([getattr(part, item.name) for part in parts])
                for item in fields(cls)
            )
        )


def _join_turns(turns: pa.ListArray, separator: str) -> list[str]:
    return pc.binary_join(turns, separator).to_pylist()


def compute_keys(batch: pa.RecordBatch) -> RowKeys:
    """Reduce cleaned rows (columns of ``PAIRS_SCHEMA``) to their keys."""
    digests = _digest_texts(batch)
    targets = np.stack(
        [
            pc.fill_null(batch.column(name), NO_LABEL).to_numpy(zero_copy_only=False)
            for name in TARGET_COLUMNS
        ],
        axis=1,
    )
    unlabelled = (targets == NO_LABEL).any(axis=1)
    n_hot = np.where(unlabelled, -1, targets.sum(axis=1)).astype(np.int8)
    label = np.where(n_hot == 1, targets.argmax(axis=1), NO_LABEL).astype(np.int8)
    ranks = {source: rank for rank, source in enumerate(PRECEDENCE)}
    rank = np.array([ranks[s] for s in batch.column("source").to_pylist()], np.int8)
    return RowKeys(**digests, rank=rank, label=label, n_hot=n_hot)


def _digest_texts(batch: pa.RecordBatch) -> dict[str, np.ndarray]:
    """Compute those arrays of ``RowKeys`` that depend on the texts, by name."""
    n_rows = len(batch)
    group, pair = np.empty(n_rows, np.uint64), np.empty(n_rows, np.uint64)
    flipped, empty, identical = (np.zeros(n_rows, bool) for _ in range(3))
    prompts, *answers = (batch.column(name) for name in TEXT_COLUMNS)
    texts = zip(
        _join_turns(prompts, " "),
        *(_join_turns(a, _TURN_BREAK) for a in answers),
        strict=True,
    )
    for row, (raw_prompt, raw_a, raw_b) in enumerate(texts):
        prompt = normalise_prompt(raw_prompt)
        answer_a, answer_b = " ".join(raw_a.split()), " ".join(raw_b.split())
        group_bytes = digest(prompt)[:8]
        group[row] = int.from_bytes(group_bytes, "big")
        # Sorted digests give the pair one key in both orders of its answers.
        digest_a, digest_b = digest(answer_a), digest(answer_b)
        flipped[row] = digest_a > digest_b
        both = sorted((digest_a, digest_b))
        key = hashlib.sha256(group_bytes + both[0] + both[1]).digest()
        pair[row] = int.from_bytes(key[:8], "big")
        identical[row] = digest_a == digest_b
        # An answer of blank turns still holds the separators between them.
        empty[row] = not prompt or not (answer_a + answer_b).strip("\x00 ")
    return {
        "group": group,
        "pair": pair,
        "flipped": flipped,
        "empty": empty,
        "identical": identical,
    }


def find_copies(keys: RowKeys, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find rows that repeat another row's prompt and answers, in either order.

    The original among equal rows is the first row of the source that comes first in
    ``PRECEDENCE``. All others are copies.

    Args:
        keys: Keys of ``n`` rows.
        candidates: ``(n,)`` bool, the rows to compare.

    Returns:
        Two ``(n,)`` bool arrays: the copies, and those copies that contradict their
        original: both are labelled, and the labels differ once the answers are put in
        the same order.
    """
    rows = np.flatnonzero(candidates)
    # The last key of lexsort sorts first: equal pairs come together, original first.
    order = rows[np.lexsort((rows, keys.rank[rows], keys.pair[rows]))]
    pair = keys.pair[order]
    # The slice drops the leading True where there are no rows at all.
    first = np.r_[True, pair[1:] != pair[:-1]][: len(order)]
    original = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    # Labels as if every row showed its answers in digest order; a tie stays a tie.
    ordered_label = np.where(
        keys.flipped & (keys.label >= 0) & (keys.label < 2), 1 - keys.label, keys.label
    )
    differs = (ordered_label[order] != ordered_label[original]) & (
        keys.label[original] >= 0
    )
    copies, contradictory = np.zeros((2, len(keys.pair)), bool)
    copies[order] = ~first
    contradictory[order] = ~first & differs & (keys.label[order] >= 0)
    return copies, contradictory


def choose_rows(
    keys: RowKeys, policy: CleaningSettings
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Choose the rows that stay, and give every other row one reason.

    Args:
        keys: Keys of ``n`` rows.
        policy: The ``cleaning`` section: ``drop`` or ``keep`` for each kind of row.

    Returns:
        ``(n,)`` bool, the rows that stay; and for each of ``REASONS`` an ``(n,)`` bool
        array of the rows that it concerns. A row has at most one reason, the first that
        applies. Rows of the test file always stay, since a submission needs every row;
        a reason only flags them.
    """
    is_test = keys.rank == PRECEDENCE.index("test")
    labelled = ~np.isin(keys.rank, [PRECEDENCE.index(source) for source in UNLABELLED])
    by_reason = {
        "none_hot": (keys.n_hot <= 0) & labelled,
        "multi_hot": (keys.n_hot > 1) & labelled,
        "empty": keys.empty & (policy.empty == "drop"),
        "identical": keys.identical & (policy.identical == "drop"),
    }
    taken = np.zeros(len(is_test), bool)
    for reason, rows in by_reason.items():
        by_reason[reason] = rows & ~taken
        taken |= rows
    # Dropped rows are no originals, but every test row stays and so can be one.
    copies, contradictory = find_copies(keys, ~taken | is_test)
    copies &= ~taken & (policy.duplicates == "drop")
    by_reason["duplicate"] = copies & ~contradictory
    by_reason["duplicate_contradictory"] = copies & contradictory
    return ~(taken | copies) | is_test, by_reason


def count_by_source(keys: RowKeys, rows: np.ndarray) -> dict[str, int]:
    """Count the true entries of ``rows`` by source, for sources that have any row."""
    return {
        source: int(np.count_nonzero(rows & (keys.rank == PRECEDENCE.index(source))))
        for source in SOURCES
        if (keys.rank == PRECEDENCE.index(source)).any()
    }


def summarise(
    keys: RowKeys, kept: np.ndarray, by_reason: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Count rows for ``cleaning.json``: read, kept, dropped, and flagged test rows."""
    is_test = keys.rank == PRECEDENCE.index("test")
    return {
        "n_in": count_by_source(keys, np.ones(len(kept), bool)),
        "n_out": count_by_source(keys, kept),
        "dropped": {
            reason: count_by_source(keys, by_reason[reason] & ~kept)
            for reason in REASONS
        },
        "flagged_test_rows": {
            reason: int(np.count_nonzero(by_reason[reason] & is_test))
            for reason in TEST_REASONS
        },
    }


def add_group(batch: pa.RecordBatch, group: np.ndarray) -> pa.RecordBatch:
    """Append the column ``group``: 16 hex digits of each uint64 of ``group``."""
    names = pa.array([f"{number:016x}" for number in group.tolist()], pa.string())
    return pa.record_batch([*batch.columns, names], schema=CLEAN_SCHEMA)


def clean_table(
    source: Path, target: Path, policy: CleaningSettings
) -> tuple[dict[str, Any], dict[str, int]]:
    """Write the rows of a table that stay, and count the others by reason.

    Args:
        source: Typed pairs of all sources.
        target: The clean table.
        policy: See ``choose_rows``.

    Returns:
        The counts of ``summarise``; and the number of turns from which control
        characters were removed, and of turns that hold strings of special tokens.

    Raises:
        UserError: If no train row stays.
    """
    parts, n_changed, n_special, start = [], 0, 0, 0
    with open_table(source) as pairs:
        for raw in pairs.iter_batches(BATCH_ROWS):
            batch, n_here = clean_batch(raw)
            parts.append(compute_keys(batch))
            n_changed += n_here
            n_special += count_special_strings(batch)
        keys = RowKeys.concatenate(parts)
        kept, by_reason = choose_rows(keys, policy)
        counts = summarise(keys, kept, by_reason)
        _check_train_rows(source, counts)
        with open_parquet_writer(target, CLEAN_SCHEMA) as writer:
            for raw in pairs.iter_batches(BATCH_ROWS):
                rows = slice(start, start + len(raw))
                start += len(raw)
                # Cleaned again: keeping the texts of the first pass would fill memory.
                batch, _ = clean_batch(raw)
                batch = add_group(batch, keys.group[rows])
                writer.write_batch(batch.filter(pa.array(kept[rows])))
    repaired = {"control_characters": n_changed, "special_token_strings": n_special}
    return counts, repaired


def _check_train_rows(source: Path, counts: dict[str, Any]) -> None:
    """Refuse a table in which no train row stays.

    Raises:
        UserError: With the number of train rows dropped for each reason.
    """
    if counts["n_out"].get("train"):
        return
    dropped = [
        f"{by_source['train']} {reason}"
        for reason, by_source in counts["dropped"].items()
        if by_source.get("train")
    ]
    raise UserError(
        f"{source}: cleaning leaves no train row ({', '.join(dropped)}); "
        "check the files under data.train and the cleaning settings"
    )

"""Which rows may train and score models: targets, degenerate pairs, duplicates.

Two passes in bounded memory: the first reduces every row to a few numbers
(``RowKeys``), on which the rows are chosen; the second writes the chosen rows. No
column is derived from the labels: only ``group``, the digest of the normalised prompt,
is added.
"""

import hashlib
import re
import unicodedata
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
    open_parquet,
)
from prefdistill.errors import UserError
from prefdistill.storage.tables import CLEAN_SCHEMA, TARGET_COLUMNS, open_table

# Of two copies the one whose source comes first is kept, so that a copy of a row that
# is scored never trains, and a copy never leaves the split of the original.
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

_CONTROL_RE2 = r"[\x00-\x08\x0b-\x1f\x7f-\x{9f}]"
_LINE_BREAK = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1f\x85]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
# Special tokens and chat control tokens of the families of models that are in use, as
# text. Which of them a model knows shows only with its tokenizer: ``prompts`` makes
# plain text of those when a row is encoded, and here they are counted.
SPECIAL_STRINGS = (
    r"<\|[^|<>\s]{1,60}\|>|<｜[^｜<>\s]{1,60}｜>|<</?SYS>>"
    r"|</?(?:s|think|tool_call|tool_response|start_of_turn|end_of_turn)>"
    r"|<(?:bos|eos|pad|unk|mask|cls|sep|unused\d+|start_of_image|end_of_image"
    r"|repo_?name|file_sep|filename|gh_stars|issue_\w+|jupyter_\w+|empty_output)>"
    r"|\[/?(?:INST|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT|multimodal)\]"
)
# Stands between turns; NUL is gone after cleaning, so no text can imitate it.
_TURN_BREAK = " \x00 "


def strip_controls(text: str) -> str:
    """Text without control characters other than line feed and tab.

    Those that break lines or pages (carriage return, form feed and their like) become
    line feeds, so that no two words run together.
    """
    return _CONTROL.sub("", _LINE_BREAK.sub("\n", text))


def strip_turns(turns: pa.ListArray) -> tuple[pa.ListArray, int]:
    """Clean every turn of a column of turns.

    Returns:
        The column, and the number of turns that were changed.
    """
    values = turns.flatten()
    hits = pc.match_substring_regex(values, _CONTROL_RE2).to_numpy(zero_copy_only=False)
    n_changed = int(np.count_nonzero(hits))
    if not n_changed:
        return turns, 0
    texts = values.to_pylist()
    for place in np.flatnonzero(hits):
        texts[place] = strip_controls(texts[place])
    lengths = turns.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(texts, pa.string())), n_changed


def normalise_prompt(text: str) -> str:
    """Lower case, Unicode NFKC, white space folded to single blanks.

    Lower case comes before and after NFKC, so that prompts that are equal in lower
    case stay equal whatever NFKC does.
    """
    text = text.lower()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).lower()
    return " ".join(text.split())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def prompt_group(turns: list[str]) -> str:
    """16 hex digits shared by rows of one normalised prompt, all turns joined."""
    return _digest(normalise_prompt(" ".join(turns)))[:8].hex()


@dataclass(frozen=True)
class RowKeys:
    """What choosing rows needs to know of them, one entry a row.

    Attributes:
        group: uint64, the number that the 16 hex digits of the prompt group write.
        pair: uint64 digest of group and both answers, the same in either order. Two
            different pairs share one with odds of 3e-8 at a million rows.
        flipped: bool, whether the answers stand in reverse digest order.
        rank: int8 place of the source in ``PRECEDENCE``.
        label: int8 class 0, 1, 2 (A, B, tie), or -1 if the target is not one-hot.
        n_hot: int8 number of ones in the target; -1 of an unlabelled row.
        empty: bool, whether the prompt or both answers are blank.
        identical: bool, whether the answers are equal but for white space.
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
        """The keys of all batches as one."""
        return cls(
            *(
                np.concatenate([getattr(part, item.name) for part in parts])
                for item in fields(cls)
            )
        )


def _joined(turns: pa.ListArray, separator: str) -> list[str]:
    return pc.binary_join(turns, separator).to_pylist()


def describe_rows(batch: pa.RecordBatch) -> RowKeys:
    """Reduce cleaned rows (columns of ``PAIRS_SCHEMA``) to their keys."""
    n_rows = len(batch)
    group, pair = np.empty(n_rows, np.uint64), np.empty(n_rows, np.uint64)
    flipped, empty, identical = (np.zeros(n_rows, bool) for _ in range(3))
    prompts, *answers = (batch.column(name) for name in TEXT_COLUMNS)
    texts = zip(
        _joined(prompts, " "), *(_joined(a, _TURN_BREAK) for a in answers), strict=True
    )
    for row, (raw_prompt, raw_a, raw_b) in enumerate(texts):
        prompt = normalise_prompt(raw_prompt)
        answer_a, answer_b = " ".join(raw_a.split()), " ".join(raw_b.split())
        group_bytes = _digest(prompt)[:8]
        group[row] = int.from_bytes(group_bytes, "big")
        digest_a, digest_b = _digest(answer_a), _digest(answer_b)
        flipped[row] = digest_a > digest_b
        both = sorted((digest_a, digest_b))
        key = hashlib.sha256(group_bytes + both[0] + both[1]).digest()
        pair[row] = int.from_bytes(key[:8], "big")
        identical[row] = digest_a == digest_b
        empty[row] = not prompt or not (answer_a + answer_b).strip("\x00 ")
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
    return RowKeys(group, pair, flipped, rank, label, n_hot, empty, identical)


def find_copies(keys: RowKeys, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find rows that repeat an earlier row's prompt and answers, in either order.

    Of equal rows the one of the first source in ``PRECEDENCE``, and in it the first in
    order, is the original.

    Args:
        keys: Keys of ``n`` rows.
        candidates: ``(n,)`` bool, the rows that are compared.

    Returns:
        Two ``(n,)`` bool arrays: copies, and those copies whose label, with the
        answers put in the same order, differs from the original's.
    """
    rows = np.flatnonzero(candidates)
    order = rows[np.lexsort((rows, keys.rank[rows], keys.pair[rows]))]
    pair = keys.pair[order]
    first = np.r_[True, pair[1:] != pair[:-1]][: len(order)]
    original = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    turned = np.where(
        keys.flipped & (keys.label >= 0) & (keys.label < 2), 1 - keys.label, keys.label
    )
    differs = (turned[order] != turned[original]) & (keys.label[original] >= 0)
    copies, contradictory = np.zeros((2, len(keys.pair)), bool)
    copies[order] = ~first
    contradictory[order] = ~first & differs & (keys.label[order] >= 0)
    return copies, contradictory


def choose_rows(
    keys: RowKeys, policy: dict[str, str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Decide which rows stay, and the first reason that holds against each other one.

    Args:
        keys: Keys of ``n`` rows.
        policy: ``drop`` or ``keep`` for ``identical``, ``empty`` and ``duplicates``.

    Returns:
        ``(n,)`` bool, the rows that stay, and by reason an ``(n,)`` bool array, of
        which at most one is true in a row. An unlabelled test row may have a reason
        and always stays, as a submission needs every row.
    """
    is_test = keys.rank == PRECEDENCE.index("test")
    labelled = ~np.isin(keys.rank, [PRECEDENCE.index(source) for source in UNLABELLED])
    against = {
        "none_hot": (keys.n_hot <= 0) & labelled,
        "multi_hot": (keys.n_hot > 1) & labelled,
        "empty": keys.empty & (policy["empty"] == "drop"),
        "identical": keys.identical & (policy["identical"] == "drop"),
    }
    taken = np.zeros(len(is_test), bool)
    for reason, rows in against.items():
        against[reason] = rows & ~taken
        taken |= rows
    copies, contradictory = find_copies(keys, ~taken | is_test)
    copies &= ~taken & (policy["duplicates"] == "drop")
    against["duplicate"] = copies & ~contradictory
    against["duplicate_contradictory"] = copies & contradictory
    return ~(taken | copies) | is_test, against


def count_by_source(keys: RowKeys, rows: np.ndarray) -> dict[str, int]:
    """Number of true entries by source, for the sources that have rows at all."""
    return {
        source: int(np.count_nonzero(rows & (keys.rank == PRECEDENCE.index(source))))
        for source in SOURCES
        if (keys.rank == PRECEDENCE.index(source)).any()
    }


def summarise(
    keys: RowKeys, kept: np.ndarray, against: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Counts for ``cleaning.json``: rows in, out, dropped, and test rows flagged."""
    is_test = keys.rank == PRECEDENCE.index("test")
    return {
        "n_in": count_by_source(keys, np.ones(len(kept), bool)),
        "n_out": count_by_source(keys, kept),
        "dropped": {
            reason: count_by_source(keys, against[reason] & ~kept) for reason in REASONS
        },
        "flagged_test_rows": {
            reason: int(np.count_nonzero(against[reason] & is_test))
            for reason in TEST_REASONS
        },
    }


def clean_batch(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    """A batch with its texts cleaned, and the number of turns changed."""
    columns, n_changed = dict(zip(batch.schema.names, batch.columns, strict=True)), 0
    for name in TEXT_COLUMNS:
        columns[name], n_here = strip_turns(columns[name])
        n_changed += n_here
    return pa.record_batch(list(columns.values()), schema=batch.schema), n_changed


def count_special_strings(batch: pa.RecordBatch) -> int:
    """Turns of a batch that hold a special token's string; see ``SPECIAL_STRINGS``."""
    hits = (
        pc.match_substring_regex(batch.column(name).flatten(), SPECIAL_STRINGS)
        for name in TEXT_COLUMNS
    )
    return sum(pc.sum(each).as_py() or 0 for each in hits)


def add_group(batch: pa.RecordBatch, group: np.ndarray) -> pa.RecordBatch:
    """A batch of ``CLEAN_SCHEMA``: the row's prompt group as 16 hex digits added."""
    names = pa.array([f"{number:016x}" for number in group.tolist()], pa.string())
    return pa.record_batch([*batch.columns, names], schema=CLEAN_SCHEMA)


def clean_table(
    source: Path, target: Path, policy: dict[str, str]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Write the rows of a table that stay, and count the others by reason.

    Args:
        source: Typed pairs of all sources.
        target: The clean table.
        policy: The ``cleaning`` settings; see ``choose_rows``.

    Returns:
        The counts of ``summarise``; and how many rows had control characters removed,
        and hold strings of special tokens.

    Raises:
        UserError: If no train row stays.
    """
    parts, n_changed, n_special, start = [], 0, 0, 0
    with open_table(source) as pairs:
        for raw in pairs.iter_batches(BATCH_ROWS):
            batch, n_here = clean_batch(raw)
            parts.append(describe_rows(batch))
            n_changed += n_here
            n_special += count_special_strings(batch)
        keys = RowKeys.concatenate(parts)
        kept, against = choose_rows(keys, policy)
        counts = summarise(keys, kept, against)
        _check_train_rows(source, counts)
        with open_parquet(target, CLEAN_SCHEMA) as writer:
            for raw in pairs.iter_batches(BATCH_ROWS):
                rows = slice(start, start + len(raw))
                start += len(raw)
                batch, _ = clean_batch(raw)
                batch = add_group(batch, keys.group[rows])
                writer.write_batch(batch.filter(pa.array(kept[rows])))
    repaired = {"control_characters": n_changed, "special_token_strings": n_special}
    return counts, repaired


def _check_train_rows(source: Path, counts: dict[str, Any]) -> None:
    """Refuse a table of which no train row stays.

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

"""Clean the texts of pairs, and group prompts that are equal once normalised."""

import hashlib
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdistill.data.pairs import TEXT_COLUMNS

# RE2's twin of ``_LINE_BREAK`` and ``_CONTROL`` together: it finds the turns that
# ``strip_controls`` would change, so that Python sees only those.
_CONTROL_RE2 = r"[\x00-\x08\x0b-\x1f\x7f-\x{9f}]"
# These become line feeds, ...
_LINE_BREAK = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1f\x85]")
# ... and these are removed.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
# Special tokens and chat control tokens of common model families, written as text.
# Cleaning only counts them: which of them a model knows depends on its tokenizer, so
# ``prompts`` turns them into plain text when it encodes a row.
SPECIAL_STRINGS = (
    r"<\|[^|<>\s]{1,60}\|>|<｜[^｜<>\s]{1,60}｜>|<</?SYS>>"
    r"|</?(?:s|think|tool_call|tool_response|start_of_turn|end_of_turn)>"
    r"|<(?:bos|eos|pad|unk|mask|cls|sep|unused\d+|start_of_image|end_of_image"
    r"|repo_?name|file_sep|filename|gh_stars|issue_\w+|jupyter_\w+|empty_output)>"
    r"|\[/?(?:INST|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT|multimodal)\]"
)


def strip_controls(text: str) -> str:
    """Remove control characters other than line feed and tab.

    Characters that break a line or page (carriage return, form feed, ...) become line
    feeds, so that the words around them stay apart.
    """
    return _CONTROL.sub("", _LINE_BREAK.sub("\n", text))


def strip_turns(turns: pa.ListArray) -> tuple[pa.ListArray, int]:
    """Strip control characters from every turn of a column.

    Args:
        turns: ``n`` lists of strings, without nulls; a slice of a column is allowed.

    Returns:
        The cleaned column, and the number of turns that changed.
    """
    values = turns.flatten()
    hits = pc.match_substring_regex(values, _CONTROL_RE2).to_numpy(zero_copy_only=False)
    n_changed = int(np.count_nonzero(hits))
    if not n_changed:
        return turns, 0
    # Few turns hold a control character: only those pass through Python.
    texts = values.to_pylist()
    for place in np.flatnonzero(hits):
        texts[place] = strip_controls(texts[place])
    lengths = turns.value_lengths().to_numpy(zero_copy_only=False)
    # The offsets of a slice do not start at 0, but those of ``values`` do.
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(texts, pa.string())), n_changed


def normalise_prompt(text: str) -> str:
    """Lower the case, apply Unicode NFKC, and fold white space to single blanks.

    The case is lowered before NFKC and again after it. Before: prompts that differ only
    in case stay equal, whatever NFKC does. After: NFKC can yield capital letters.
    """
    text = text.lower()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).lower()
    return " ".join(text.split())


def digest(text: str) -> bytes:
    """Digest a text to 32 bytes."""
    return hashlib.sha256(text.encode()).digest()


def prompt_group(turns: list[str]) -> str:
    """Digest a prompt to the 16 hex digits of its group.

    Prompts share a group if their turns, joined by blanks, are equal once normalised.
    """
    return digest(normalise_prompt(" ".join(turns)))[:8].hex()


def clean_batch(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    """Strip control characters from the texts of a batch, and count changed turns."""
    columns, n_changed = dict(zip(batch.schema.names, batch.columns, strict=True)), 0
    for name in TEXT_COLUMNS:
        columns[name], n_here = strip_turns(columns[name])
        n_changed += n_here
    return pa.record_batch(list(columns.values()), schema=batch.schema), n_changed


def count_special_strings(batch: pa.RecordBatch) -> int:
    """Count the turns of a batch that hold one of ``SPECIAL_STRINGS``."""
    hits = (
        pc.match_substring_regex(batch.column(name).flatten(), SPECIAL_STRINGS)
        for name in TEXT_COLUMNS
    )
    # The sum over no turns is null.
    return sum(pc.sum(each).as_py() or 0 for each in hits)

"""Count the tokens of rows, and how many of them truncation removes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefdistill.data.prompts import encode_pairs
from prefdistill.models.loading import load_tokenizer
from prefdistill.settings import TextSettings

NO_LIMIT = 2**31  # longer than any row
# Of more rows, only every second, third, ... is counted, to bound time and memory.
MAX_ROWS = 20_000
QUANTILES = (0.05, 0.5, 0.95, 0.99, 1.0)


def count_lengths(
    table: pa.Table, base: Path, text: TextSettings
) -> tuple[int, dict[str, np.ndarray]]:
    """Tokenise a fold's rows as the student does, without truncation.

    Args:
        table: A fold's rows.
        base: Folder of the student's base, whose tokenizer is used.
        text: How pairs become tokens.

    Returns:
        n, if every n-th row was counted; and for each split the ``(n_counted,)``
        integer numbers of tokens.
    """
    every = -(-len(table) // MAX_ROWS)
    table = table.take(np.arange(0, len(table), every))
    split = np.array(table.column("split").to_pylist(), dtype=np.str_)
    tokenizer = load_tokenizer(base)
    n_tokens = encode_pairs(
        table, tokenizer, replace(text, max_length=NO_LIMIT)
    ).lengths
    splits = [name for name in ("train", "dev", "select", "test") if name in split]
    return every, {name: n_tokens[split == name] for name in splits}


def describe_lengths(n_tokens: np.ndarray, max_length: int) -> dict[str, Any]:
    """Count rows and tokens, those that truncation affects, and quantiles of lengths.

    Args:
        n_tokens: ``(n,)`` integer tokens of each row.
        max_length: Most tokens that a row keeps.
    """
    lost = np.maximum(n_tokens - max_length, 0)
    return {
        "rows": len(n_tokens),
        "rows_cut": int((lost > 0).sum()),
        "tokens": int(n_tokens.sum()),
        "tokens_cut": int(lost.sum()),
        "quantiles": {
            f"{q:g}": int(np.quantile(n_tokens, q, method="lower")) for q in QUANTILES
        },
    }

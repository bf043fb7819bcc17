"""Count the tokens of rows before the cut, and what the cut takes away."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefdistill.data.prompts import encode_pairs
from prefdistill.models.loading import load_tokenizer
from prefdistill.settings import TextSettings

# Longer than any row, so that nothing is cut.
NO_LIMIT = 2**31
# Of more rows every second, third, ... is counted: time and memory stay bounded.
MAX_ROWS = 20_000
QUANTILES = (0.05, 0.5, 0.95, 0.99, 1.0)


def count_lengths(
    table: pa.Table, base: Path, text: TextSettings
) -> tuple[int, dict[str, np.ndarray]]:
    """Tokenise a fold's rows as the student does, without the cut.

    Args:
        table: A fold's rows.
        base: Folder of the student's base, whose tokenizer counts.
        text: How pairs become tokens.

    Returns:
        Of how many rows one was counted; and for each split the number of tokens of
        each counted row.
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
    """Count rows and tokens, those that the cut takes, and quantiles of lengths."""
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

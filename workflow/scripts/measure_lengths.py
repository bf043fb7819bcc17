"""Count the tokens of a fold's rows before the cut, and what the cut takes away."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.models.quick_imports import hide_unused_imports
from prefdistill.running.job import run_job

if TYPE_CHECKING:
    import numpy as np
    from snakemake.iocontainers import snakemake


# Longer than any row, so that nothing is cut.
NO_LIMIT = 2**31
# Of more rows every second, third, ... is counted: time and memory stay bounded.
MAX_ROWS = 20_000
QUANTILES = (0.05, 0.5, 0.95, 0.99, 1.0)


def describe(n_tokens: "np.ndarray", max_length: int) -> dict[str, Any]:
    """Rows, rows and share of tokens that the cut takes, and quantiles of lengths."""
    import numpy as np

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


def main(
    fold_table: Path,
    base: Path,
    lengths_path: Path,
    figure_path: Path,
    text: dict[str, Any],
) -> None:
    """Tokenise the rows as the student does, but for the cut; count and draw them.

    Args:
        fold_table: A fold file.
        base: The manifest of the student's base, whose tokenizer counts.
        lengths_path: Where the counts by split go, as JSON.
        figure_path: Where the histograms go.
        text: The ``text`` settings.
    """
    import numpy as np

    from prefdistill.data.prompts import encode_pairs
    from prefdistill.models.loading import base_folder, load_tokenizer
    from prefdistill.report.figures import draw_lengths, save_figure
    from prefdistill.settings import TextSettings, read
    from prefdistill.storage.tables import FOLD_SCHEMA, read_table, write_json

    table = read_table(fold_table, FOLD_SCHEMA)
    every = -(-len(table) // MAX_ROWS)
    table = table.take(np.arange(0, len(table), every))
    split = np.array(table.column("split").to_pylist(), dtype=np.str_)
    tokenizer = load_tokenizer(base_folder(base))
    uncut = read(TextSettings, text | {"max_length": NO_LIMIT})
    n_tokens = encode_pairs(table, tokenizer, uncut).lengths
    splits = [name for name in ("train", "dev", "select", "test") if name in split]
    lengths = {name: n_tokens[split == name] for name in splits}
    longest = text["max_length"]
    described = {name: describe(values, longest) for name, values in lengths.items()}
    content = {"every": every, "max_length": longest, "splits": described}
    write_json(lengths_path, content)
    save_figure(draw_lengths(lengths, longest), figure_path)


if __name__ == "__main__":
    with run_job(snakemake):
        hide_unused_imports()
        main(
            fold_table=Path(snakemake.input.fold),
            base=Path(snakemake.input.base),
            lengths_path=Path(snakemake.output.lengths),
            figure_path=Path(snakemake.output.figure),
            text=snakemake.params.text,
        )

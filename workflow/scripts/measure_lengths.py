"""Count the tokens of a fold's rows before the cut, and what the cut takes away."""

from pathlib import Path

from prefdistill.models.quick_imports import hide_unused_imports
from prefdistill.running.job import run_job
from prefdistill.settings import TextSettings


def main(
    fold: Path, base: Path, lengths: Path, figure: Path, text: TextSettings
) -> None:
    """Count and draw the lengths of the fold's rows.

    Args:
        fold: A fold file.
        base: The manifest of the student's base, whose tokenizer counts.
        lengths: Where the counts by split go, as JSON.
        figure: Where the histograms go.
        text: How pairs become tokens.
    """
    from prefdistill.models.lengths import count_lengths, describe_lengths
    from prefdistill.models.manifests import base_folder
    from prefdistill.report.drawing import save_figure
    from prefdistill.report.figures import draw_lengths
    from prefdistill.storage.records import write_json
    from prefdistill.storage.tables import FOLD_SCHEMA, read_table

    longest = text.max_length
    table = read_table(fold, FOLD_SCHEMA)
    every, counted = count_lengths(table, base_folder(base), text)
    described = {k: describe_lengths(n, longest) for k, n in counted.items()}
    write_json(lengths, {"every": every, "max_length": longest, "splits": described})
    save_figure(draw_lengths(counted, longest), figure)


if __name__ == "__main__":
    run_job(snakemake, main, libraries=hide_unused_imports)

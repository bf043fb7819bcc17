"""Drop rows that cannot train or score a judge, and count them by reason.

A row stays if its target is exactly one-hot: an argmax would silently turn a row
without a winner into a win for A. Depending on the ``cleaning`` settings, empty rows,
rows with identical answers and duplicates are dropped too. All rows of the test file
stay. ``cleaning.json`` holds the counts.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.errors import UserError
from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def log_table(counts: dict[str, Any]) -> None:
    """Log a table of the counts, by reason and source."""
    sources = list(counts["n_in"])
    lines = {
        "rows in": counts["n_in"],
        **counts["dropped"],
        "rows out": counts["n_out"],
    }
    logger.info("%-24s%s", "", "".join(f"{name:>9}" for name in sources))
    for name, row in lines.items():
        cells = "".join(f"{row[source]:>9}" for source in sources)
        logger.info("%-24s%s", name, cells)


def main(
    pairs_path: Path,
    import_path: Path,
    clean_path: Path,
    report_path: Path,
    policy: dict[str, str],
) -> None:
    """Read the typed pairs, and write the rows that stay and the counts."""
    import pyarrow as pa

    from prefdistill.data.cleaning import (
        RowKeys,
        add_group,
        choose_rows,
        clean_batch,
        compute_keys,
        count_special_strings,
        summarise,
    )
    from prefdistill.data.pairs import BATCH_ROWS, open_parquet_writer
    from prefdistill.storage.tables import (
        CLEAN_SCHEMA,
        open_table,
        read_json,
        write_json,
    )

    parts, n_changed, n_special = [], 0, 0
    with open_table(pairs_path) as pairs:
        for raw in pairs.iter_batches(BATCH_ROWS):
            batch, n_here = clean_batch(raw)
            parts.append(compute_keys(batch))
            n_changed += n_here
            n_special += count_special_strings(batch)
        keys = RowKeys.concatenate(parts)
        kept, against = choose_rows(keys, policy)
        counts = summarise(keys, kept, against)
        log_table(counts)
        if not counts["n_out"].get("train"):
            dropped = [
                f"{by_source['train']} {reason}"
                for reason, by_source in counts["dropped"].items()
                if by_source.get("train")
            ]
            raise UserError(
                f"{pairs_path}: cleaning leaves no train row ({', '.join(dropped)}); "
                "check the files under data.train and the cleaning settings"
            )
        start = 0
        with open_parquet_writer(clean_path, CLEAN_SCHEMA) as writer:
            for raw in pairs.iter_batches(BATCH_ROWS):
                rows = slice(start, start + len(raw))
                start += len(raw)
                # Cleaned again: keeping the texts of the first pass would fill memory.
                batch, _ = clean_batch(raw)
                batch = add_group(batch, keys.group[rows])
                writer.write_batch(batch.filter(pa.array(kept[rows])))
    imported = read_json(import_path)
    counts["repaired"] = imported["repaired"] | {
        "control_characters": n_changed,
        "special_token_strings": n_special,
    }
    counts["helper_columns_removed"] = sorted(
        {name for file in imported["files"] for name in file["ignored_columns"]}
    )
    write_json(report_path, counts)


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            pairs_path=Path(snakemake.input.pairs),
            import_path=Path(snakemake.input.report),
            clean_path=Path(snakemake.output.pairs),
            report_path=Path(snakemake.output.report),
            policy=snakemake.params.cleaning,
        )

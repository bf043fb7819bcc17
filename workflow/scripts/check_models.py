"""Describe every configured model, and try it on a few pairs before any training."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.models.quick_imports import hide_unused_imports
from prefdistill.running.job import run_job
from prefdistill.storage.whole_files import write_text

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def describe(
    folder: Path, settings: dict[str, Any], text: dict[str, Any], table: Any
) -> dict[str, Any]:
    """One model's row of the table.

    Its head and adapter are the seeded initialisation, what training starts from.
    """
    from scipy.special import softmax

    from prefdistill.data.prompts import encode_pairs
    from prefdistill.engine.engine import RECOMPUTE
    from prefdistill.models.loading import (
        base_precision,
        core_model,
        load_classifier,
        load_tokenizer,
    )
    from prefdistill.models.lora import add_adapter
    from prefdistill.models.memory import count_parameters, estimate_memory
    from prefdistill.models.scoring import score_pairs
    from prefdistill.settings import LoraSettings, TextSettings, read
    from prefdistill.storage.tables import VIEWS

    precision, seed = settings["precision"], settings["post_pretrain"]["seed"]
    model = load_classifier(folder, precision, head_seed=seed)
    model = add_adapter(model, read(LoraSettings, settings["lora"]), seed)
    core, counts = core_model(model), count_parameters(model)
    budget = settings["training"]["token_budget"]
    n_base = counts["embedding"] + counts["linear"] + counts["other"]
    row = {
        "architecture": type(core).__name__,
        "precision": precision,
        "n_base_parameters": n_base,
        "n_linear_parameters": counts["linear"],
        "n_lora_parameters": counts["lora"],
        "lora_share": f"{counts['lora'] / n_base:.6f}",
        "head_shape": "x".join(map(str, core.score.weight.shape)),
    }
    for how in RECOMPUTE:
        gib = estimate_memory(
            core.config,
            counts,
            base_precision(core),
            budget,
            recompute=how,
            dropout=settings["lora"]["dropout"],
        )
        row[f"training_gib_recompute_{how}"] = f"{gib:.3f}"
    encoded = encode_pairs(table, load_tokenizer(folder), read(TextSettings, text))
    probs = softmax(score_pairs(model, encoded, token_budget=budget), axis=-1)
    for number, by_view in enumerate(probs, start=1):
        for view, (first, second, tie) in zip(VIEWS, by_view, strict=True):
            row[f"pair{number}_{view}"] = f"{first:.4f} {second:.4f} {tie:.4f}"
    return row


def main(
    bases: dict[str, Path],
    settings: dict[str, dict[str, Any]],
    text: dict[str, Any],
    pairs: list[dict[str, str]],
    output: Path,
) -> None:
    """Write and log a table with one row for each model.

    Args:
        bases: Model name to its base's manifest.
        settings: Model name to its settings.
        text: The ``text`` settings.
        pairs: Test pairs: ``prompt``, ``response_a``, ``response_b``.
        output: CSV file; probabilities are (first, second, tie) as shown.
    """
    import csv
    import io

    import pyarrow as pa

    from prefdistill.models.loading import base_folder

    columns = {"id": [f"check:{number}" for number in range(1, len(pairs) + 1)]}
    for field in ("prompt", "response_a", "response_b"):
        columns[field] = [[pair[field]] for pair in pairs]
    table = pa.table(columns)
    rows = []
    for name, base in bases.items():
        row = describe(base_folder(base), settings[name], text, table)
        rows.append({"model": name, "base": settings[name]["base"], **row})
        logger.info("%s", "\n  ".join(f"{k}: {v}" for k, v in rows[-1].items()))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output, buffer.getvalue())


if __name__ == "__main__":
    with run_job(snakemake):
        hide_unused_imports("gptqmodel", "optimum", "torchao", "sklearn")
        names = snakemake.params.models
        main(
            bases=dict(zip(names, map(Path, snakemake.input.bases), strict=True)),
            settings=snakemake.params.settings,
            text=snakemake.params.text,
            pairs=snakemake.params.pairs,
            output=Path(snakemake.output.table),
        )

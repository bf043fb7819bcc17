"""Write the tables of GPU results into docs/performance.md.

    python -m benchmarks.write_tables            # after `make bench`
    python -m benchmarks.write_tables --table    # print them only

The results come from `benchmarks/results/h100.json` and `h200.json`. The predicted
hours follow from `h100.json` and `config/config.yaml`. A test compares the document
with the tables.
"""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.result_rows import Row, find_row, markdown_table, read_rows, speed_table
from benchmarks.workload import PUBLISHED
from prefdistill.pipeline.config_schema import validate_config
from prefdistill.pipeline.cost_model import Size, scoring_work, training_work
from prefdistill.pipeline.model_sizes import base_parameters
from prefdistill.pipeline.pair_counts import (
    Pairs,
    count_pairs,
    scored_pairs,
    trained_pairs,
)
from prefdistill.settings import SIMULATED_FOLDER, Settings, read

ROOT = Path(__file__).resolve().parents[1]
RESULTS = {card: ROOT / f"benchmarks/results/{card}.json" for card in ("h100", "h200")}
DOCUMENT = ROOT / "docs/performance.md"
BASES = {"auto": "bf16"}
# Pairs of the published configuration's files, as its comments have them; those of
# UltraFeedback and of the competition's hidden test are assumed.
PUBLISHED_PAIRS = {
    "n_train": 57_477,
    "n_extra": 33_000,
    "n_ultra": 60_000,
    "n_test": 25_000,
}
# `gpu_tflops` in the cost model's column: about the speed that an H100 sustains.
MODELLED_TFLOPS = 400


def published() -> tuple[Settings, Pairs]:
    """Read the published configuration with its defaults, and its numbers of pairs.

    Its files may be absent, so simulated files with as many pairs replace them.
    """
    schema = (ROOT / "workflow/schemas/config.schema.yaml").read_text("utf-8")
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text("utf-8"))
    sources = ("train", "extra", "ultra")
    files = {name: [f"{SIMULATED_FOLDER}{name}.csv"] for name in sources}
    config["data"] = files | {"test": f"{SIMULATED_FOLDER}test.csv"}
    config["simulation"] = PUBLISHED_PAIRS
    settings = read(Settings, validate_config(config, yaml.safe_load(schema)))
    return settings, count_pairs(settings.data, settings.folds, settings.simulation)


def shape_of(repo: str | None) -> str | None:
    """Return the benchmark's name of the shape of a base model of the hub."""
    name = (repo or "").rpartition("/")[2].lower()
    return next((shape for shape in PUBLISHED if name.startswith(shape)), None)


def find_speed(
    rows: list[Row], shape: str | None, mode: str, base: str, *, adapter: bool
) -> float | None:
    """Find useful tokens/s of one GPU, with an unmerged adapter if measured."""
    wanted = {"model": shape, "mode": mode, "base": BASES.get(base, base), "gpus": 1}
    row = find_row(rows, **wanted, variant="engine_adapter") if adapter else None
    row = row or find_row(rows, **wanted, variant="engine")
    return row["useful_tokens_per_s"] if row else None


def list_work(settings: Settings, pairs: Pairs) -> list[dict[str, Any]]:
    """List the GPU's work by model and stage, as in the workflow's rules.

    ``jobs`` is the number of jobs, one per fold or one in all. ``pairs`` is the number
    of pairs that they train on or score together, each in both orders.
    """
    n_folds, longest = settings.folds.n, settings.text.max_length
    held_out = pairs.held_out + pairs.unlabelled
    found = []

    def add(
        model: str, stage: str, jobs: int, section: str | None, n: int, **more: Any
    ) -> None:
        own = settings.models[model]
        base = settings.base_models[own.base]
        size = Size(base_parameters(own.base, base), own.gpus, own.lora.r)
        if section:
            work = training_work(size, getattr(own, section), n, longest)
            n = trained_pairs(getattr(own, section), n)
        else:
            work = scoring_work(size, n, longest)
        found.append(
            {"model": model, "stage": stage, "mode": "train" if section else "infer"}
            | {"jobs": jobs, "pairs": jobs * n, "work": work, "adapter": True}
            | {"precision": own.precision, "shape": shape_of(base.repo)}
            | more
        )

    for model, own in settings.models.items():
        add(model, "post-pretrain", 1, "post_pretrain", pairs.post_pretrain)
        add(model, "train", n_folds, "training", pairs.train)
        if model != "student":
            n_scored = scored_pairs(own.inference, pairs)
            add(model, "logits", n_folds, None, n_scored)
    add("student", "predict, folds", n_folds, None, pairs.dev + held_out)
    add("student", "predict, merged", 1, None, held_out, adapter=False)
    return found


def hours_table(settings: Settings, pairs: Pairs, rows: list[Row]) -> str:
    """Predict GPU hours from measured speeds; blank where one is missing.

    Beside them the hours of the cost model, which `make plan` shows, less loading; in
    the sum they stand for those that are missing.
    """
    lines, hours, modelled = [], [], []
    for each in list_work(settings, pairs):
        n_tokens = each["jobs"] * each["work"].n_tokens
        keys = (each["shape"], each["mode"], each["precision"])
        speed = find_speed(rows, *keys, adapter=each["adapter"])
        hours.append(n_tokens / speed / 3600 if speed else None)
        work = replace(each["work"], minutes=0)
        modelled.append(each["jobs"] * work.gpu_hours(MODELLED_TFLOPS))
        lines.append(
            (
                *(each["model"], each["stage"], each["precision"]),
                *(f"{each['pairs']:,.0f}", f"{n_tokens / 1e6:,.0f}"),
                f"{speed:,.0f}" if speed else "",
                f"{hours[-1]:.1f}" if speed else "",
                f"{modelled[-1]:.1f}",
            )
        )
    both = zip(hours, modelled, strict=True)
    total = sum(model if hour is None else hour for hour, model in both)
    lines.append(("all", "", "", "", "", "", f"{total:.1f}", f"{sum(modelled):.1f}"))
    head = ("model", "stage", "base", "pairs", "M tokens", "tokens/s", "GPU hours")
    head += (f"by the cost model at {MODELLED_TFLOPS}",)
    return markdown_table(head, lines)


def fill_in(text: str, tables: dict[str, str]) -> str:
    """Replace the text between a table's two marks in a document.

    Raises:
        ValueError: If a table has no marks.
    """
    for name, table in tables.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        text, n_found = re.subn(
            pattern, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL
        )
        if n_found != 1:
            raise ValueError(f"{n_found} places for the table {name}")
    return text


def render(text: str) -> str:
    """Write the document's tables from the stored results."""
    tables = {}
    for card, path in RESULTS.items():
        rows = read_rows(path)
        tables[f"speed {card}"] = speed_table(rows)
        tables[f"machine {card}"] = describe_runs(rows)
    tables["hours"] = hours_table(*published(), read_rows(RESULTS["h100"]))
    return fill_in(text, tables)


def describe_runs(rows: list[Row]) -> str:
    """Describe machines, versions and peaks of the runs, one line per day."""
    peaks: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        versions = ", ".join(f"{k} {v}" for k, v in row["versions"].items() if v)
        said = f"- {row['date']}, {row['machine']}: {versions}"
        said += f"; lengths: {row['lengths']}" if "lengths" in row else ""
        for kind, rate in row["matmul_tflops"].items():
            peaks.setdefault(said, {}).setdefault(kind, []).append(rate)
    lines = []
    for said, kinds in sorted(peaks.items()):
        spans = [f"{k} {min(v):.0f} to {max(v):.0f}" for k, v in kinds.items()]
        lines.append(f"{said}; matrix products, TFLOP/s: {', '.join(spans)}")
    return "\n".join(lines)


def main() -> None:
    """Fill the document, or print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="print, write nothing")
    if not parser.parse_args().table:
        DOCUMENT.write_text(render(DOCUMENT.read_text("utf-8")), encoding="utf-8")
        return
    for path in RESULTS.values():
        rows = read_rows(path)
        print(speed_table(rows), describe_runs(rows), sep="\n\n", end="\n\n")
    print(hours_table(*published(), read_rows(RESULTS["h100"])))


if __name__ == "__main__":
    main()

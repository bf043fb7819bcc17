"""Store the benchmarks' results as rows of a JSON list, and show them as Markdown."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KEY = ("model", "mode", "base", "variant", "gpus")


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file; none if it is not there."""
    return json.loads(path.read_text("utf-8")) if path.exists() else []


def merge_rows(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Merge rows in order of their keys; a new row replaces the old one of its key."""
    merged = {tuple(row[key] for key in KEY): row for row in [*old, *new]}
    return [merged[key] for key in sorted(merged)]


def store_row(path: Path, row: Row) -> None:
    """Store a row in a file; it replaces the old one of its key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(merge_rows(read_rows(path), [row]), indent=1)
    part = path.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def gpu_name(name: str) -> str:
    """Shorten a device's name for a file: ``NVIDIA H100 80GB HBM3`` is ``h100``."""
    model = re.search(r"\b(?:RTX )?(?:[A-Z]{1,3}\d{1,4}|\d{4})\b", name)
    return re.sub(r"\W+", "-", model[0] if model else name).strip("-").lower()


def find_row(rows: Iterable[Row], **wanted: Any) -> Row | None:
    """Find the first row that has the wanted values and a speed."""
    for row in rows:
        matches = all(row.get(key) == value for key, value in wanted.items())
        if matches and row.get("useful_tokens_per_s"):
            return row
    return None


def ratio_to_recipe(row: Row, rows: Iterable[Row]) -> float | None:
    """Divide a row's speed by the recipe's at the same work; None if unknown."""
    recipe = find_row(
        rows,
        model=row["model"],
        mode=row["mode"],
        variant=row["variant"].replace("engine", "recipe"),
        gpus=1,
    )
    if recipe is None or not row["useful_tokens_per_s"]:
        return None
    return round(row["useful_tokens_per_s"] / recipe["useful_tokens_per_s"], 2)


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a table; columns of numbers are aligned to the right."""
    lines = [list(map(str, line)) for line in lines]
    numeric = [
        all(re.fullmatch(r"[-–0-9.,× %]*", line[n]) for line in lines)
        for n in range(len(head))
    ]
    rule = ["---:" if right else "---" for right in numeric]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def speed_table(rows: Iterable[Row]) -> str:
    """Show the rows of ``benchmarks.engine`` as a Markdown table."""
    head = (
        *("model", "mode", "base", "variant", "GPUs", "tokens/s", "range"),
        *("TFLOP/s", "of peak", "GiB", "fill", "shared", "first step, s", "× recipe"),
    )
    return markdown_table(head, map(_cells, rows))


def _cells(row: Row) -> list[str]:
    place = [str(row[key]) for key in KEY]
    if not row["useful_tokens_per_s"]:
        return [*place, row.get("error", "failed"), *[""] * 8]
    low, high = row["spread"]
    return [
        *place,
        f"{row['useful_tokens_per_s']:,.0f}",
        f"{low:,.0f}–{high:,.0f}",
        _number(row["useful_tflops"], ".0f" if row["useful_tflops"] >= 10 else ".2g"),
        _number(row["peak_fraction"], ".2f"),
        _number(row["peak_gib"], ".1f"),
        _number(row["fill"], ".3f"),
        _number(row.get("shared"), ".3f"),
        _number(row["first_step_s"], ".1f"),
        _number(row["ratio_to_recipe"], ".2f"),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

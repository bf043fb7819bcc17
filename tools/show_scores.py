"""Print the scores on the test split, and where the results are."""

import csv
import sys
from pathlib import Path

REPORT = Path("results/report")
COLUMNS = [
    "stage",
    "model",
    "fold",
    "views",
    "n",
    "log_loss",
    "accuracy",
    "brier",
    "ece",
]


def score_lines(rows: list[dict[str, str]]) -> list[str]:
    """The test rows of both orders as aligned lines, with the log loss's interval."""
    table = [[*COLUMNS[:6], "95 % interval", *COLUMNS[6:]]]
    for row in rows:
        if row["split"] != "test" or row["views"] not in ("AB+BA", ""):
            continue
        cells = [_short(row[name]) for name in COLUMNS]
        interval = f"{_short(row['log_loss_low'])} {_short(row['log_loss_high'])}"
        table.append([*cells[:6], interval.strip(), *cells[6:]])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if position < 4 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def _short(text: str) -> str:
    try:
        return text if text.lstrip("-").isdigit() else f"{float(text):.4f}"
    except ValueError:
        return text


def main() -> None:
    """Print the table, then the paths of the submission and the report."""
    scores = REPORT / "scores.csv"
    try:
        with open(scores, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    except FileNotFoundError:
        sys.exit(f"error: no {scores}: `make demo` or `make run` writes it")
    print("\nScores on the test split (log loss in nats, lower is better)\n")
    print("\n".join(score_lines(rows)), end="\n\n")
    for title, path in [
        ("submission", Path("results/submission.csv")),
        ("report", REPORT / "summary.md"),
    ]:
        if path.exists():
            print(f"{title}: {path}")


if __name__ == "__main__":
    main()

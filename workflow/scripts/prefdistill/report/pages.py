"""The report's tables as HTML pages that need nothing beside them."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

from prefdistill.report.run_record import (
    RULE_COLUMNS,
    file_digests,
    read_times,
    read_versions,
    rule_rows,
)
from prefdistill.report.tables import (
    calibration_table,
    cleaning_table,
    closed_gap,
    gate_table,
    markdown_table,
    score_table,
    step_table,
)

SHELL = """\
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 70rem; margin: 1rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: 13px; }}
th, td {{ padding: .2rem .4rem; border-bottom: 1px solid #ccc; text-align: left; }}
th {{ background: #eef2f6; }}
td {{ font-variant-numeric: tabular-nums; }}
tr:hover td {{ background: #f6f8fa; }}
pre {{ background: #f4f4f4; padding: 1rem; overflow-x: auto; font-size: 13px; }}
code {{ overflow-wrap: anywhere; }}
</style></head>
<body>
{body}</body>
</html>
"""

COLUMNS = """\
How to read a row:

- **log loss**: the mean of −log of the probability that the model gave to what people
  said, in nats. Lower is better; guessing a third each gives 1.0986. It is what the
  models are trained and compared by.
- **95 % low, high**: the interval of the log loss over random draws of prompts. Two
  stages whose intervals overlap may still differ: see the paired steps below.
- **accuracy**: the share of rows whose most probable class is what people said.
- **Brier**: the mean squared distance of the probabilities to the verdict, 0 to 2.
- **ECE**: how far confidence and accuracy lie apart; 0 is perfectly calibrated.
- **swap agr.**: the share of pairs with the same verdict when the answers change
  places.
- **views**: which orders of the answers were averaged, AB, BA or both.
"""

STAGES = {
    "prior": "the shares of A, B and tie in the training rows, for every pair",
    "length": "a model that sees nothing but the lengths of the answers",
    "trees": "boosted trees on surface features; a language model has to beat these",
    "teacher": "the large models, each fold's own",
    "teacher_calibrated": "the same after their probabilities were set right on dev",
    "student_labels_only": "small models trained on people's verdicts alone",
    "student": "small models trained on verdicts and the teachers' probabilities",
    "adapters": "the students of all folds, their logits averaged",
    "merged": "one model, the students' weight changes averaged into it",
    "gptq8": "that model in 8 bits",
    "gptq4": "that model in 4 bits",
    "final": "what is predicted: the judge, calibrated, both orders averaged",
    "bayes": "the simulated judge itself: nobody can do better",
}


def html_page(title: str, markdown: str) -> str:
    """A Markdown text with tables as a page with its own style and no links out."""
    body = MarkdownIt("commonmark").enable("table").render(f"# {title}\n\n{markdown}")
    return SHELL.format(title=escape(title), body=body)


def scores_page(
    scores: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]]
) -> str:
    """Every stage on test, what the columns and stages are, and the paired steps.

    Args:
        scores: The test rows of the score table.
        steps: Rows of the step table.
    """
    n_rows = int(max(row["n"] for row in scores))
    shown = {row["stage"]: None for row in scores}
    stages = [(name, STAGES[name]) for name in shown if name in STAGES]
    parts = [
        f"{n_rows:,} test rows, which no model and no calibration has seen.",
        score_table(scores),
        *closed_gap(scores),
        COLUMNS,
        "## The stages",
        markdown_table(["stage", "what it is"], stages),
        "A stage with `_calibrated` is the stage before with its probabilities set "
        "right on rows of their own.",
        "## What each step changes on test",
        "The difference in log loss from one stage to the next on the same rows; "
        "negative is a gain. Where the interval holds 0, the step may have changed "
        "nothing.",
        step_table(steps, "test"),
        "## The same on dev",
        "Each row by the model of the fold that did not train on it.",
        step_table(steps, "dev"),
    ]
    return html_page("Scores", "\n\n".join(parts))


def data_page(
    cleaning: Mapping[str, Any], folds: Mapping[str, Any], lengths: Mapping[str, Any]
) -> str:
    """What came in, what was dropped or repaired, the folds, and what was cut.

    Args:
        cleaning: Content of ``cleaning.json``.
        folds: Content of ``folds.json``.
        lengths: Content of ``lengths.json``.
    """
    repaired = list(cleaning["repaired"].items())
    every = lengths["every"]
    rows = "the rows" if every == 1 else f"one in {every} rows"
    parts = [
        "## Cleaning",
        "Rows by source. A row is dropped for the first reason that fits: `none_hot` "
        "and `multi_hot` have no or several winners, `duplicate_contradictory` are "
        "repeats with another verdict.",
        cleaning_table(cleaning),
        "Repaired and kept, all sources together:",
        markdown_table(["what", "rows"], repaired) if repaired else "nothing.",
        "## Folds",
        "Rows that share a prompt stay together. A fold's model trains on *train* and "
        "is scored on *dev*; *select* and *test* are the same rows for every fold.",
        _fold_table(folds["folds"]),
        "## Lengths",
        f"Tokens of {rows} of fold 0 by the student's tokenizer. Rows of more than "
        f"{lengths['max_length']:,} tokens (`text.max_length`) are cut: both ends of a "
        "long text stay, the longer answer is trimmed first.",
        _length_table(lengths["splits"]),
    ]
    return html_page("Data", "\n\n".join(parts))


def _fold_table(folds: Mapping[str, Any]) -> str:
    rows = [
        (fold, split, part["n"], *part["class_shares"].values())
        for fold, splits in folds.items()
        for split, part in splits.items()
    ]
    return markdown_table(["fold", "split", "rows", "A", "B", "tie"], rows)


def _length_table(splits: Mapping[str, Any]) -> str:
    rows = [
        (
            split,
            part["rows"],
            part["rows_cut"],
            f"{part['rows_cut'] / max(part['rows'], 1):.1%}",
            f"{part['tokens_cut'] / max(part['tokens'], 1):.1%}",
            *part["quantiles"].values(),
        )
        for split, part in splits.items()
    ]
    quantiles = [_percent(q) for q in next(iter(splits.values()))["quantiles"]]
    head = ["split", "rows", "rows cut", "share", "share of tokens cut"]
    return markdown_table([*head, *quantiles], rows)


def _percent(quantile: str) -> str:
    share = float(quantile)
    return "longest" if share == 1 else f"{share:.0%} have at most"


def models_page(
    teachers: Mapping[str, Any],
    exported: Mapping[str, Any],
    weights: Mapping[str, Any],
    teacher_gate: str,
) -> str:
    """Gates, calibrations and fold weights.

    Args:
        teachers: ``calibration.json`` by teacher and fold.
        exported: ``calibration.json`` by exported model.
        weights: Content of ``weights.json``.
        teacher_gate: What the gate does: refuse, warn or off.
    """
    folds = zip(weights["folds"], map(float, weights["weights"]), strict=True)
    parts = [
        f"## Teachers (gate: {teacher_gate})",
        "Information gain is how much better a teacher predicts the verdicts of dev "
        "rows than the class shares do, in nats a row. One whose interval touches 0 "
        "has nothing to teach.",
        gate_table(teachers),
        "## Calibrations",
        "A calibration multiplies the logits by a and adds b. Its effect is measured "
        "on rows that it was not fitted to: dev for teachers, select for judges.",
        calibration_table({**teachers, **exported}),
        f"## Fold weights (method: {weights['method']})",
        markdown_table(["fold", "weight"], list(folds)),
    ]
    return html_page("Models", "\n\n".join(parts))


def run_page(
    times: Sequence[tuple[Any, ...]],
    versions: Mapping[str, str],
    digests: Mapping[str, str],
    config_text: str,
) -> str:
    """Time by rule, versions, digests, and the configuration.

    Args:
        times: Rows of ``RULE_COLUMNS``.
        versions: By name.
        digests: SHA-256 by path.
        config_text: The configuration with its defaults, as YAML.
    """
    digest_rows = [(name, f"`{value}`") for name, value in digests.items()]
    parts = [
        "## Time by rule",
        "From the benchmark files of the jobs that have one here. A job that was "
        "stopped and went on counts with its last part; GB is the largest job's "
        "memory. GPU hours are hours times GPUs, for jobs whose model lay on a GPU.",
        markdown_table(RULE_COLUMNS, times)
        if times
        else "No benchmark files were found.",
        "## Versions",
        markdown_table(["what", "version"], list(versions.items())),
        "## Fingerprints (SHA-256)",
        "The same digests mean the same data, bases and weights, bit by bit.",
        markdown_table(["file", "digest"], digest_rows),
        "## Configuration",
        "With every default written out.",
        f"```yaml\n{config_text}```",
    ]
    return html_page("Run", "\n\n".join(parts))


def record_page(
    config: Mapping[str, Any],
    fingerprinted: Iterable[Path],
    benchmarks: Path,
    logs: Path,
) -> str:
    """Write the page of the run that lies here.

    Args:
        config: The configuration with its defaults.
        fingerprinted: Files whose digests are shown.
        benchmarks: Folder of the benchmark files.
        logs: Folder of the jobs' logs.
    """
    gpus = {name: teacher["gpus"] for name, teacher in config["teachers"].items()}
    gpus["student"] = config["student"]["gpus"]
    return run_page(
        rule_rows(read_times(benchmarks, logs, gpus)),
        read_versions(Path(__file__).parent),
        file_digests(fingerprinted),
        yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
    )

"""Write the report's tables as HTML pages that load no other file."""

from collections.abc import Mapping, Sequence
from html import escape as html_escape
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

from prefdistill.data.prompts import describe_truncation
from prefdistill.report.inputs import PageFiles
from prefdistill.report.markdown_tables import (
    calibration_table,
    cleaning_table,
    closed_gap,
    gate_table,
    markdown_table,
    read_records,
    read_rows,
    rows_on_test,
    scores_markdown,
    step_table,
)
from prefdistill.report.markdown_text import code_block, escape
from prefdistill.report.run_record import (
    RULE_COLUMNS,
    file_digests,
    mixed_versions,
    read_times,
    read_versions,
    rule_rows,
)
from prefdistill.settings import TextSettings, read
from prefdistill.storage.records import read_json

SHELL = """\
<!doctype html>
<html lang="en">
<head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 70rem; margin: 1rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: 13px; }}
th, td {{ padding: .2rem .4rem; border-bottom: 1px solid #ccc; text-align: left; }}
th {{ background: #eef2f6; }}
td {{ font-variant-numeric: tabular-nums; }}
tr:hover td {{ background: #f6f8fa; }}
pre {{ background: #f4f4f4; padding: 1rem; overflow-x: auto; font-size: 13px; }}
code, td {{ overflow-wrap: anywhere; }}
</style></head>
<body>
{body}</body>
</html>
"""

COLUMNS = """\
How to read a row:

- **log loss**: the mean of −log p, where p is the probability that the model gave to
  the human verdict, in nats. Lower is better. A third for each class gives 1.0986.
  Models are trained on it and compared by it.
- **95 % low, high**: the bootstrap interval of the log loss over prompts. Two stages
  whose intervals overlap may still differ: see the paired differences below.
- **accuracy**: the share of rows whose most probable class is the human verdict.
- **Brier**: the mean squared distance from the probabilities to the verdict, 0 to 2.
- **ECE**: expected calibration error, the mean distance between confidence and
  accuracy; 0 is perfectly calibrated.
- **swap agr.**: the share of pairs that get the same verdict in both orders of the
  answers.
- **views**: the orders of the answers whose probabilities were averaged: AB, BA or
  both.
"""

STAGES = {
    "prior": "baseline: the shares of A, B and tie in the training rows",
    "length": "baseline: a model that sees only the lengths of the answers",
    "trees": "baseline: boosted trees on surface features of the texts",
    "teacher": "large models, one per fold",
    "teacher_calibrated": "the same, calibrated on dev rows",
    "student_labels_only": "small models trained on human verdicts alone, one per fold",
    "student": "small models trained on verdicts and the teachers' probabilities",
    "adapters": "the mean of the logits of all folds' students",
    "merged": "one model: the base plus the mean of the students' weight changes",
    "gptq8": "the merged model, quantised to 8 bits",
    "gptq4": "the merged model, quantised to 4 bits",
    "final": "the submission: a calibrated judge, both orders averaged",
    "bayes": "the simulator's own probabilities: the best possible",
}


def html_page(title: str, markdown: str) -> str:
    """Render Markdown as an HTML page with its own style and no link to other files.

    HTML, links and images in the Markdown stay text: the pages need none.
    """
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    renderer.disable(["link", "image", "autolink", "reference"])
    body = renderer.render(f"# {title}\n\n{markdown}")
    return SHELL.format(title=html_escape(title), body=body)


def scores_page(
    scores: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]]
) -> str:
    """Write the page of scores: every stage on test, and the paired differences.

    Args:
        scores: The test rows of the score table.
        steps: Rows of the step table.
    """
    n_rows = int(max(row["n"] for row in scores))
    shown = {row["stage"]: None for row in scores}
    stages = [(name, STAGES[name]) for name in shown if name in STAGES]
    parts = [
        f"{n_rows:,} test rows. No model and no calibration was fitted on them.",
        scores_markdown(scores),
        *closed_gap(scores),
        COLUMNS,
        "## The stages",
        markdown_table(["stage", "what it is"], stages),
        "`X_calibrated` is the stage X with its logits scaled by a fit on rows that X "
        "was not trained on.",
        "## Change in log loss from stage to stage on test",
        "Differences on the same rows, in nats; negative is a gain. If the interval "
        "holds 0, the step may have changed nothing.",
        step_table(steps, "test"),
        "## The same on dev",
        "Each row is scored by the model of the fold that did not train on it.",
        step_table(steps, "dev"),
    ]
    return html_page("Scores", "\n\n".join(parts))


def data_page(
    cleaning: Mapping[str, Any],
    folds: Mapping[str, Any],
    lengths: Mapping[str, Any],
    text: TextSettings,
) -> str:
    """Write the page of data: rows dropped or repaired, folds, and rows cut.

    Args:
        cleaning: Content of ``cleaning.json``.
        folds: Content of ``folds.json``.
        lengths: Content of ``lengths.json``.
        text: How pairs become tokens.
    """
    repaired = list(cleaning["repaired"].items())
    every = lengths["every"]  # a large fold is sampled
    rows = "the rows" if every == 1 else f"one in {every} rows"
    parts = [
        "## Cleaning",
        "Rows by source. A row is dropped for the first reason that applies. "
        "`none_hot` has no winner, `multi_hot` has several, `duplicate_contradictory` "
        "repeats a pair with another verdict.",
        cleaning_table(cleaning),
        "Rows that were repaired and kept, all sources together:",
        markdown_table(["repair", "rows"], repaired) if repaired else "None.",
        "## Folds",
        "Rows that share a prompt are in the same split. A fold's model trains on "
        "*train* and is scored on *dev*. *select* and *test* are the same rows for "
        "every fold.",
        _fold_table(folds["folds"]),
        "## Lengths",
        f"Tokens of {rows} of fold 0 before the cut to `text.max_length`, counted by "
        f"the student's tokenizer. {describe_truncation(text)}",
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
    """Write the page of models: gates, calibrations and fold weights.

    Args:
        teachers: ``calibration.json`` by teacher and fold.
        exported: ``calibration.json`` by exported model.
        weights: Content of ``weights.json``.
        teacher_gate: What the gate does: refuse, warn or off.
    """
    folds = zip(weights["folds"], map(float, weights["weights"]), strict=True)
    parts = [
        f"## Teachers (gate: {teacher_gate})",
        "Information gain is the log probability of the verdicts of dev rows minus "
        "that under the class shares, in nats per row. A teacher passes the gate if "
        "the whole interval is above 0.",
        gate_table(teachers),
        "## Calibrations",
        "A calibration multiplies the logits of each class by a scale a and adds a "
        "shift b. Its effect is cross-fitted: each row is scaled by a fit on other "
        "rows. Teachers use dev rows, judges use select rows.",
        calibration_table({**teachers, **exported}),
        "## Weights of the folds in the ensemble (method: "
        f"{escape(str(weights['method']))})",
        markdown_table(["fold", "weight"], list(folds)),
    ]
    return html_page("Models", "\n\n".join(parts))


def run_page(
    times: Sequence[tuple[Any, ...]],
    versions: Mapping[str, str],
    digests: Mapping[str, str],
    config_text: str,
    mixed: Sequence[tuple[str, str, int]] = (),
) -> str:
    """Write the page of the run: time by rule, versions, digests, configuration.

    Args:
        times: Rows of ``RULE_COLUMNS``.
        versions: Version by package, of this process.
        digests: SHA-256 by path.
        config_text: The configuration with its defaults, as YAML.
        mixed: From ``mixed_versions``.
    """
    parts = [
        "## Time by rule",
        "From Snakemake's timing files, for the jobs that have one. A resumed job "
        "counts only the time since it resumed. GPU hours are hours times GPUs, for "
        "jobs whose model was on a GPU. GB is the peak memory of the largest job.",
        markdown_table(RULE_COLUMNS, times) if times else "No timing files were found.",
        "## Versions",
        markdown_table(["component", "version"], list(versions.items())),
        "The files of the run were made with several versions of these packages. A "
        "changed version runs nothing again; delete what should be made anew."
        if mixed
        else "All files of the run with a record were made with one version of each.",
        *([markdown_table(["package", "version", "files"], mixed)] if mixed else []),
        "## Fingerprints (SHA-256)",
        "Equal digests mean equal data, base models and weights, bit by bit.",
        markdown_table(["file", "digest"], list(digests.items())),
        "## Configuration",
        "All keys, with their defaults.",
        code_block(config_text, "yaml"),
    ]
    return html_page("Run", "\n\n".join(parts))


def report_pages(
    files: PageFiles,
    judges: Sequence[str],
    teachers: Sequence[str],
    config: Mapping[str, Any],
    records: tuple[Path, Path],
) -> dict[str, str]:
    """Read the report's tables and the run's records; return four pages by name.

    Args:
        files: The files of the pages.
        judges: The name of each exported model.
        teachers: The name of each teacher's fold.
        config: The configuration with its defaults.
        records: Folders of Snakemake's timing files and of the jobs' logs.
    """
    gpus = {name: teacher["gpus"] for name, teacher in config["teachers"].items()}
    gpus["student"] = config["student"]["gpus"]
    scores = rows_on_test(read_rows(files.scores), judges)
    return {
        "scores": scores_page(scores, read_rows(files.steps)),
        "data": data_page(
            cleaning=read_json(files.cleaning),
            folds=read_json(files.folds),
            lengths=read_json(files.lengths),
            text=read(TextSettings, config["text"]),
        ),
        "models": models_page(
            read_records(teachers, files.teacher_calibrations),
            read_records(judges, files.judge_calibrations),
            read_json(files.weights),
            config["distillation"]["teacher_gate"],
        ),
        "run": run_page(
            rule_rows(read_times(*records, gpus)),
            read_versions(Path(__file__).parent),
            file_digests(files.fingerprinted),
            yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
            mixed_versions(),
        ),
    }

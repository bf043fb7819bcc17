"""The scores and tables of `trl_real.py`, over the rows of all parts."""

import ast
import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import reward_model
from prefdistill.report.tables import markdown_table
from prefdistill.scores.metrics import (
    accuracy,
    brier,
    ece,
    group_bootstrap,
    log_loss,
    row_log_loss,
)

SYSTEMS = ("TRL reward model", "student")


def chosen(part: dict[str, Any], name: str) -> dict[str, Any]:
    """The attempt of a system whose test rows were kept."""
    return min(part["attempts"][name], key=lambda attempt: attempt["dev_log_loss"])


def score_systems(parts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Scores over the test rows of all parts, and the difference to TRL's."""
    labels = np.concatenate([part["label"] for part in parts])
    groups = np.concatenate([part["group"] for part in parts])
    probs = {
        name: np.concatenate([part["probs"][name] for part in parts])
        for name in parts[0]["probs"]
    }
    reference = row_log_loss(probs[SYSTEMS[0]], labels)
    scores = {}
    for name, values in probs.items():
        losses = row_log_loss(values, labels)
        scores[name] = {
            "log_loss": asdict(group_bootstrap(losses, groups)),
            "accuracy": accuracy(values, labels),
            "brier": brier(values, labels),
            "ece": ece(values, labels),
            "less_trl": asdict(group_bootstrap(losses - reference, groups)),
        }
    for name in SYSTEMS:
        runs = [chosen(part, name) for part in parts]
        for key in ("train_s", "score_s"):
            scores[name][key] = float(np.median([run[key] for run in runs]))
    return scores


def code_lines(source: str) -> int:
    """Lines of Python but for blank ones, comments and docstrings."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
            first = node.body[0]
            documented |= set(range(first.lineno, first.end_lineno + 1))
    lines = enumerate(map(str.strip, source.splitlines()), start=1)
    return sum(
        bool(line) and not line.startswith("#") and number not in documented
        for number, line in lines
    )


def lines_to_write() -> dict[str, int]:
    """Lines that a user writes: code around TRL, or settings of this workflow."""
    settings = Path(__file__).resolve().parents[1] / "config/small.yaml"
    lines = map(str.strip, settings.read_text("utf-8").splitlines())
    return {
        SYSTEMS[0]: code_lines(inspect.getsource(reward_model)),
        SYSTEMS[1]: sum(bool(line) and not line.startswith("#") for line in lines),
    }


def page(parts: list[dict[str, Any]], scores: dict[str, dict[str, Any]]) -> str:
    """The tables as Markdown: all systems over all parts, then part by part."""
    rows = []
    for name, score in scores.items():
        loss, step = score["log_loss"], score["less_trl"]
        rows.append(
            [
                name, "{mean:.4f} [{low:.4f}, {high:.4f}]".format(**loss),
                score["accuracy"], score["brier"], score["ece"],
                "" if name == SYSTEMS[0]
                else "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**step),
                score.get("train_s"), score.get("score_s"),
            ]
        )  # fmt: skip
    header = [
        "model", "log loss", "accuracy", "Brier", "ECE", "less TRL",
        "training, s", "scoring, s",
    ]  # fmt: skip
    by_part = [
        [
            part["part"], part["n"]["train"], part["n"]["test"],
            *[f"{chosen(part, name)['rate']:g}" for name in SYSTEMS],
            *[log_loss(np.array(probs), np.array(part["label"]))
              for probs in part["probs"].values()],
        ]
        for part in parts
    ]  # fmt: skip
    part_header = ["part", "train rows", "test rows", *[f"rate, {n}" for n in SYSTEMS]]
    part_header += parts[0]["probs"]
    lines = ", ".join(f"{name} {n}" for name, n in lines_to_write().items())
    n_rows = sum(part["n"]["test"] for part in parts)
    return (
        f"{n_rows} test rows of {len(parts)} parts. Lines to write: {lines}.\n\n"
        f"{markdown_table(header, rows)}\n\n{markdown_table(part_header, by_part)}\n"
    )

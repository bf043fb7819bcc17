"""Fit and score baselines without a language model: class prior, length, trees.

Each is trained on both orders of every pair and scored as the mean of both orders, so
it cannot use the position of an answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from prefdistill.classes import swap_classes, swap_labels
from prefdistill.scores.metrics import (
    Labels,
    class_prior,
    labels_of,
    null_rows,
    with_unlabelled,
)
from prefdistill.scores.views import PROBABILITY_COLUMNS

STAGES = ("prior", "length", "trees")
BASELINES_SCHEMA = pa.schema(
    [
        pa.field("stage", pa.string()),
        pa.field("fold", pa.int32()),
        pa.field("split", pa.string()),
        pa.field("id", pa.string()),
        *[pa.field(name, pa.float64()) for name in PROBABILITY_COLUMNS],
    ]
)
_WORD = re.compile(r"\w+")
_LIST_LINE = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")


def join_turns(turns: Sequence[str | None] | None) -> str:
    """Join the turns of a prompt or an answer to one text; nulls count as empty."""
    return "\n".join(turn or "" for turn in turns or [])


def answer_features(text: str, prompt_words: frozenset[str]) -> list[float]:
    """Compute features of one answer: size, layout, characters, words, overlap."""
    words = _WORD.findall(text.lower())
    distinct = set(words)
    n_chars, n_words = max(len(text), 1), max(len(words), 1)
    n_digits = sum(map(str.isdigit, text))
    n_upper = sum(map(str.isupper, text))
    n_other = sum(not (c.isalnum() or c.isspace()) for c in text)
    shared = len(distinct & prompt_words)
    return [
        np.log1p(len(text)),
        np.log1p(len(words)),
        np.log1p(text.count("\n")),
        np.log1p(len(_SENTENCE_END.findall(text))),
        np.log1p(len(_LIST_LINE.findall(text))),
        np.log1p(text.count("```") + text.count("{")),
        np.log1p(text.count("**") + text.count("\n#")),
        np.log1p(text.count("?")),
        np.log1p(text.count("!")),
        n_digits / n_chars,
        n_upper / n_chars,
        n_other / n_chars,
        len(distinct) / n_words,
        sum(map(len, words)) / n_words,
        shared / max(len(prompt_words), 1),
        shared / max(len(distinct), 1),
    ]


@dataclass(frozen=True)
class Features:
    """Surface features of pairs.

    Attributes:
        prompt: ``(n, n_prompt)`` float64.
        first: ``(n, n_answer)`` float64, of the answer shown first.
        second: ``(n, n_answer)`` float64.
        same: ``(n, 1)`` share of words that the two answers have in common.
    """

    prompt: np.ndarray
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray

    def rows(self, rows: np.ndarray) -> "Features":
        """Select the rows of a boolean mask or an index array."""
        return Features(
            self.prompt[rows], self.first[rows], self.second[rows], self.same[rows]
        )

    def swapped(self) -> "Features":
        """Return the same pairs in the other order."""
        return Features(self.prompt, self.second, self.first, self.same)

    def all_columns(self) -> np.ndarray:
        """Concatenate the inputs of the trees, ``(n, n_columns)`` float64."""
        difference = self.first - self.second
        return np.hstack([self.prompt, self.first, self.second, difference, self.same])

    def length_columns(self) -> np.ndarray:
        """Compute the inputs of the length model, ``(n, 4)`` float64."""
        first, second = self.first[:, :1], self.second[:, :1]
        ratio = first - second
        # A linear model of log lengths cannot treat an empty answer as a special case.
        empty = (first == 0).astype(float) - (second == 0).astype(float)
        return np.hstack([ratio, np.abs(ratio), first + second, empty])


def pair_features(table: pa.Table) -> Features:
    """Compute features of the pairs in ``prompt``, ``response_a``, ``response_b``."""
    prompts, first, second, same = [], [], [], []
    for batch in table.select(["prompt", "response_a", "response_b"]).to_batches(512):
        for row in batch.to_pylist():
            prompt, a, b = map(join_turns, row.values())
            words = _WORD.findall(prompt.lower())
            known = frozenset(words)
            prompts.append(
                [
                    np.log1p(len(prompt)),
                    np.log1p(len(words)),
                    np.log1p(prompt.count("\n")),
                    np.log1p(prompt.count("?")),
                    float("```" in prompt or "{" in prompt),
                    float(len(row["prompt"] or [])),
                ]
            )
            first.append(answer_features(a, known))
            second.append(answer_features(b, known))
            both = (set(_WORD.findall(a.lower())), set(_WORD.findall(b.lower())))
            same.append([len(both[0] & both[1]) / max(len(both[0] | both[1]), 1)])
    parts = [np.array(part, np.float64) for part in (prompts, first, second, same)]
    return Features(*parts)


def _length_model() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def _tree_model(seed: int) -> HistGradientBoostingClassifier:
    # No early stopping: it would hold out rows that share prompts with the others.
    return HistGradientBoostingClassifier(
        max_iter=80,
        learning_rate=0.06,
        max_leaf_nodes=12,
        min_samples_leaf=20,
        l2_regularization=5.0,
        early_stopping=False,
        random_state=seed,
    )


def _fit_predict(
    model: Pipeline | HistGradientBoostingClassifier,
    columns: str,
    train: Features,
    labels: np.ndarray,
    scored: Features,
) -> np.ndarray:
    """Train on both orders; return ``(n, 3)`` probabilities averaged over both."""

    def view(features: Features) -> np.ndarray:
        return getattr(features, columns)()

    swapped = swap_labels(labels)
    model.fit(
        np.vstack([view(train), view(train.swapped())]),
        np.concatenate([labels, swapped]),
    )

    def predict(features: Features) -> np.ndarray:
        # A class that never occurs in training keeps a small probability.
        probs = np.full((len(features.same), 3), 1e-3)
        probs[:, model.classes_] = model.predict_proba(view(features))
        return probs / probs.sum(axis=1, keepdims=True)

    return (predict(scored) + swap_classes(predict(scored.swapped()))) / 2


def fit_baselines(
    features: Features, labels: Labels, train: np.ndarray, scored: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Fit every baseline on some rows and score others.

    Args:
        features: Features of all rows.
        labels: Labels of the same rows, in the same order.
        train: ``(n,)`` mask of the rows to fit on.
        scored: ``(n,)`` mask of the rows to score.
        seed: Seed of the trees.

    Returns:
        For each stage ``(n_scored, 3)`` float64 probabilities of (A, B, tie). If
        nothing is scored, or training has a single class, all are the prior.
    """
    split = np.where(train, "train", labels.split)
    marked = Labels(labels.ids, split, labels.label, labels.group, labels.source)
    prior = np.tile(class_prior(marked), (int(scored.sum()), 1))
    rows = null_rows(marked) & train
    known, answers = features.rows(rows), labels.label[rows]
    if not len(prior) or len(np.unique(answers)) < 2:
        return {stage: prior for stage in STAGES}
    wanted = features.rows(scored)
    length = _fit_predict(_length_model(), "length_columns", known, answers, wanted)
    trees = _fit_predict(_tree_model(seed), "all_columns", known, answers, wanted)
    return {"prior": prior, "length": length, "trees": trees}


def baseline_table(fold: int, scored: Labels, probs: dict[str, np.ndarray]) -> pa.Table:
    """Build the rows of ``baselines.parquet`` of one fit; fold -1 means no fold."""
    parts = []
    for stage, values in probs.items():
        n_rows = len(scored.ids)
        columns = [[stage] * n_rows, [fold] * n_rows]
        columns += [scored.split.tolist(), scored.ids.tolist(), *values.T]
        arrays = [
            pa.array(column, field.type)
            for column, field in zip(columns, BASELINES_SCHEMA, strict=True)
        ]
        parts.append(pa.Table.from_arrays(arrays, schema=BASELINES_SCHEMA))
    return pa.concat_tables(parts)


def score_fold(
    fold: int, table: pa.Table, unlabelled: pa.Table | None, seed: int
) -> pa.Table:
    """Fit on a fold's train side and score its dev rows; with fold 0, select and test.

    Args:
        fold: Number of the fold.
        table: Its fold file.
        unlabelled: Pairs to predict, scored with select and test; or None.
        seed: Seed of the trees.

    Returns:
        Rows of ``baselines.parquet``.
    """
    labels = labels_of(table)
    used = null_rows(labels) | (labels.split != "train")
    table, labels = table.filter(pa.array(used)), labels.rows(used)
    if fold == 0 and unlabelled is not None:
        table = pa.concat_tables([table, unlabelled])
        labels = with_unlabelled(labels, unlabelled)
    features = pair_features(table)
    parts = [(fold, labels.split == "train", labels.split == "dev")]
    if fold == 0:
        # Every fold file holds the rows of select and test, so they are scored once, by
        # a fit on all other rows.
        held_out = ~np.isin(labels.split, ["train", "dev"])
        parts.append((-1, ~held_out, held_out))
    tables = []
    for number, train, scored in parts:
        probs = fit_baselines(features, labels, train, scored, seed)
        tables.append(baseline_table(number, labels.rows(scored), probs))
    return pa.concat_tables(tables)

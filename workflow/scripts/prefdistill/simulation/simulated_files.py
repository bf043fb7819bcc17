"""Write simulated pairs as CSV files of Kaggle's form, dirty rows included.

Beside them goes the truth: the judge's probabilities of every row.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefdistill.classes import SWAPPED
from prefdistill.data.pairs import TEXT_COLUMNS
from prefdistill.settings import SimulationSettings
from prefdistill.simulation.simulated_pairs import (
    MODEL_NAMES,
    N_PROMPTS,
    answer_qualities,
    answer_texts,
    bayes_log_loss,
    draw_answers,
    draw_labels,
    judge_probs,
    prompt_texts,
)
from prefdistill.storage.tables import TARGET_COLUMNS, write_table
from prefdistill.storage.whole_files import write_csv_rows

CSV_COLUMNS = ("id", "model_a", "model_b", *TEXT_COLUMNS, *TARGET_COLUMNS)
TEST_COLUMNS = ("id", *TEXT_COLUMNS)
TRUTH_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("p_a", pa.float64()),
        pa.field("p_b", pa.float64()),
        pa.field("p_tie", pa.float64()),
    ]
)

# Kinds of dirt in every file. The judge sees the first two; the others only change the
# text.
TEXT_DIRT = (
    *("identical", "empty_answer", "null_turn"),
    *("lone_surrogate", "special_token", "crlf"),
)
# Kinds of dirt in labelled files only. Cleaning drops these rows.
LABELLED_DIRT = (
    *("none_hot", "multi_hot", "empty_pair", "empty_prompt"),
    *("duplicate", "swapped_duplicate"),
)
SPECIAL_TOKENS = ("<start_of_turn>user", "<|im_end|>", "</s>", "<|eot_id|>", "<eos>")

SOURCES = ("train", "extra", "ultra", "test")
# Share of the rows whose prompt comes from train, for the folds to hold out.
SHARED_PROMPTS = {"extra": 0.3, "ultra": 0.25}
ROWS_PER_PROMPT = 3
EXTRA_NOISE = 0.2  # share of the labels of "extra" that are random
CHUNK_ROWS = 20_000  # simulated at a time, to bound the memory


@dataclass
class SimulatedRows:
    """Hold ``n`` consecutive rows of one file.

    Attributes:
        texts: Prompt, answer A and answer B: three lists of ``n`` lists of turns.
        models: ``(n, 2)`` int64 indices into ``MODEL_NAMES``.
        probs: ``(n, 3)`` float64 probabilities that the labels were drawn from.
        labels: ``(n,)`` int64 class indices.
        dirt: ``n`` kinds of dirt; empty for a clean row.
    """

    texts: list[list[list[str | None]]]
    models: np.ndarray
    probs: np.ndarray
    labels: np.ndarray
    dirt: list[str]


def _n_rows(settings: SimulationSettings, source: str) -> int:
    """Return the number of rows to simulate for one of ``SOURCES``."""
    return getattr(settings, f"n_{source}")


def prompt_pools(settings: SimulationSettings) -> dict[str, np.ndarray]:
    """Draw disjoint sets of prompt codes, one for each source.

    A set holds a third as many prompts as its file has rows, so that prompts repeat.

    Returns:
        For each source, int64 codes.
    """
    codes = np.random.default_rng([settings.seed, 99]).permutation(N_PROMPTS)
    wanted = [max(_n_rows(settings, name) // ROWS_PER_PROMPT, 1) for name in SOURCES]
    # Large files ask for more prompts than there are.
    scale = min(1.0, N_PROMPTS / sum(wanted))
    ends = np.cumsum([max(int(size * scale), 1) for size in wanted])
    return dict(zip(SOURCES, np.split(codes[: ends[-1]], ends[:-1]), strict=True))


def _choose_dirt(
    rng: np.random.Generator, n_rows: int, fraction: float, kinds: tuple[str, ...]
) -> list[str]:
    """Put ``kinds`` in equal shares on random rows.

    The first row stays clean, so that duplicates have a row to copy.
    """
    dirt = [""] * n_rows
    n_dirty = min(round(fraction * n_rows), n_rows - 1)
    for number, row in enumerate(1 + rng.permutation(n_rows - 1)[:n_dirty]):
        dirt[row] = kinds[number % len(kinds)]
    return dirt


def _add_text_dirt(rng: np.random.Generator, rows: SimulatedRows) -> None:
    """Change the texts of dirty rows in place, after the judge has seen them."""
    prompts, first, second = rows.texts
    for row, kind in enumerate(rows.dirt):
        answer = (first, second)[rng.integers(2)] if kind else first
        if kind == "empty_prompt":
            prompts[row] = [" " for _ in prompts[row]]
        elif kind == "null_turn":
            for texts in (first, second):
                texts[row] = [turn or None for turn in texts[row]]
        elif kind == "lone_surrogate":
            answer[row][-1] += " \ud83d"
        elif kind == "special_token":
            answer[row][0] += " " + SPECIAL_TOKENS[rng.integers(len(SPECIAL_TOKENS))]
        elif kind == "crlf":
            prompts[row][0] += "\r\n"
            answer[row][0] = answer[row][0].replace("\n", "\r\n") + "\r\n"


def _copy_duplicates(
    rng: np.random.Generator, rows: SimulatedRows, donor: SimulatedRows
) -> None:
    """Overwrite duplicates with clean rows of ``donor``, some with answers swapped."""
    clean = [row for row, kind in enumerate(donor.dirt) if not kind]
    for row, kind in enumerate(rows.dirt):
        if not kind.endswith("duplicate"):
            continue
        source = clean[rng.integers(len(clean))]
        swap = kind == "swapped_duplicate"
        for column, texts in enumerate(rows.texts):
            # Columns 1 and 2, the answers, change places; the prompt stays.
            taken = column if column == 0 or not swap else 3 - column
            texts[row] = list(donor.texts[taken][source])
        classes = list(SWAPPED) if swap else [0, 1, 2]
        rows.models[row] = donor.models[source][classes[:2]]
        rows.probs[row] = donor.probs[source][classes]
        rows.labels[row] = classes[donor.labels[source]]


def _vary_prompts(rng: np.random.Generator, prompts: list[list[str | None]]) -> None:
    """Change the case or spaces of 5 % of the prompts, which normalisation undoes."""
    for row in np.flatnonzero(rng.random(len(prompts)) < 0.05):
        text = prompts[row][0]
        prompts[row][0] = text.lower() if rng.random() < 0.5 else f" {text} "


def simulate_rows(
    rng: np.random.Generator,
    source: str,
    prompts: np.ndarray,
    dirty_fraction: float,
    donor: SimulatedRows | None = None,
) -> SimulatedRows:
    """Simulate one row for every prompt code.

    Args:
        rng: Generator of everything random.
        source: train, extra (noisier labels), ultra (no ties) or test.
        prompts: ``(n,)`` int64 prompt codes; ``n`` is at least 1.
        dirty_fraction: Share of dirty rows, with equal numbers of each kind.
        donor: SimulatedRows of another file that duplicates copy; None for these rows.
    """
    kinds = TEXT_DIRT if source == "test" else LABELLED_DIRT + TEXT_DIRT
    dirt = _choose_dirt(rng, len(prompts), dirty_fraction, kinds)
    answers = draw_answers(rng, prompts)
    kind = np.array(dirt)
    # Identical and empty answers are set before judging: their labels fit their texts.
    same = kind == "identical"
    for name in ("format", "n_items", "opening", "closing", "items"):
        values = getattr(answers, name)
        values[same, 1] = values[same, 0]
    one_empty = np.flatnonzero((kind == "empty_answer") | (kind == "null_turn"))
    answers.empty[one_empty, rng.integers(2, size=len(one_empty))] = True
    answers.empty[kind == "empty_pair"] = True
    probs = judge_probs(
        answer_qualities(answers),
        ties=source != "ultra",
        noise=EXTRA_NOISE if source == "extra" else 0.0,
    )
    texts = [prompt_texts(answers), answer_texts(answers, 0), answer_texts(answers, 1)]
    rows = SimulatedRows(texts, answers.model, probs, draw_labels(rng, probs), dirt)
    _vary_prompts(rng, rows.texts[0])
    _add_text_dirt(rng, rows)
    _copy_duplicates(rng, rows, donor or rows)
    return rows


def csv_records(
    rows: SimulatedRows, first_id: int, labelled: bool
) -> Iterator[list[Any]]:
    """Turn rows into CSV cells, numbering them from ``first_id``.

    Turns become JSON lists and a label three columns of 0 and 1. Without ``labelled``,
    rows have the columns ``TEST_COLUMNS``.
    """
    targets = np.eye(3, dtype=np.int64)[rows.labels]
    for row, kind in enumerate(rows.dirt):
        cells = [json.dumps(texts[row]) for texts in rows.texts]
        if not labelled:
            yield [first_id + row, *cells]
            continue
        if kind == "none_hot":
            targets[row] = 0
        elif kind == "multi_hot":
            targets[row] = 1
        names = [MODEL_NAMES[number] for number in rows.models[row]]
        yield [first_id + row, *names, *cells, *targets[row].tolist()]


def _simulate_chunks(
    source: str, settings: SimulationSettings, pools: dict[str, np.ndarray]
) -> Iterator[SimulatedRows]:
    """Simulate the rows of one file, at most ``CHUNK_ROWS`` at a time.

    Each chunk has a seed of its own, so any chunk can be simulated alone.
    """
    number, n_rows = SOURCES.index(source), _n_rows(settings, source)
    # Their duplicates copy rows of train, for cleaning to find across files.
    donor = None
    if source in SHARED_PROMPTS and settings.n_train:
        donor = next(_simulate_chunks("train", settings, pools))
    for chunk, start in enumerate(range(0, n_rows, CHUNK_ROWS)):
        rng = np.random.default_rng([settings.seed, number, chunk])
        size = min(CHUNK_ROWS, n_rows - start)
        shared = rng.random(size) < SHARED_PROMPTS.get(source, 0.0)
        prompts = np.where(
            shared, rng.choice(pools["train"], size), rng.choice(pools[source], size)
        )
        yield simulate_rows(rng, source, prompts, settings.dirty_fraction, donor)


def write_source(
    path: Path, source: str, settings: SimulationSettings, pools: dict[str, np.ndarray]
) -> tuple[pa.Table, dict[str, Any]]:
    """Simulate and write one CSV file, chunk by chunk.

    Args:
        path: The CSV file.
        source: One of ``SOURCES``.
        settings: The ``simulation`` section.
        pools: See ``prompt_pools``.

    Returns:
        A table of ``TRUTH_SCHEMA`` with one row per CSV row, and a report: ``n_rows``,
        ``dirt`` (number of rows by kind), and ``bayes_log_loss`` in nats (None without
        rows).
    """
    labelled = source != "test"
    probs, labels, dirt = [], [], Counter()

    def records() -> Iterator[list[Any]]:
        first_id = 1
        for rows in _simulate_chunks(source, settings, pools):
            yield from csv_records(rows, first_id, labelled)
            first_id += len(rows.dirt)
            probs.append(rows.probs)
            labels.append(rows.labels)
            dirt.update(kind for kind in rows.dirt if kind)

    write_csv_rows(path, CSV_COLUMNS if labelled else TEST_COLUMNS, records())
    n_rows = sum(map(len, labels))
    all_probs = np.concatenate(probs) if probs else np.zeros((0, 3))
    loss = bayes_log_loss(all_probs, np.concatenate(labels)) if n_rows else None
    ids = [f"{source}:{number}" for number in range(1, n_rows + 1)]
    truth = pa.table([ids, *all_probs.T], schema=TRUTH_SCHEMA)
    return truth, {"n_rows": n_rows, "dirt": dict(dirt), "bayes_log_loss": loss}


def write_simulation(
    paths: dict[str, Path], truth_path: Path, settings: SimulationSettings
) -> dict[str, dict[str, Any]]:
    """Write the four CSV files and the truth; equal settings give equal bytes.

    Args:
        paths: The CSV path of each of ``SOURCES``.
        truth_path: Parquet file of ``TRUTH_SCHEMA``: the id ``source:id`` and the
            probabilities of A, B and tie of every row.
        settings: The ``simulation`` section.

    Returns:
        For each source, the report of ``write_source``.
    """
    pools = prompt_pools(settings)
    truths, reports = [], {}
    for source in SOURCES:
        truth, reports[source] = write_source(paths[source], source, settings, pools)
        truths.append(truth)
    write_table(truth_path, pa.concat_tables(truths), TRUTH_SCHEMA)
    return reports

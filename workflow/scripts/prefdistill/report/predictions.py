"""Hold probabilities by stage, model, fold and split, and read them from files."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from prefdistill.errors import UserError
from prefdistill.scores.metrics import Labels, swap_agreement
from prefdistill.scores.views import PROBABILITY_COLUMNS, columns_of, symmetrise
from prefdistill.storage.joining import find_rows
from prefdistill.storage.logits import Logits
from prefdistill.storage.tables import read_table

SPLITS = ("dev", "select", "test")
BOTH = "AB+BA"
PREDICTIONS_SCHEMA = pa.schema(
    [
        *[pa.field(name, pa.string()) for name in ("stage", "model")],
        pa.field("fold", pa.int32()),  # null for a model of no fold
        *[pa.field(name, pa.string()) for name in ("split", "views", "id")],
        *[pa.field(name, pa.float64()) for name in PROBABILITY_COLUMNS],
        pa.field("label", pa.int8()),  # 0 A, 1 B, 2 tie
        *[pa.field(name, pa.string()) for name in ("group", "source")],
    ]
)


@dataclass(frozen=True)
class Predictions:
    """One model's probabilities of the rows of one split.

    Attributes:
        stage: Stage of the pipeline, such as ``teacher_calibrated``.
        model: Name of the model within the stage.
        fold: Its fold, or None for a model of no fold or of all folds together.
        split: dev, select or test.
        ids: ``(n,)`` unicode row ids.
        probs: ``(n, 3)`` float64 probabilities of (A, B, tie) by view; the one key
            ``AB+BA`` if only the average over both orders is known.
        agreement: Swap agreement, where ``probs`` does not hold both views.
    """

    stage: str
    model: str
    fold: int | None
    split: str
    ids: np.ndarray
    probs: dict[str, np.ndarray]
    agreement: float | None = None

    def averaged(self) -> np.ndarray:
        """Average the probabilities over the views, ``(n, 3)`` float64."""
        return np.mean(list(self.probs.values()), axis=0)

    def probs_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the averaged probabilities of the given rows, ``(n_ids, 3)``.

        Raises:
            UserError: If a row is missing.
        """
        rows = find_rows(self.ids, ids)
        if (rows < 0).any():
            missing = ids[rows < 0][0]
            raise UserError(f"{self.stage} has no prediction of row id {missing}")
        return self.averaged()[rows]

    def by_views(self) -> list[tuple[str, np.ndarray, float | None]]:
        """List each view, then their average: name, probabilities, swap agreement."""
        rows = [(view, probs, self.agreement) for view, probs in self.probs.items()]
        if len(self.probs) == 2:
            agreement = swap_agreement(*self.probs.values())
            rows.append(("+".join(self.probs), self.averaged(), agreement))
        return rows


def from_logits(
    stage: str, model: str, fold: int | None, scores: Logits
) -> list[Predictions]:
    """Turn a model's logits into predictions on each split that it may be scored on."""
    found = []
    for split in SPLITS:
        rows = scores.select(scores.split == split)
        if not len(rows.ids):
            continue
        single = {
            view: symmetrise(rows.logits[:, [place]], [view])
            for place, view in enumerate(scores.views)
        }
        found.append(Predictions(stage, model, fold, split, rows.ids, single))
    return found


def from_baselines(path: Path, splits: Sequence[str] = SPLITS) -> list[Predictions]:
    """Read the predictions of ``baselines.parquet`` for rows of these splits.

    Raises:
        UserError: If the file is not such a table.
    """
    keys = ("stage", "fold", "split", "id")
    table = read_table(path, columns=[*keys, *PROBABILITY_COLUMNS])
    stage, fold, split, ids = (
        np.array(table.column(name).to_pylist()) for name in keys
    )
    probs = columns_of(table, PROBABILITY_COLUMNS)
    found = []
    for name in dict.fromkeys(stage.tolist()):
        for k in np.unique(fold):
            for part in splits:
                rows = (stage == name) & (fold == k) & (split == part)
                if rows.any():
                    number = None if k < 0 else int(k)  # -1 stands for no fold
                    both = {BOTH: probs[rows]}
                    found.append(Predictions(name, name, number, part, ids[rows], both))
    return found


def trees_probabilities(path: Path, ids: np.ndarray) -> np.ndarray:
    """Read the trees' probabilities of rows that they were not trained on, ``(n, 3)``.

    Args:
        path: ``baselines.parquet``.
        ids: ``(n,)`` ids of rows of select, test or unlabelled pairs.

    Raises:
        UserError: If the file lacks one of the rows.
    """
    # On dev rows there is one model per fold, so those rows have no single prediction.
    found = from_baselines(path, ("select", "test", "unlabelled"))
    parts = [one for one in found if one.stage == "trees"]
    known = [name for one in parts for name in one.ids.tolist()]
    rows = find_rows(known, ids)
    if (rows < 0).any():
        raise UserError(f"{path}: the trees lack row id {ids[rows < 0][0]}")
    return np.concatenate([one.averaged() for one in parts])[rows]


def predictions_table(predictions: Sequence[Predictions], labels: Labels) -> pa.Table:
    """Build a table of the schema above: one row per prediction, view and pair.

    Raises:
        UserError: If a row has no label.
    """
    parts = []
    for one in predictions:
        known, n_rows = labels.of(one.ids), len(one.ids)
        for view, probs in one.probs.items():
            columns = [[one.stage] * n_rows, [one.model] * n_rows, [one.fold] * n_rows]
            columns += [[one.split] * n_rows, [view] * n_rows, one.ids.tolist()]
            columns += [*probs.T, known.label, known.group.tolist()]
            columns.append(known.source.tolist())
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(columns, PREDICTIONS_SCHEMA, strict=True)
            ]
            parts.append(pa.Table.from_arrays(arrays, schema=PREDICTIONS_SCHEMA))
    return pa.concat_tables(parts)


def read_predictions_table(path: Path) -> tuple[list[Predictions], Labels]:
    """Read what ``predictions_table`` built, and the labels of its rows.

    Raises:
        UserError: If the file is not such a table.
    """
    table = read_table(path, PREDICTIONS_SCHEMA)
    names = ("stage", "model", "split", "views", "id", "group", "source")
    columns = {name: np.array(table.column(name).to_pylist()) for name in names}
    folds = table.column("fold").fill_null(-1).to_numpy()
    label = table.column("label").to_numpy().astype(np.int64)
    probs = columns_of(table, PROBABILITY_COLUMNS)
    # A row is listed once per prediction; its labels are taken from the first.
    _, first = np.unique(columns["id"], return_index=True)
    labels = Labels(
        columns["id"], columns["split"], label, columns["group"], columns["source"]
    ).rows(np.sort(first))

    found: dict[tuple, Predictions] = {}
    keys = list(
        zip(*(columns[name] for name in names[:2]), folds,
            columns["split"], columns["views"], strict=True)
    )  # fmt: skip
    starts = [0, *[i for i in range(1, len(keys)) if keys[i] != keys[i - 1]], len(keys)]
    for start, end in pairwise(starts):
        stage, model, fold, split, view = keys[start]
        rows = slice(start, end)
        number = None if fold < 0 else int(fold)
        one = found.setdefault(
            (stage, model, fold, split),
            Predictions(
                str(stage), str(model), number, str(split), columns["id"][rows], {}
            ),
        )
        one.probs[str(view)] = probs[rows]
    return list(found.values()), labels

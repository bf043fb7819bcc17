"""Rows of a Hub data set, or of a local folder in its shape; see ``readers``."""

import os
from collections.abc import Iterator
from typing import Any

from prefdistill.data.pairs import (
    FIELDS,
    TEXT_COLUMNS,
    UNLABELLED,
    CellFault,
    ImportedFile,
    RawRow,
    match_columns,
)
from prefdistill.data.readers import one_line
from prefdistill.errors import UserError
from prefdistill.storage.tables import TARGET_COLUMNS

WINNERS = {
    "model_a": (1, 0, 0),
    "model_b": (0, 1, 0),
    "tie": (0, 0, 1),
    "tie (bothbad)": (0, 0, 1),
}


def _conversation_turns(turns: Any, role: str, column: str) -> list[str]:
    try:
        return [turn["content"] for turn in turns if turn["role"] == role]
    except (TypeError, KeyError) as error:
        raise CellFault(column, "is not a list of {role, content} turns") from error


def _derive_fields(row: dict[str, Any]) -> None:
    """Fill labels from ``winner``, and texts from ``conversation_a`` and ``_b``.

    Raises:
        CellFault: If the winner is unknown or the conversations' questions differ.
    """
    if "winner" in row:
        winner = row["winner"]
        if winner not in WINNERS:
            raise CellFault("winner", f"{winner!r} is none of {', '.join(WINNERS)}")
        row.update(zip(TARGET_COLUMNS, WINNERS[winner], strict=True))
    if "conversation_a" in row:
        for side in "ab":
            name = f"conversation_{side}"
            row[f"response_{side}"] = _conversation_turns(row[name], "assistant", name)
        row["prompt"] = _conversation_turns(
            row["conversation_a"], "user", "conversation_a"
        )
        asked = _conversation_turns(row["conversation_b"], "user", "conversation_b")
        if asked != row["prompt"]:
            raise CellFault(
                "conversation_b", "its user turns differ from those of conversation_a"
            )


def load_hub(entry: dict[str, Any]) -> Any:
    """Load one split of a Hub data set, or of a local directory of that shape.

    Args:
        entry: ``hub`` (repository or directory), ``split`` and ``revision``.

    Raises:
        UserError: If it cannot be loaded.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            entry["hub"],
            revision=entry.get("revision"),
            split=entry.get("split") or "train",
            token=os.environ.get("HF_TOKEN") or False,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data set {entry['hub']}: cannot be loaded ({one_line(error)}); check "
            "its name, split and revision, the network, and that you have access to it"
        ) from error


def read_hub_rows(
    entry: dict[str, Any], source: str, counts: ImportedFile
) -> Iterator[RawRow]:
    """Stream the rows of a Hub data set through its mapping of columns.

    ``columns`` maps our names to the data set's; a name that is not mapped is its own.
    ``winner`` may stand for the three labels, ``conversation_a`` and
    ``conversation_b`` (lists of role and content) for the three texts. Where there is
    no id, the row number is the id.

    Raises:
        UserError: If it cannot be loaded, lacks a column or has an unknown winner.
    """
    data = load_hub(entry)
    origin = {name: name for name in data.column_names if name in FIELDS}
    for ours, theirs in (entry.get("columns") or {}).items():
        if theirs and theirs not in data.column_names:
            raise UserError(
                f"data set {entry['hub']}, columns.{ours}: it has no column {theirs}; "
                f"it has {', '.join(data.column_names)}"
            )
        if theirs and not (source in UNLABELLED and ours == "winner"):
            origin[ours] = theirs
    available = {*origin, "id"}
    if "winner" in origin:
        available.update(TARGET_COLUMNS)
    if {"conversation_a", "conversation_b"} <= origin.keys():
        available.update(TEXT_COLUMNS)
    match_columns(sorted(available), source, counts.file)
    counts.ignored_columns = sorted(set(data.column_names) - set(origin.values()))

    data = data.select_columns(sorted(set(origin.values()))).with_format("arrow")
    number = 0
    for batch in data.iter(batch_size=1024):
        cells = {ours: batch.column(name).to_pylist() for ours, name in origin.items()}
        for place in range(len(batch)):
            number += 1
            row = {"id": number} | {name: cells[name][place] for name in cells}
            try:
                _derive_fields(row)
            except CellFault as fault:
                raise fault.located(counts.file, f"row {number}") from fault
            yield RawRow(number, f"row {number}", [row.get(name) for name in FIELDS])

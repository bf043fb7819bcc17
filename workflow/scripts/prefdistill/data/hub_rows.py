"""Read rows of a Hub data set, or of a local folder of the same form."""

import os
from collections.abc import Iterator
from typing import Any

from prefdistill.data.cells import CellFault
from prefdistill.data.pairs import (
    ROW_COLUMNS,
    TEXT_COLUMNS,
    UNLABELLED,
    ImportedFile,
    RawRow,
    match_columns,
)
from prefdistill.errors import UserError, one_line
from prefdistill.storage.tables import TARGET_COLUMNS

WINNERS = {
    "model_a": (1, 0, 0),
    "model_b": (0, 1, 0),
    "tie": (0, 0, 1),
    "tie (bothbad)": (0, 0, 1),
}


def _list_turns(turns: Any, role: str, column: str) -> list[str]:
    """List the texts that one role says in a conversation.

    Raises:
        CellFault: If ``turns`` is not a list of objects with role and content.
    """
    try:
        return [turn["content"] for turn in turns if turn["role"] == role]
    except (TypeError, KeyError) as error:
        raise CellFault(column, "is not a list of {role, content} turns") from error


def _derive_fields(row: dict[str, Any]) -> None:
    """Fill labels from ``winner``, and texts from ``conversation_a`` and ``_b``.

    Raises:
        CellFault: If the winner is unknown, or the user's turns differ between the two
            conversations.
    """
    if "winner" in row:
        winner = row["winner"]
        if winner not in WINNERS:
            raise CellFault("winner", f"{winner!r} is none of {', '.join(WINNERS)}")
        row.update(zip(TARGET_COLUMNS, WINNERS[winner], strict=True))
    if "conversation_a" in row:
        for side in "ab":
            name = f"conversation_{side}"
            row[f"response_{side}"] = _list_turns(row[name], "assistant", name)
        row["prompt"] = _list_turns(row["conversation_a"], "user", "conversation_a")
        asked = _list_turns(row["conversation_b"], "user", "conversation_b")
        if asked != row["prompt"]:
            raise CellFault(
                "conversation_b", "its user turns differ from those of conversation_a"
            )


def load_hub_split(entry: dict[str, Any]) -> Any:
    """Load one split of a Hub data set, or of a local folder of the same form.

    Args:
        entry: ``hub`` (repository or folder), ``split`` and ``revision``.

    Returns:
        A ``datasets.Dataset``.

    Raises:
        UserError: If the data set cannot be loaded.
    """
    # Imported here because the import is slow, and most runs only read local files.
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            entry["hub"],
            revision=entry.get("revision"),
            split=entry.get("split") or "train",
            # False: datasets would otherwise send a token that it finds on the disk.
            token=os.environ.get("HF_TOKEN") or False,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data set {entry['hub']}: cannot be loaded ({one_line(error)}); check "
            "its name, split and revision, the network, and that you have access to it"
        ) from error


def _map_columns(
    entry: dict[str, Any], source: str, names: list[str]
) -> dict[str, str]:
    """Map our column names to those of a data set whose columns are ``names``.

    Raises:
        UserError: If the data set lacks a column that ``entry`` names.
    """
    origin = {name: name for name in names if name in ROW_COLUMNS}
    for ours, theirs in (entry.get("columns") or {}).items():
        if theirs and theirs not in names:
            raise UserError(
                f"data set {entry['hub']}, columns.{ours}: it has no column {theirs}; "
                f"it has {', '.join(names)}"
            )
        # Labels of unlabelled sources are never read, not even through a winner.
        if theirs and not (source in UNLABELLED and ours == "winner"):
            origin[ours] = theirs
    return origin


def read_hub_rows(
    entry: dict[str, Any], source: str, counts: ImportedFile
) -> Iterator[RawRow]:
    """Stream the rows of a Hub data set, with its columns mapped to ours.

    A column ``winner`` can replace the three labels. Columns ``conversation_a`` and
    ``conversation_b`` (lists of role and content) can replace the three texts. Without
    an id, the row number is the id.

    Args:
        entry: ``hub``, ``split``, ``revision``, and ``columns``: our name to the data
            set's name, for each column whose name differs.
        source: One of ``pairs.SOURCES``.
        counts: Names the data set for messages; its ignored columns are filled in.

    Raises:
        UserError: If the data set cannot be loaded, lacks a column, or has a winner
            that is not one of ``WINNERS``.
    """
    data = load_hub_split(entry)
    origin = _map_columns(entry, source, data.column_names)
    available = {*origin, "id"}
    if "winner" in origin:
        available.update(TARGET_COLUMNS)
    if {"conversation_a", "conversation_b"} <= origin.keys():
        available.update(TEXT_COLUMNS)
    match_columns(sorted(available), source, counts.file)
    counts.ignored_columns = sorted(set(data.column_names) - set(origin.values()))

    # Unused columns, such as images, are not decoded.
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
            yield RawRow(
                number, f"row {number}", [row.get(name) for name in ROW_COLUMNS]
            )

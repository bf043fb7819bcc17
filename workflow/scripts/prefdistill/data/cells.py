"""Parse single values of a file of pairs: ids, labels, turns and names.

A value that cannot be read raises ``CellFault``. Repairs that lose nothing are counted.
"""

import json
import re
import reprlib
from collections import Counter
from datetime import date, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from prefdistill.errors import UserError

_KAGGLE_ID = re.compile(r"-?(0|[1-9][0-9]*)")
# A tokenizer takes more than 100 bytes per token, and JSON of lists in lists takes 20
# times its own size. The longest row of tokens that the settings allow is 131,072.
MAX_CELL_CHARACTERS = 16 << 20
# The arrays of ids hold every id in the room of the longest, 4 bytes per character.
MAX_ID_CHARACTERS = 256
# What a file can hold as an id. A library may return any type of its own for others.
_SIMPLE = (str, int, float, Decimal, date, time, UUID)
# An id with one of these cannot be written so that every reader gets it back. Texts of
# pairs are repaired, but a repaired id would not be the one that its owner knows.
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# The lenient decoder allows raw line breaks and other control characters in a string.
_decode_strict = json.JSONDecoder().decode
_decode_lenient = json.JSONDecoder(strict=False).decode


class CellFault(Exception):
    """Report a value that cannot be read; the caller adds file and row.

    Args:
        column: Name of the column; empty if the whole row is at fault.
        text: The fault and its remedy.
    """

    def __init__(self, column: str, text: str) -> None:
        super().__init__(text)
        self.column = column

    def located(self, file: str, where: str) -> UserError:
        """Make the error that also names the file and the place in it."""
        column = self.column and f", column {self.column}"
        return UserError(f"{file}, {where}{column}: {self}")


def quote_short(value: Any) -> str:
    """Quote a value for a message: one line of ASCII, cut after 40 characters."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return ascii(text if len(text) <= 40 else text[:37] + "...")


def parse_id(value: Any, *, integer: bool = True) -> str:
    """Parse an id to text.

    Args:
        value: The cell.
        integer: Require a 64-bit integer in its plain form, as Kaggle files have.
            Otherwise any text of at most ``MAX_ID_CHARACTERS`` will do.

    Raises:
        CellFault: If the id is missing or not in that form.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise CellFault("id", f"{quote_short(value)} is not UTF-8") from None
    if value is not None and not isinstance(value, _SIMPLE):
        raise CellFault(
            "id", f"{quote_short(value)} is not a text or a number; make it one"
        )
    text = "" if value is None else str(value)
    if integer or not text:
        if not _KAGGLE_ID.fullmatch(text):
            raise CellFault("id", f"{quote_short(value)} is not an integer")
        # The length comes first: Python refuses to convert thousands of digits.
        if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
            raise CellFault("id", f"{quote_short(value)} does not fit into 64 bits")
    elif len(text) > MAX_ID_CHARACTERS:
        raise CellFault(
            "id",
            f"{quote_short(text)} has {len(text)} characters; use at most "
            f"{MAX_ID_CHARACTERS}",
        )
    elif _UNWRITABLE.search(text):
        raise CellFault(
            "id", f"{quote_short(text)} holds NUL or half of a surrogate pair; drop it"
        )
    return text


def parse_label(value: Any, column: str) -> int:
    """Parse a label, given as text or as a number, to 0 or 1.

    Raises:
        CellFault: If the value is anything else.
    """
    if value == "1" or value == "0":
        return int(value)
    if isinstance(value, int | float) and value in (0, 1):
        return int(value)
    raise CellFault(column, f"{quote_short(value)} is not a label; it must be 0 or 1")


def _parse_json(text: str, column: str, repaired: Counter[str]) -> Any:
    """Parse a cell of JSON, counting it as repaired if it holds control characters."""
    try:
        return _decode_strict(text)
    except ValueError:
        pass
    except RecursionError:
        raise CellFault(column, "the JSON is nested too deeply") from None
    try:
        value = _decode_lenient(text)
    except (ValueError, RecursionError):
        raise CellFault(
            column,
            f"{quote_short(text)} is not JSON; it must be a JSON list of turns, such "
            'as ["Hello"]',
        ) from None
    repaired["raw_control_character"] += 1
    return value


def _may_hold_surrogates(cell: str) -> bool:
    """Check quickly whether a cell of JSON can hold a surrogate, escaped or raw."""
    escaped = "\\ud" in cell or "\\uD" in cell
    return escaped or (not cell.isascii() and bool(LONE_SURROGATE.search(cell)))


def _size_of(value: Any) -> int:
    """Count the characters of a list of turns, and one for each turn."""
    if not isinstance(value, list):
        return 0
    return len(value) + sum(len(turn) for turn in value if isinstance(turn, str))


def parse_turns(value: Any, column: str, repaired: Counter[str]) -> list[str]:
    """Parse the turns of one text cell.

    A null turn becomes an empty one. A lone surrogate (half of a UTF-16 pair, which
    UTF-8 cannot encode) becomes U+FFFD. Both are counted.

    Args:
        value: The cell: a JSON list as text or, in a typed column, a list.
        column: Column name for messages.
        repaired: Counts of repairs; updated in place.

    Raises:
        CellFault: If the cell is not a list of strings and nulls, or is too long.
    """
    size = len(value) if isinstance(value, str) else _size_of(value)
    if size > MAX_CELL_CHARACTERS:
        raise CellFault(
            column,
            f"has {size:,} characters; use at most {MAX_CELL_CHARACTERS:,}, as texts "
            "are cut to far fewer",
        )
    turns = _parse_json(value, column, repaired) if isinstance(value, str) else value
    if not isinstance(turns, list):
        raise CellFault(
            column, f'{quote_short(value)} is not a list of turns, such as ["Hello"]'
        )
    # Skip the search for surrogates in the many cells that cannot hold one.
    may_be_broken = not isinstance(value, str) or _may_hold_surrogates(value)
    for place, turn in enumerate(turns):
        if turn is None:
            turns[place] = ""
            repaired["null_turn"] += 1
        elif not isinstance(turn, str):
            raise CellFault(
                column, f"turn {place + 1} is {quote_short(turn)}, not a string or null"
            )
        elif may_be_broken:
            turns[place], n_broken = LONE_SURROGATE.subn("\ufffd", turn)
            repaired["lone_surrogate"] += n_broken
    return turns


def parse_name(value: Any) -> str | None:
    """Parse the name of a model: any value will do, as no fold's file holds names."""
    if value is None:
        return None
    text = str(value) if isinstance(value, str | int | float) else reprlib.repr(value)
    return LONE_SURROGATE.sub("\ufffd", text)

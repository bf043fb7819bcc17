"""Put texts of others into Markdown, so that they stay text wherever it is rendered.

File names, settings, names of models and values of JSON files come from outside. All of
them go through these functions before they reach a page, the summary or a model card.
"""

import re

from prefdistill.errors import printable

# Entities instead of a backslash: tables are cut at "|" before escapes are read, code
# spans ignore escapes, and a file with "<" may be shown by a viewer of HTML.
_ENTITIES = str.maketrans(
    {"|": "&#124;", "`": "&#96;", "&": "&amp;", "<": "&lt;", ">": "&gt;"}
)
# An underscore within a word, as in the names of stages, marks nothing.
_MARKS = re.compile(r"[\\*\[\]~$]|(?<![^\W_])_|_(?![^\W_])")
# GitHub makes links of bare addresses.
_ADDRESS = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)


def escape(text: str) -> str:
    """Escape a text for the middle of a line of Markdown, or for a cell of a table.

    Control characters, line breaks and marks of text direction are shown as escapes of
    Python. No link, code, HTML or table can begin or end in the result.
    """
    text = _MARKS.sub(r"\\\g<0>", printable(text)).translate(_ENTITIES)
    return _ADDRESS.sub(lambda found: f"&#{ord(found[0])};", text)


def code_block(text: str, language: str) -> str:
    """Show a text as a block of code that nothing in it can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    shown = "\n".join(map(printable, text.split("\n")))
    return f"{fence}{language}\n{shown.removesuffix(chr(10))}\n{fence}"

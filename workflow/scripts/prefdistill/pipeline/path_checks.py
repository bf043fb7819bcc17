"""Refuse names that Snakemake, a shell or a cluster's command line would act on.

Snakemake starts a job through a shell. It does not quote the interpreter, and quotes
paths only once, as Python would. So what needs more is refused here.

Imported by the Snakefile, so it stays light: the standard library.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from prefdistill.errors import UserError

LONGEST_VALUE = 200  # characters of a path in a message
# On a cluster, paths go into a command line, some in double quotes, in which these act.
SHELL_SIGNS = re.compile(r"[$`\"\\]")
# Snakemake fills in braces of an input's path and leaves one that begins with a quote
# unquoted; an option begins with a dash.
INPUT_SIGNS = re.compile(rf"{SHELL_SIGNS.pattern}|[{{}}]|^[-']")
# The interpreter is named without quotes.
BARE_SIGNS = re.compile(r"[^\w@%+=:,./-]")
# --config is quoted as by Python's repr, which a shell reads well with one kind only.
GIVEN_SIGNS = re.compile(r"[$`\\]|'(?=.*\")|\"(?=.*')")


def _acted_on(text: str, signs: re.Pattern[str]) -> str | None:
    """Return the first of a text's signs, or else the first that does not print.

    Snakemake writes the latter as escapes, or not at all: half characters, which stand
    for bytes that are not UTF-8.
    """
    found = signs.search(text)
    return found[0] if found else next((c for c in text if not c.isprintable()), None)


def check_path(
    key: str, path: str | Path, signs: re.Pattern[str] = INPUT_SIGNS
) -> None:
    """Refuse a path that Snakemake or a shell would act on, or the system cannot take.

    Args:
        key: What it is, for the message.
        path: The path.
        signs: What is refused, beside signs that do not print.

    Raises:
        UserError: One line with the path and the first such sign.
    """
    shown = f"{str(path)!r:.{LONGEST_VALUE}}"
    found = _acted_on(str(path), signs)
    if found:
        raise UserError(
            f"{key}: {shown} has {found!r} in its name, which a command line would act "
            "on; rename it, or link to it under another name"
        )
    try:
        Path(path).resolve().exists()
    except (OSError, RuntimeError) as error:  # too long, or a link to itself
        reason = getattr(error, "strerror", None) or "a link that leads to itself"
        raise UserError(f"{key}: {shown}: {reason}; name another path") from error


def check_cluster(paths: Iterable[str | Path], given: Iterable[str]) -> None:
    """Refuse what the command line of a cluster's job would act on.

    Args:
        paths: Files and folders that the command line names.
        given: The words of ``--config``, which jobs get again.

    Raises:
        UserError: One line with the path or word and the first such sign.
    """
    for path in paths:
        check_path("on a cluster", path, SHELL_SIGNS)
    for word in given:
        found = _acted_on(word, GIVEN_SIGNS)
        if found:
            raise UserError(
                f"on a cluster: --config {word!r} has {found!r}, which a command line "
                "would act on; put the value into a configuration file"
            )

"""Find the rule that makes a file of results, to name it in error messages.

The rules' own text is read, so that there is no second list to keep up to date.
"""

import re
from functools import cache
from pathlib import Path

from prefdistill.storage.whole_files import RESULTS

RULES = Path(__file__).resolve().parents[3] / "rules"
_RULE = re.compile(
    r"^(?:use rule \w+ as |rule )(\w+)(?: with)?:\n(.*?)(?=^\S|\Z)",
    re.MULTILINE | re.DOTALL,
)
_OUTPUT = re.compile(r"^    output:\n(.*?)^    \S", re.MULTILINE | re.DOTALL)
_TARGET = re.compile(r'"<results>/([^"]+)"')
_WILDCARD = re.compile(r"\{+\w+\}+")


@cache
def _targets() -> list[tuple[int, re.Pattern[str], re.Pattern[str], str]]:
    """List each output: its literal length, pattern, folder's pattern, and rule.

    The longest literal part comes first, as it is the most specific.
    """
    found = []
    for path in sorted(RULES.glob("*.smk")):
        for rule, body in _RULE.findall(path.read_text(encoding="utf-8")):
            outputs = _OUTPUT.search(body)
            for target in _TARGET.findall(outputs[1] if outputs else ""):
                folder = str(Path(target).parent)
                n_literal = len(_WILDCARD.sub("", target))
                found.append((n_literal, _pattern(target), _pattern(folder), rule))
    return sorted(found, key=lambda each: -each[0])


def _pattern(target: str) -> re.Pattern[str]:
    parts = [re.escape(part) for part in _WILDCARD.split(target)]
    return re.compile("[^/]+".join(parts))


def producing_rules(path: str | Path) -> list[str]:
    """List the rules that may have made a file; the configuration decides which did.

    A file that lies beside declared outputs, such as another file of a tokenizer,
    counts as made by their rules.

    Returns:
        Names of rules; empty for a file that is not in ``results``.
    """
    parts = Path(path).parts
    if RESULTS not in parts:
        return []
    place = len(parts) - 1 - parts[::-1].index(RESULTS)
    name = "/".join(parts[place + 1 :])
    folder = "/".join(parts[place + 1 : -1])
    exact = [(n, rule) for n, file, _, rule in _targets() if file.fullmatch(name)]
    if exact:  # a name may match several patterns; the most literal one is meant
        rules = [rule for n, rule in exact if n == exact[0][0]]
    else:
        rules = [rule for *_, beside, rule in _targets() if beside.fullmatch(folder)]
    return list(dict.fromkeys(rules))


def rerun_advice(path: str | Path) -> str | None:
    """Say how to make a damaged file again; None if no rule made it."""
    if RESULTS not in Path(path).parts:
        return None
    rules = producing_rules(path)
    named = f"rule {' or '.join(rules)}" if rules else "its rule"
    return f"delete it so that {named} runs again"

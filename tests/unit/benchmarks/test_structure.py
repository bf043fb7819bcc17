"""The figures of the library's structure, on a library of four modules."""

import pytest

from benchmarks import structure

SOURCES = {
    "low/__init__.py": "",
    "low/files.py": '''
import json

def read(path):
    """Read a file."""
    return json.loads(path)
''',
    "low/names.py": "from prefdistill.high import work\n",
    "high/work.py": '''
from typing import Any

from prefdistill.low.files import read

def run(settings: dict[str, Any]) -> dict[str, Any]:
    """What is run."""
    import prefdistill.low.files
    from prefdistill.low import names

    def inner():
        """Share of rows."""
''',
    "top.py": "from prefdistill.low.files import read, write\n",
}


@pytest.fixture
def modules(tmp_path):
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return structure.read_modules(tmp_path)


def test_arrows_count_once_and_lazily(modules):
    assert structure.find_arrows(modules) == [
        ("high.work", "low.files"),
        ("high.work", "low.names"),
        ("low.names", "high.work"),
        ("top", "low.files"),
    ]


def test_an_arrow_upwards_is_backward_and_closes_a_cycle(modules):
    arrows = structure.find_arrows(modules)
    rank = {"low": 0, "high": 1, "top": 2}
    assert structure.backward(arrows, rank) == [("low.names", "high.work")]
    assert structure.find_cycles(arrows) == [["high.work", "low.names"]]


def test_docstrings_dicts_and_tests(modules, tmp_path):
    firsts = [structure.opens_with_verb(t) for _, t in structure.docstrings(modules)]
    assert sorted(firsts) == [False, False, True]
    assert structure.count_open_dicts(tmp_path) == 2
    tests = tmp_path / "tests/low"
    tests.mkdir(parents=True)
    (tests / "test_files.py").touch()
    assert structure.untested(modules, tests.parent) == ["high.work"]


def test_the_library_has_figures_for_the_whole_table():
    modules = structure.read_modules()
    table = structure.figures(modules)
    assert table["backward arrows"] == table["cycles"] == "0"
    assert structure.markdown(table).count("\n") == len(table) + 1

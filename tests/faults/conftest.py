"""Make the writers' inputs once, and count the faults that held."""

import os
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

COUNTS = Counter()


@pytest.fixture(scope="session")
def world(tmp_path_factory, tiny_tokenizer):
    """Make the inputs of every writer."""
    from writers import World

    return World.make(tmp_path_factory.mktemp("world"), tiny_tokenizer)


@pytest.fixture
def quick_folder(tmp_path):
    """Make a folder in memory if possible, as thousands of fsyncs take minutes."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def counts():
    """Count writers, injected faults, and faults that did no harm."""
    return COUNTS


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        terminalreporter.write_line(
            f"{COUNTS['held']}/{COUNTS['faults']} faults in {COUNTS['writers']} writers"
        )

"""Restore what the benchmarks change in their process."""

import pytest

from prefdistill.engine import engine as fast


@pytest.fixture(autouse=True)
def kept_threshold(monkeypatch):
    """Restore the threshold of compilation, which benchmarks set to 0."""
    monkeypatch.setattr(fast, "COMPILE_FLOP", fast.COMPILE_FLOP)

"""Make the toy of every stage once for all tests of the report."""

import pytest
from toy_stages import make_toy


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))

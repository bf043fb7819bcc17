import numpy as np
import pytest
from engine_samples import LORA, adapt
from packed_samples import LENGTHS

from prefdistill.models.loading import load_classifier


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [rng.integers(4, 400, length) for length in LENGTHS]


@pytest.fixture
def judge(tiny_model_folder):
    """Function from architecture, base and adapter to a judge."""

    def make(architecture="llama", base="fp32", lora=LORA):
        folder = tiny_model_folder(architecture)
        return adapt(load_classifier(folder, base, head_seed=3), lora)

    return make

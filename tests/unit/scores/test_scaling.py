import numpy as np
import pytest

from prefdistill.errors import DamagedFile
from prefdistill.scores.scaling import Scaling, read_scaling, scaling_of
from prefdistill.storage.records import write_json

SCALING = Scaling("vector", True, (0.5, 0.5, 2.0), (-0.1, -0.1, 0.2))


def test_logits_are_scaled_and_shifted_by_class():
    logits = np.float32([[[1, 2, 3]], [[0, -1, 4]]])
    expected = [[[0.4, 0.9, 6.2]], [[-0.1, -0.6, 8.2]]]
    scaled = SCALING.apply(logits)
    assert scaled == pytest.approx(np.array(expected))
    assert scaled.dtype == np.float64


def test_a_written_scaling_is_read_back(tmp_path):
    write_json(tmp_path / "calibration.json", SCALING)
    assert read_scaling(tmp_path / "calibration.json") == SCALING


@pytest.mark.parametrize(
    "changes", [{"a": [1, 1]}, {"b": [0] * 4}, {"a": [1, 0, 1]}, {"a": ["x", 1, 1]}]
)
def test_a_record_that_is_no_scaling_is_refused(tmp_path, changes):
    record = {"method": "vector", "tied": True, "a": [1, 1, 1], "b": [0, 0, 0]}
    assert scaling_of(record).a == (1.0, 1.0, 1.0)
    write_json(tmp_path / "calibration.json", record | changes)
    with pytest.raises(DamagedFile, match="calibration"):
        read_scaling(tmp_path / "calibration.json")

"""Files of tensors: whole, finite, and read back as they were."""

import pytest
import torch
from safetensors import safe_open

from prefdistill.errors import DamagedFile, UserError
from prefdistill.storage.tensors import check_finite, read_tensors, write_tensors

TENSORS = {
    "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "whole": torch.tensor([[2**40]], dtype=torch.int64),
    "scalar": torch.tensor(0.5),
    "empty": torch.zeros(0, 4),
}


def test_tensors_come_back_with_their_names_shapes_and_dtypes(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    found = read_tensors(path)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(path, "pt") as file:
        # Transformers refuses a file without it.
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_leaves_the_former_file(tmp_path, value):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    bad = {"good": torch.ones(2), "bad": torch.tensor([0.0, value])}
    with pytest.raises(UserError, match=r"not written, as bad holds NaN or infinity"):
        write_tensors(path, bad)
    assert set(read_tensors(path)) == set(TENSORS)


def test_the_first_tensor_that_is_not_finite_is_named():
    check_finite(TENSORS)
    check_finite({})
    bad = torch.tensor(float("nan"))
    with pytest.raises(ValueError, match=r"^one holds"):
        check_finite({"good": torch.ones(1), "one": bad, "two": bad})


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_refused(tmp_path, share):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DamagedFile, match="not a whole safetensors file"):
        read_tensors(path)

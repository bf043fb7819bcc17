"""What contents alone say about staleness, without Snakemake."""

import itertools
import os
import shutil
from types import SimpleNamespace

import pytest

from prefdistill.errors import UserError
from prefdistill.pipeline.stale_files import (
    KEPT_METADATA,
    METADATA,
    find_stale_files,
    keep_metadata,
)
from prefdistill.running.records import JobRecord

MODELS = [f"results/{teacher}/fold{fold}" for teacher in "ab" for fold in "01"]


@pytest.fixture(autouse=True)
def finished(tmp_path, monkeypatch):
    """A finished run: data of three files, two teachers of two folds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / "data").mkdir()
    sources = ["data/train.csv", "data/extra.csv", "data/test.csv"]
    for path in sources:
        (tmp_path / path).write_text(f"rows of {path}")
    make("results/pairs", *sources)
    for folder in MODELS:
        make(f"{folder}/adapter", "results/pairs")
        make(f"{folder}/logits", f"{folder}/adapter")
    return tmp_path


def make(output, *inputs):
    job = SimpleNamespace(rule="made", input=inputs, output=[output], params={})
    record = JobRecord(job)
    record.begin()
    os.makedirs(os.path.dirname(output), exist_ok=True)
    with open(output, "w") as handle:
        handle.write(output)
    record.end()


def test_a_finished_run_has_nothing_stale():
    assert find_stale_files() == {}


def test_times_count_for_nothing(finished):
    for number, path in enumerate(sorted(finished.rglob("*"))):
        os.utime(path, (number, 10_000 - 17 * number))
    assert find_stale_files() == {}


@pytest.mark.parametrize("shift_s", [-10_000, 0, 10_000])
@pytest.mark.parametrize("name", ["train", "extra", "test"])
@pytest.mark.parametrize("how", ["replaced", "in place"])
def test_another_source_is_noticed_whatever_its_time(finished, name, how, shift_s):
    path = finished / f"data/{name}.csv"
    before = path.stat()
    content = path.read_text().replace("rows", "ROWS")  # of the same size
    new = finished / "new" if how == "replaced" else path
    new.write_text(content)
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns + shift_s * 10**9))
    new.replace(path)
    assert find_stale_files() == {"results/pairs": f"data/{name}.csv"}


@pytest.mark.parametrize("name", ["adapter", "logits"])
@pytest.mark.parametrize("pair", itertools.combinations(MODELS, 2), ids="-".join)
def test_files_of_other_folds_and_teachers_are_refused(finished, name, pair):
    one, other = (finished / folder / name for folder in pair)
    one.rename(finished / "kept")
    other.rename(one)
    (finished / "kept").rename(other)
    with pytest.raises(UserError, match=rf"{name}: is not the file that rule made"):
        find_stale_files()


def test_what_was_made_from_an_older_file_is_stale():
    with open("data/train.csv", "a") as handle:
        handle.write("more")
    make("results/pairs", "data/train.csv")  # and then the run was stopped
    with open("results/pairs", "a") as handle:
        handle.write("more")
    with pytest.raises(UserError, match="results/pairs: is not the file"):
        find_stale_files()
    os.remove("results/pairs")
    assert find_stale_files() == {}  # its absence is Snakemake's to notice


def test_a_source_that_was_made_anew_makes_stale(finished):
    record = JobRecord(
        SimpleNamespace(
            rule="made", input=["data/train.csv"], output=["results/pairs"], params={}
        )
    )
    record.begin()
    (finished / "results/pairs").write_text("other pairs")
    record.end()
    stale = find_stale_files()
    assert stale == {f"{folder}/adapter": "results/pairs" for folder in MODELS}


def test_metadata_moves_among_the_records(finished):
    METADATA.mkdir()
    (METADATA / "some").write_text("params")
    keep_metadata(create=False)
    assert not METADATA.is_symlink()  # a dry run begins nothing
    keep_metadata(create=True)
    assert (KEPT_METADATA / "some").read_text() == "params"
    assert (METADATA / "some").read_text() == "params"
    # Snakemake makes the folder anew when results were removed by hand.
    shutil.rmtree("results")
    keep_metadata(create=False)
    METADATA.mkdir()
    keep_metadata(create=True)
    assert METADATA.resolve() == KEPT_METADATA.resolve()
    assert find_stale_files() == {}


def test_copied_results_bring_their_metadata(finished):
    KEPT_METADATA.mkdir()
    (KEPT_METADATA / "some").write_text("params")
    METADATA.mkdir()
    (METADATA / "some").write_text("of results that were here before")
    keep_metadata(create=False)
    assert (METADATA / "some").read_text() == "params"
    assert (METADATA.parent / "incomplete").is_dir()

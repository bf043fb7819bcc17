"""What ran is what is recorded: swapped, replaced, copied and deleted files."""

import itertools
import os
import re
import shutil
from collections import defaultdict

import pytest
import yaml
from running import checkout, planned, snakemake

from prefdistill.errors import UserError
from prefdistill.pipeline.stale_files import find_stale_files
from prefdistill.running.records import RECORDS, record_path

# What differs between like files: the fold, the teacher, the width.
VARIANT = re.compile(r"fold\d+|/(?:llama|qwen)/|gptq\d+|\dbit")


def like_files(results):
    """Yield pairs of recorded files that have the same name for another variant."""
    groups = defaultdict(list)
    for path in sorted(results.rglob("*")):
        name = str(path.relative_to(results.parent))
        place = results.parent / (record_path(name) or "")
        if path.is_file() and place.is_file() and VARIANT.search(name):
            groups[VARIANT.sub("*", name)].append(name)
    for names in groups.values():
        yield from itertools.combinations(names, 2)


def test_no_two_like_files_can_be_exchanged(copied, monkeypatch):
    monkeypatch.chdir(copied)
    assert find_stale_files() == {}
    n_pairs = 0
    for one, other in like_files(copied / "results"):
        with open(one, "rb") as first, open(other, "rb") as second:
            if first.read() == second.read():
                continue
        for source, target in ((one, "kept"), (other, one), ("kept", other)):
            os.rename(source, target)
        with pytest.raises(UserError, match="is not the file that rule"):
            find_stale_files()
        for source, target in ((one, "kept"), (other, one), ("kept", other)):
            os.rename(source, target)
        n_pairs += 1
    assert n_pairs > 50
    assert find_stale_files() == {}


def test_swapped_teachers_stop_the_run_in_one_line(copied):
    folder = copied / "results/teacher/llama"
    for source, target in (("fold0", "x"), ("fold1", "fold0"), ("x", "fold1")):
        (folder / source).rename(folder / target)
    done = snakemake(copied, "all")
    text = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "is not the file that rule train_teacher wrote there" in line
    assert line.endswith("delete it so that rule train_teacher runs again")


def test_a_copy_without_times_or_snakemakes_folder_runs_nothing(finished, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    # `cp -r`: every file gets the time of its copy.
    shutil.copytree(
        finished / "results", run / "results", copy_function=shutil.copyfile
    )
    assert not planned(run, "all")


def test_a_copy_without_snakemakes_folder_notices_a_changed_setting(finished, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(finished / "results", run / "results")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"calibration": {"method": "temperature"}}))
    assert planned(run, "all", overlays=(overlay,))["calibrate_logits"] == 6


def test_files_without_a_record_are_named(copied):
    shutil.rmtree(copied / RECORDS)
    shutil.rmtree(copied / ".snakemake")
    done = snakemake(copied, "--dry-run", "all")
    text = done.stdout + done.stderr
    assert "files without a record of what they were made from: " in text
    assert "Nothing to be done" in text


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("gptq/4bit/judge.json", "calibrate_quantised_judge"),
        ("gptq/8bit/tokenizer.json", "quantise_model"),
        ("gptq/8bit/quantize_config.json", "quantise_model"),
        ("merged/judge.json", "calibrate_judge"),
        ("merged/tokenizer_config.json", "merge_adapter"),
    ],
)
def test_a_judges_file_is_made_again_when_it_is_gone(copied, name, rule):
    (copied / "results" / name).unlink()
    assert planned(copied, "all")[rule] == 1


def test_another_lock_runs_nothing_again(finished, tmp_path):
    root = checkout(tmp_path)
    (root / "requirements.lock").write_text("numpy==0.0\n")
    assert not planned(finished, "all", root=root)


@pytest.fixture(scope="module")
def imported(tmp_path_factory, finished):
    """A folder in which a file of the user's own has been imported."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "data").mkdir()
    shutil.copy(finished / "results/simulated/train.csv", folder / "data")
    overlay = folder / "own.yaml"
    entries = {"train": ["data/train.csv"], "extra": [], "ultra": [], "test": None}
    overlay.write_text(yaml.safe_dump({"data": entries}))
    done = snakemake(folder, "results/data/clean.parquet", overlays=(overlay,))
    assert done.returncode == 0, done.stderr
    return folder, overlay


@pytest.mark.parametrize("shift_s", [-(10**7), 0, 10**7])
def test_another_data_file_is_imported_whatever_its_time(imported, shift_s, tmp_path):
    folder, overlay = imported
    run = tmp_path / "run"
    shutil.copytree(folder, run, symlinks=True)
    path, target = run / "data/train.csv", "results/data/clean.parquet"
    before = path.stat()
    (run / "new").write_text(path.read_text().replace("simulated-2b", "simulated-2c"))
    (run / "new").replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + shift_s * 10**9))
    jobs = planned(run, target, overlays=(overlay,))
    assert jobs.keys() - {"total"} == {"import_pairs", "clean_pairs"}

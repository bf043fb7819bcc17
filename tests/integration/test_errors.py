"""What a user sees of an error: one line, before any job or from a job."""

import resource
import subprocess

import pytest
from running import ROOT, driver_command, snakemake

# Overlays on the demo, and their lines: three of tests/unit/wrong_configs.py.
WRONG = {
    "folds: {n: 3, seeds: 1}": (
        "config: unknown key 'seeds' at folds; did you mean 'seed'?"
    ),
    "quantisation: {group_size: 128}": (
        "config: quantisation.group_size: 128 does not divide the student's hidden "
        "size 64; choose a divisor such as 64"
    ),
    "folds: {n: 3}\nfolds: {n: 4}": (
        "config: {overlay}, line 2: the key 'folds' is there twice, first in line 1; "
        "keep one"
    ),
}
UNREADABLE = {
    "folds: {n: 3": (
        "config: {overlay}, line 1, column 13: not valid YAML (expected ',' or '}}', "
        "but got '<stream end>'); mend it, and indent with spaces"
    ),
    None: (
        "config: {overlay}: No such file or directory (seen from {root}); name a "
        "configuration file that is there"
    ),
}
MOST_CPU_S = 5


def error_lines(done):
    """The lines of a run's terminal that are errors of ours."""
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("error: ")]


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_configuration_is_one_line_of_a_dry_run_within_seconds(text, tmp_path):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(text)
    started = cpu_seconds()
    done = snakemake(tmp_path / "run", "--dry-run", "all", overlays=(overlay,))
    assert cpu_seconds() - started < MOST_CPU_S
    assert done.returncode == 1
    line = WRONG[text].replace("{overlay}", str(overlay))
    assert error_lines(done) == [f"error: {line}"]
    assert not (tmp_path / "run/results").exists()


@pytest.mark.parametrize("text", UNREADABLE)
def test_make_says_of_an_unreadable_file_which_and_where(text, tmp_path):
    overlay = tmp_path / "mine.yaml"
    if text is not None:
        overlay.write_text(text)
    command = driver_command(tmp_path, "--dry-run", "all", overlays=(overlay,))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    line = UNREADABLE[text].format(overlay=overlay, root=ROOT)
    assert done.stderr == f"error: {line}\n"


def test_an_error_inside_a_job_is_one_line_with_its_log(tmp_path):
    (tmp_path / "bad.csv").write_text("id,prompt\n" + "1,p\n" * 9)
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("data: {train: [bad.csv], extra: [], ultra: [], test: null}\n")
    done = snakemake(tmp_path, "results/data/pairs.parquet", overlays=(overlay,))
    assert done.returncode != 0
    (line,) = error_lines(done)
    assert line == (
        "error: bad.csv, header, column response_a: is missing; found 'id', 'prompt'; "
        "a train file needs comma-separated id,prompt,response_a,response_b,"
        "winner_model_a,winner_model_b,winner_tie "
        "(log: logs/import_pairs/import_pairs.log)"
    )
    log = (tmp_path / "logs/import_pairs/import_pairs.log").read_text()
    assert "Traceback" in log

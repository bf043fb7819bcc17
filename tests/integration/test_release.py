"""The releases of a finished run: the same probabilities, and nothing disturbed."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from running import planned, snakemake

from prefdistill.data.pairs import TEXT_COLUMNS
from prefdistill.judge import Judge
from prefdistill.scores.scaling import read_scaling
from prefdistill.scores.views import symmetrise
from prefdistill.storage.logits import read_logits
from prefdistill.storage.records import read_json
from prefdistill.storage.tables import read_table

JUDGES = {"merged": "merged", "gptq8bit": "gptq8", "gptq4bit": "gptq4"}


@pytest.fixture(scope="module")
def released(finished, tmp_path_factory):
    """The finished run with its releases, in a folder of its own."""

    folder = tmp_path_factory.mktemp("released") / "run"
    shutil.copytree(finished, folder, symlinks=True)
    result = snakemake(folder, "release")
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return folder


def predicted(folder, judge, release):
    """Ids, and the probabilities that the workflow predicted and calibrated."""
    scores = read_logits(folder / f"results/predictions/{judge}/logits.npz")
    scores = scores.select(scores.split == "unlabelled")
    fit = read_scaling(release / "calibration.json")
    return scores.ids.tolist(), symmetrise(fit.apply(scores.logits), scores.views)


def test_releasing_makes_nothing_else_stale(released):
    assert not planned(released, "all", "release")
    for name in JUDGES:
        place = "merged" if name == "merged" else f"gptq/{name.removeprefix('gptq')}"
        linked = released / "results/release" / name / "model.safetensors"
        assert linked.samefile(released / "results" / place / "model.safetensors")


@pytest.mark.parametrize("name", JUDGES)
def test_a_release_judges_as_the_workflow_did(released, name):
    release = released / "results/release" / name
    ids, expected = predicted(released, JUDGES[name], release)
    table = read_table(released / "results/folds/unlabelled.parquet")
    assert table.column("id").to_pylist() == ids
    pairs = zip(*(table.column(c).to_pylist() for c in TEXT_COLUMNS), strict=True)
    verdicts = Judge.load(release).compare_batch(list(pairs))
    np.testing.assert_allclose(np.array(verdicts), expected, atol=1e-5)


@pytest.mark.parametrize("name", JUDGES)
def test_the_card_says_what_the_run_found(released, name):
    card = (released / "results/release" / name / "README.md").read_text()
    folds = read_json(released / "results/folds/folds.json")["folds"]
    assert (
        f"`select`) were kept to calibrate, {folds['0']['test']['n']} (`test`)" in card
    )
    scores = (released / "results/report/scores.csv").read_text().splitlines()
    stage = f"{JUDGES[name]}_calibrated"
    (row,) = [
        line.split(",")
        for line in scores
        if line.startswith(f"{stage},{JUDGES[name]},,test,AB+BA,")
    ]
    shown = " | ".join(f"{float(cell):.4f}" for cell in row[6:9])
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {stage} ")]
    assert shown in " ".join(line.split())
    assert "These pairs are simulated" in card
    assert ("gptqmodel" in card) == (name != "merged")


@pytest.mark.slow
def test_the_example_of_a_quantised_release_needs_no_package(released, tmp_path):
    release = released / "results/release/gptq4bit"
    texts = ("What is a river?", "Water that runs to the sea.", "A kind of list.")
    done = subprocess.run(
        [sys.executable, "-I", release / "example.py", *texts],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = Judge.load(release).compare(*texts)._asdict()
    answer = json.loads(done.stdout.splitlines()[-1])
    # The CPU's 4-bit kernel rounds otherwise where both orders share a batch.
    assert answer == pytest.approx(expected, abs=1e-3)

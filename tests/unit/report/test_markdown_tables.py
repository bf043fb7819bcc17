from pathlib import Path

import pytest
from summarise_report import main as summarise_report
from toy_scores import SCORES
from toy_stages import JUDGES

from prefdistill.errors import UserError
from prefdistill.report.inputs import SummaryFiles
from prefdistill.report.markdown_tables import (
    markdown_table,
    one_per_stage,
    read_curve,
    read_rows,
    rows_on_test,
)
from prefdistill.storage.records import write_json


def test_test_rows_are_in_the_order_of_the_pipeline():
    rows = rows_on_test(SCORES, ["merged"])
    stages = [row["stage"] for row in rows]
    assert stages == ["prior", "teacher", "teacher", "final", "final", "bayes"]
    assert [row["log_loss"] for row in one_per_stage(rows)] == [1.1, 0.95, 0.9, 0.8]


def test_markdown_table_is_aligned():
    text = markdown_table(["name", "loss"], [["a", 1.23456], ["long name", None]])
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].endswith("-: |")
    assert "| 1.2346 |" in lines[2]


def test_a_column_of_one_digit_is_still_markdown():
    assert markdown_table(["n"], [[1]]).splitlines()[1] == "| -: |"


def test_reading_scores_and_curves(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("stage,fold,log_loss\nprior,,1.5\n")
    assert read_rows(path) == [{"stage": "prior", "fold": None, "log_loss": 1.5}]
    path.write_text("")
    with pytest.raises(UserError, match="not a whole CSV file"):
        read_rows(path)
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n')
    assert read_curve(path) == [(1, 2.0)]


def test_summary_of_the_toy(toy, tmp_path):
    figures = [tmp_path / "stages.svg", tmp_path / "swap.svg"]
    cleaning = {
        "n_in": {"train": 9, "test": 3},
        "n_out": {"train": 7, "test": 3},
        "dropped": {"duplicate": {"train": 2, "test": 0}},
    }
    write_json(tmp_path / "cleaning.json", cleaning)
    summarise_report(
        SummaryFiles(
            scores=toy.path("scores.csv"),
            steps=toy.path("steps.csv"),
            cleaning=tmp_path / "cleaning.json",
            teacher_calibrations=[toy.path("llama0.json")],
            judge_calibrations=[toy.path(f"{name}.json") for name in JUDGES],
            figures=figures,
            submission=Path("results/submission.csv"),
        ),
        tmp_path / "summary.md",
        judges=JUDGES,
        teachers=["llama fold 0"],
        teacher_gate="warn",
    )
    text = (tmp_path / "summary.md").read_text()
    shown = ("| final ", "| bayes ", "gate: warn", "passed", "dropped: duplicate")
    for part in (
        *shown,
        "results/submission.csv",
        "swap.svg",
        "of the gap",
        "gptq8_calibrated",
    ):
        assert part in text

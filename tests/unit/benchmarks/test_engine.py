"""Test the pure parts of the engine's benchmark, and run it once at tiny sizes."""

import json

import numpy as np
import torch

from benchmarks import engine, result_rows


def test_recipe_and_engine_see_the_same_rows():
    rows_ = engine.step_rows(np.array([3, 5]), seed=0)
    assert sorted(rows_.tolist()) == [6, 7, 10, 11]


def test_cases_hold_the_recipe_first_and_once():
    cases = engine.plan_cases(
        ["tiny-llama"],
        ["train", "infer"],
        ["bf16", "fp8"],
        ["engine", "recipe_upper"],
        "nf4",
    )
    assert [(case.mode, case.base, case.variant) for case in cases] == [
        ("train", "nf4", "recipe_upper"),
        ("train", "bf16", "engine"),
        ("train", "fp8", "engine"),
        ("infer", "bf16", "engine"),
        ("infer", "fp8", "engine"),
    ]


def test_tiny_run(tmp_path, capsys):
    out = tmp_path / "tiny.json"
    words = f"--tiny --models tiny-gemma2 --bases bf16 nf4 --out {out}"
    assert engine.run(engine.read_arguments(words.split()))
    stored = json.loads(out.read_text())
    assert len(stored) == 6
    for row in stored:
        assert row["useful_tokens_per_s"] > 0
        assert 0 < row["fill"] <= 1
        assert (row["shared"] == 0) == ("recipe" in row["variant"])
        assert 0 <= row["shared"] < 0.066
        assert row["first_step_s"] >= row["build_s"]
        assert (row["ratio_to_recipe"] is None) == ("recipe" in row["variant"])
        assert {"machine", "versions", "lengths", "targets", "gpus"} <= row.keys()
    printed = capsys.readouterr().out
    assert printed.count("tokens/s") == 6
    assert result_rows.speed_table(stored).count("\n") == 7


def test_a_failure_is_a_row_and_the_rest_goes_on(tmp_path, monkeypatch):
    real = engine.measure

    def measure(case, amount, device):
        if case.is_recipe:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(case, amount, device)

    monkeypatch.setattr(engine, "measure", measure)
    out = tmp_path / "tiny.json"
    words = f"--tiny --models tiny-llama --modes infer --bases bf16 --out {out}"
    assert not engine.run(engine.read_arguments(words.split()))
    engine_row, recipe_row = json.loads(out.read_text())
    assert recipe_row["error"] == "out of memory"
    assert recipe_row["peak_fraction"] is None
    assert engine_row["useful_tokens_per_s"] > 0

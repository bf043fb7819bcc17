"""The rule that makes a file, found in the text of the rules."""

import ast
from pathlib import Path

import pytest

from prefdistill.running.rule_lookup import producing_rules, rerun_advice

PACKAGE = Path(__file__).resolve().parents[3] / "workflow/scripts/prefdistill"


def test_only_jobs_know_of_rules():
    importers = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").endswith(".rule_lookup")
    }
    assert importers == {"logs.py"}


@pytest.mark.parametrize(
    ("path", "rules"),
    [
        ("results/data/clean.parquet", ["clean_pairs"]),
        ("/run/results/data/clean.parquet", ["clean_pairs"]),
        ("results/old/results/data/clean.parquet", ["clean_pairs"]),
        ("results/teacher/one/fold3/logits.npz", ["infer_logits"]),
        # Wildcards match a part of a path, not several.
        ("results/teacher/one/two/fold3/logits.npz", []),
        # Two rules have a pattern that fits; the one with more literal text counts.
        ("results/ablation/a/seed1/fold0/calibration.json", ["calibrate_arm"]),
        ("results/ablation/a/t/fold0/calibration.json", ["calibrate_for_arms"]),
        # It is no declared output, but lies beside one.
        ("results/merged/tokenizer.json", ["merge_adapter"]),
        ("data/clean.parquet", []),
        ("results/data/none/clean.parquet", []),
        ("results", []),
    ],
)
def test_the_rule_of_a_file_is_found(path, rules):
    assert producing_rules(path) == rules
    assert producing_rules(Path(path)) == rules


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("results/folds/fold2.parquet", "delete it so that rule make_folds runs again"),
        ("results/none/at/all", "delete it so that its rule runs again"),
        ("data/train.csv", None),
    ],
)
def test_the_advice_names_the_rule(path, advice):
    assert rerun_advice(path) == advice


def test_the_advice_names_every_rule_that_may_have_made_the_file(monkeypatch):
    monkeypatch.setattr(
        "prefdistill.running.rule_lookup.producing_rules", lambda _: ["one", "two"]
    )
    assert rerun_advice("results/a") == "delete it so that rule one or two runs again"

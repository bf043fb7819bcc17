"""The reduced demo, end to end: its files, its scores, and other ways to use it."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from running import ROOT, planned, snakemake

from prefdistill.storage.logits import read_logits
from prefdistill.storage.records import read_json
from prefdistill.storage.tables import FOLD_SCHEMA

TARGETS = (
    "folds",
    "teachers",
    "logits",
    "students",
    "merged",
    "gptq",
    "predictions",
    "report",
    "release",
    "check_models",
    "ablation_distillation",
    "ablations",
    "fold_0",
    "fold_2",
    "results/post_pretrain/llama/adapter_model.safetensors",
    "results/teacher/qwen/fold2/calibrated.npz",
    "results/predictions/adapters_gptq4/symmetrised.parquet",
    "results/predictions/fold1_nf4/symmetrised.parquet",
)
PLAN_LIKE = {
    "teachers": {
        "qwen": None,
        "llama": {
            "training": {"n_rows": 100},
            "inference": {"rows": [50, 90], "weights": "merged"},
            "post_pretrain": {"fraction_of_epoch": 0.01, "objective": "causal_lm"},
        },
    },
    "quantisation": {"bits": [4]},
    "predict": {"model": "adapters", "base": "gptq4", "folds": "best"},
}


def rows_of(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_run_ends_with_scores_of_every_stage(finished):
    rows = rows_of(finished / "results/report/scores.csv")
    assert ",".join(rows[0]) == (
        "stage,model,fold,split,views,n,log_loss,log_loss_low,log_loss_high,"
        "accuracy,brier,ece,swap_agreement"
    )
    stages = {row["stage"] for row in rows}
    assert stages >= {
        *("prior", "length", "trees", "teacher", "teacher_calibrated", "student"),
        *("adapters", "merged", "gptq8", "gptq4", "final", "bayes"),
    }
    final = [row for row in rows if row["stage"] == "final"]
    assert [(row["split"], row["views"]) for row in final] == [("test", "AB+BA")]
    bayes = [r for r in rows if r["stage"] == "bayes" and r["split"] == "test"]
    assert float(bayes[0]["log_loss"]) < float(final[0]["log_loss"])
    for row in rows:
        low, high = float(row["log_loss_low"]), float(row["log_loss_high"])
        assert low <= float(row["log_loss"]) <= high
        assert row["split"] in {"dev", "select", "test"}


def test_the_submission_has_every_unlabelled_row_and_whole_probabilities(finished):
    rows = rows_of(finished / "results/submission.csv")
    asked = rows_of(finished / "results/simulated/test.csv")
    assert [row["id"] for row in rows] == [row["id"] for row in asked]
    columns = ["winner_model_a", "winner_model_b", "winner_tie"]
    assert list(rows[0]) == ["id", *columns]
    probs = np.array([[float(row[name]) for name in columns] for row in rows])
    assert np.isfinite(probs).all()
    assert (probs >= 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)


def test_fold_files_hold_no_column_made_from_the_label(finished):
    for fold in range(3):
        table = pq.read_table(finished / f"results/folds/fold{fold}.parquet")
        assert table.schema.names == FOLD_SCHEMA.names
        assert not {"argmax", "label", "model_a"} & set(table.schema.names)


def test_held_out_rows_are_the_same_for_all_folds_and_in_no_train_side(finished):
    tables = [
        pq.read_table(finished / f"results/folds/fold{k}.parquet").to_pylist()
        for k in range(3)
    ]
    held_out = [
        {
            (row["id"], row["split"])
            for row in table
            if row["split"] in ("select", "test")
        }
        for table in tables
    ]
    assert held_out[0] == held_out[1] == held_out[2]
    for table in tables:
        groups = {row["group"] for row in table if row["split"] != "train"}
        assert not groups & {row["group"] for row in table if row["split"] == "train"}


def test_logits_carry_their_provenance(finished):
    scores = read_logits(finished / "results/teacher/llama/fold0/logits.npz")
    assert {"train", "dev", "select", "test"} == set(scores.split)
    assert scores.logits.shape[1:] == (2, 3)
    assert json.dumps(scores.meta)
    calibrated = read_logits(finished / "results/teacher/llama/fold0/calibrated.npz")
    assert (calibrated.ids == scores.ids).all()
    predicted = read_logits(finished / "results/predictions/gptq4/logits.npz")
    assert set(predicted.split) == {"select", "test", "unlabelled"}
    assert predicted.meta["classes"] == scores.meta["classes"]
    assert predicted.meta["text"] == scores.meta["text"]
    assert predicted.views == scores.views == ["AB", "BA"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_planned(target, tmp_path):
    assert planned(tmp_path, target)


@pytest.mark.slow
def test_the_best_folds_adapter_on_the_quantised_bare_base(copied, tmp_path):
    overlay = tmp_path / "plan.yaml"
    overlay.write_text(yaml.safe_dump(PLAN_LIKE))
    result = snakemake(copied, "all", overlays=(overlay,))
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    final = [
        row
        for row in rows_of(copied / "results/report/scores.csv")
        if row["stage"] == "final"
    ]
    assert [row["model"] for row in final] == ["adapters_gptq4"]
    scored = read_logits(copied / "results/teacher/llama/fold0/logits.npz")
    assert (scored.split == "train").sum() == 40
    assert len(rows_of(copied / "results/submission.csv")) == 24


@pytest.mark.slow
def test_arms_learn_from_what_they_are_named_after(copied, tmp_path):
    overlay = tmp_path / "one_seed.yaml"
    overlay.write_text("ablation: {seeds: [0]}\n")
    arms = ("distilled", "hard_rows", "pseudo_labels", "ema_80", "self_distilled")
    folders = {arm: f"results/ablation/{arm}/seed0/fold0" for arm in arms}
    targets = [f"{each}/adapter_model.safetensors" for each in folders.values()]
    result = snakemake(copied, *targets, overlays=(overlay,))
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    adapters = {(copied / target).read_bytes() for target in targets}
    assert len(adapters) == len(arms)
    rows = {arm: read_json(copied / folders[arm] / "rows.json") for arm in arms}
    assert [rows[arm]["dev_is_clean"] for arm in arms] == [
        True,
        False,
        True,
        True,
        True,
    ]
    assert rows["hard_rows"]["n_judged_out_of_fold"] > 100
    pseudo = rows["pseudo_labels"]
    assert pseudo["n_pseudo_labelled"] + pseudo["n_pseudo_left_out"] == 24


def test_a_wrong_configuration_is_one_line_before_any_job(tmp_path):
    overlay = tmp_path / "wrong.yaml"
    overlay.write_text("student: {training: {learning_rat: 1}}\n")
    result = snakemake(tmp_path, "--dry-run", "all", overlays=(overlay,))
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert lines == [
        "error: config: unknown key 'learning_rat' at student.training; did you mean "
        "'learning_rate'?"
    ]
    assert "Traceback" not in result.stderr


def test_the_shipped_configurations_plan_elsewhere(tmp_path):
    """Also where no config/ lies, and with the plan's own settings."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "test", "ultrafeedback", "lmsys-33k-deduplicated"):
        (data / f"{name}.csv").write_text("id,prompt\n" + "1,p\n" * 9)
    for name, teachers in (("config", 6), ("plan", 3), ("small", 3)):
        result = snakemake(
            tmp_path, "--dry-run", "all", config=ROOT / f"config/{name}.yaml"
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert re.search(rf"train_teacher +{teachers}\b", result.stdout + result.stderr)


def test_the_snakefile_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; sys.argv = ['snakemake', '-n', '--quiet', 'all', "
        f"'--snakefile', {str(ROOT / 'workflow/Snakefile')!r}, '--directory', "
        f"{str(tmp_path)!r}, '--configfile', {str(ROOT / 'config/demo.yaml')!r}]\n"
        "import snakemake.cli\n"
        "known = set(sys.modules)\n"
        "try:\n    snakemake.cli.main()\nexcept SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'pyarrow', 'scipy'}\n"
        "loaded = heavy & (set(sys.modules) - known)\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_report_is_one_file_that_needs_no_other(finished, tmp_path):
    path = tmp_path / "report.html"
    done = snakemake(finished, "report", f"--report={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    text = path.read_text()
    assert not re.search(r"<(script|img|iframe|link)[^>]*(src|href)=.?https?:", text)
    shown = set(re.findall(r'"what": "([^"]+)"', text))
    assert len(shown) >= 11
    assert {
        "2 log loss by stage",
        "3 accuracy against confidence",
        "2 training loss",
    } <= shown
    page = (finished / "results/report/run.html").read_text()
    rules = re.findall(r"<tr>\n<td>(\w+)</td>\n<td[^>]*>\d+</td>", page)
    assert {"train_teacher", "infer_logits", "quantise_model", "all"} <= set(rules)
    assert "n_bootstrap" in page  # the configuration

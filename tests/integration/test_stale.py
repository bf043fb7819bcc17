"""The DAG reruns only stale steps: a table of changes and what they cost."""

import os
import shutil
import time

import pytest
import yaml
from running import checkout, planned

DATA = {"simulate_pairs", "import_pairs", "clean_pairs", "make_folds"}
BASES = {"make_tiny_model"}
TEACHERS = {"train_teacher", "infer_logits", "calibrate_logits"}
AFTER_STUDENT = {
    "average_adapters",
    "merge_adapter",
    "quantise_model",
    "predict_logits",
    "calibrate_judge",
    "calibrate_quantised_judge",
    "symmetrise",
    "write_submission",
    "evaluate",
    "plot_report",
    "summarise_report",
    "write_pages",
    "all",
}


def overlay(tmp_path, settings):
    path = tmp_path / "overlay.yaml"
    path.write_text(yaml.safe_dump(settings))
    return (path,)


def test_a_second_run_does_nothing(finished):
    assert not planned(finished, "all")


def test_touched_sources_cost_nothing(finished, tmp_path):
    root = checkout(tmp_path)
    now = time.time()
    for folder, _, names in os.walk(root):
        for name in names:
            os.utime(os.path.join(folder, name), (now, now))
    assert not planned(finished, "all", root=root)


def test_a_fresh_clone_with_copied_results_does_nothing(finished, tmp_path):
    elsewhere = tmp_path / "run"
    elsewhere.mkdir()
    shutil.copytree(finished / "results", elsewhere / "results")
    assert not planned(elsewhere, "all", root=checkout(tmp_path / "clone"))


CHANGES = {
    "student learning rate": (
        {"student": {"training": {"learning_rate": 1e-3}}},
        {"distill_student": 3} | dict.fromkeys(AFTER_STUDENT),
        DATA | BASES | TEACHERS | {"post_pretrain", "fit_baselines"},
    ),
    "a teacher's learning rate": (
        {"teachers": {"llama": {"training": {"learning_rate": 1e-3}}}},
        {"train_teacher": 3, "infer_logits": 3, "calibrate_logits": 3}
        | {"distill_student": 3},
        DATA | BASES | {"post_pretrain", "fit_baselines"},
    ),
    "a teacher's post-pretraining": (
        {"teachers": {"llama": {"post_pretrain": {"learning_rate": 1e-3}}}},
        {"post_pretrain": 1, "train_teacher": 3},
        DATA | BASES,
    ),
    "one width less": (
        {"quantisation": {"bits": [4]}},
        {"evaluate": 1, "all": 1},
        DATA | BASES | TEACHERS | {"distill_student", "quantise_model"},
    ),
    "quantisation group size": (
        {"quantisation": {"group_size": 16}},
        {"quantise_model": 2},
        DATA | BASES | TEACHERS | {"distill_student", "merge_adapter"},
    ),
    "temperature": (
        {"distillation": {"temperature": 2.0}},
        {"distill_student": 3, "merge_adapter": 1},
        DATA | BASES | TEACHERS | {"post_pretrain"},
    ),
    "calibration": (
        {"calibration": {"method": "temperature"}},
        {"calibrate_logits": 6, "distill_student": 3},
        DATA | BASES | {"post_pretrain", "train_teacher", "infer_logits"},
    ),
    "fold count": (
        {"folds": {"n": 2}},
        {"make_folds": 1, "train_teacher": 4, "distill_student": 2},
        BASES | {"simulate_pairs", "import_pairs", "clean_pairs"},
    ),
    "template": (
        {"text": {"turn": "\n<next {n}>: "}},
        {"post_pretrain": 3, "train_teacher": 6, "infer_logits": 6}
        | {"distill_student": 3, "quantise_model": 2, "predict_logits": 6},
        DATA | {"fit_baselines"},
    ),
    "bootstrap": (
        {"evaluation": {"n_bootstrap": 300}},
        {"evaluate": 1},
        DATA | BASES | TEACHERS | {"distill_student", "predict_logits", "symmetrise"},
    ),
    "weights by advantage": (
        {"ensemble": {"fold_weights": "advantage"}},
        {"weigh_folds": 1, "average_adapters": 1, "quantise_model": 2},
        DATA | BASES | TEACHERS | {"distill_student", "fit_baselines"},
    ),
    "trees beside the judge": (
        {"predict": {"trees_weight": 0.5}},
        {"fit_baselines": 1, "symmetrise": 1, "evaluate": 1, "write_submission": 1},
        DATA
        | BASES
        | TEACHERS
        | {"distill_student", "predict_logits", "calibrate_judge"},
    ),
    "final model": (
        {"predict": {"model": "merged"}},
        {"write_submission": 1, "evaluate": 1},
        DATA | BASES | TEACHERS | {"distill_student", "predict_logits"},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_reruns_what_uses_it(name, finished, tmp_path):
    settings, expected, spared = CHANGES[name]
    jobs = planned(finished, "all", overlays=overlay(tmp_path, settings))
    assert not spared & jobs.keys()
    for rule, count in expected.items():
        assert jobs[rule] == count if count else jobs[rule] > 0, (rule, jobs)


def test_how_jobs_run_costs_nothing(finished, tmp_path):
    how = {"token_budget": 512, "compile": "never", "recompute": "full"}
    settings = {
        "gpu_tflops": 300, "runtime_safety": 3, "max_runtime": 60,
        "predict": {"token_budget": 512}, "student": {"training": how},
        "teachers": {"llama": {"training": how, "post_pretrain": how}},
    }  # fmt: skip
    assert not planned(finished, "all", overlays=overlay(tmp_path, settings))


def test_an_added_width_costs_one_quantisation(copied, tmp_path):
    shutil.rmtree(copied / "results/gptq/8bit")
    shutil.rmtree(copied / "results/predictions/gptq8")
    jobs = planned(copied, "all")
    assert jobs["quantise_model"] == 1
    assert jobs["predict_logits"] == 1
    assert not jobs.keys() & (DATA | BASES | TEACHERS | {"distill_student"})


def test_an_edited_comment_costs_nothing(finished, tmp_path):
    root = checkout(tmp_path)
    for path in (root / "workflow/scripts").rglob("*.py"):
        path.write_text("# an edited comment\n" + path.read_text())
    assert not planned(finished, "all", root=root)


def test_an_edited_function_reruns_the_stages_that_use_it(finished, tmp_path):
    root = checkout(tmp_path)
    path = root / "workflow/scripts/prefdistill/scores/metrics.py"
    text = path.read_text()
    assert "def brier(" in text
    path.write_text(text.replace("def brier(", "def brier(unused, /, ", 1))
    jobs = planned(finished, "all", root=root)
    assert jobs["evaluate"] == 1
    assert not jobs.keys() & (DATA | BASES | TEACHERS | {"distill_student"})


def test_one_fold_is_a_target(tmp_path):
    jobs = planned(tmp_path, "fold_1")
    assert jobs["train_teacher"] == 2
    assert jobs["distill_student"] == 1
    assert "merge_adapter" not in jobs

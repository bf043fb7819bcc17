"""Arms: what each changes, which files it reads, and which share their training."""

import pytest
from configurations import SCHEMA, configured, shipped

from prefdistill.pipeline.ablations import ABLATIONS
from prefdistill.pipeline.config_schema import validate_config
from prefdistill.pipeline.students import Students
from prefdistill.settings import ScalingSettings, read


class Wildcards(dict):
    """As Snakemake gives them: by attribute and by ``get``."""

    __getattr__ = dict.__getitem__


def students(**changes):
    return Students(configured("demo", **changes))


def test_without_an_arm_the_settings_are_the_configurations():
    own = students()
    config = validate_config(shipped("demo"), SCHEMA)
    no_arm = Wildcards(fold="1")
    # As text, because that is how Snakemake compares params.
    assert repr(own.distillation(no_arm)) == repr(config["distillation"])
    assert own.training(no_arm)["seed"] == config["student"]["training"]["seed"]
    assert own.logits(no_arm) == [
        f"results/teacher/{teacher}/fold1/calibrated.npz"
        for teacher in ("llama", "qwen")
    ]


def test_every_compared_arm_exists_and_differs_from_its_partner():
    own = students()
    for pairs in ABLATIONS.values():
        for first, second in pairs:
            assert own.twin(first) != own.twin(second)
    assert set(own.arms) == {
        a for pairs in ABLATIONS.values() for p in pairs for a in p
    }


def test_an_arm_that_changes_nothing_is_trained_as_the_first_such():
    assert students().twin("in_fold") == "distilled"
    other = students(distillation={"labels": "out_of_fold"})
    assert other.twin("in_fold") == "in_fold"
    assert other.twin("out_of_fold") == "distilled"
    assert other.predictions("out_of_fold", 3)[0] == (
        "results/ablation/distilled/seed3/fold0/predictions.npz"
    )


def test_an_arms_inputs_follow_its_settings():
    own = students()

    def arm(name):
        return Wildcards(arm=name, seed="2", fold="1")

    assert own.training(arm("distilled"))["seed"] == 2
    assert own.logits(arm("labels_only")) == own.gates(arm("labels_only")) == []
    assert len(own.logits(arm("out_of_fold"))) == 6
    assert own.logits(arm("raw_logits"))[0] == "results/teacher/llama/fold1/logits.npz"
    assert own.gates(arm("raw_logits"))[0] == (
        "results/teacher/llama/fold1/calibration.json"
    )
    assert own.logits(arm("untied_scaling"))[1] == (
        "results/ablation/vector_untied/qwen/fold1/calibrated.npz"
    )
    assert own.logits(arm("tied_scaling"))[1] == (
        "results/teacher/qwen/fold1/calibrated.npz"
    )
    assert not students(distillation={"teacher_gate": "off"}).gates(arm("distilled"))


def test_the_scalings_of_arms_are_settings_of_the_teachers():
    own = students()
    for name in own.scalings:
        settings = own.calibration(Wildcards(scaling=name))
        assert read(ScalingSettings, settings).method == name.partition("_")[0]


def test_predictions_are_listed_arm_by_arm_seed_by_seed_fold_by_fold():
    own = students(ablation={"seeds": [4, 5]})
    paths = own.compared_predictions(Wildcards(ablation="soft_labels"))
    assert paths == [
        f"results/ablation/{arm}/seed{seed}/fold{fold}/predictions.npz"
        for arm in ("distilled", "out_of_fold")
        for seed in (4, 5)
        for fold in range(3)
    ]


@pytest.mark.parametrize(
    ("arm", "clean"),
    [
        ("distilled", True),
        ("out_of_fold", False),
        ("labels_only", True),
        ("hard_rows", False),
        ("pseudo_labels", True),
        ("ema_80", True),
    ],
)
def test_which_arms_dev_scores_are_clean(arm, clean):
    assert students().keeps_dev_clean(arm) == clean


def test_rows_are_judged_and_pseudo_labelled_only_where_asked_for():
    own = students()
    plain, weighed, labelled, raw = (
        Wildcards(arm=arm, seed="0", fold="1")
        for arm in ("distilled", "hard_rows", "pseudo_labels", "raw_logits")
    )
    for nothing in (own.unseen, own.unlabelled, own.unlabelled_scalings):
        assert nothing(plain) == own.unlabelled_pairs(plain) == []
    assert own.unseen(weighed) == [
        f"results/teacher/{teacher}/fold{fold}/calibrated.npz"
        for teacher in ("llama", "qwen")
        for fold in range(3)
    ]
    assert own.unlabelled(labelled)[1] == "results/teacher/qwen/fold1/unlabelled.npz"
    assert own.unlabelled_scalings(labelled) == own.gates(labelled)
    assert own.unlabelled_pairs(labelled) == ["results/folds/unlabelled.parquet"]
    all_on = students(distillation={"logits": "raw", "pseudo_labels": {"weight": 1}})
    assert all_on.unlabelled(raw)
    assert not all_on.unlabelled_scalings(raw)


def test_pseudo_labels_prefer_pairs_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.csv").write_text("id,prompt\n1,p\n")
    own = students(data={"unlabelled": ["new.csv"]})
    wildcards = Wildcards(arm="pseudo_labels", seed="0", fold="1")
    assert own.unlabelled_pairs(wildcards) == ["results/folds/pseudo.parquet"]


def test_ablations_without_data_are_not_offered():
    assert list(students().ablations) == list(ABLATIONS)
    gone = set(ABLATIONS) - set(students(data={"test": None, "ultra": []}).ablations)
    assert gone == {"pseudo_labels", "post_pretraining"}


def test_a_second_round_learns_from_the_first_of_its_fold_and_seed():
    own = students()
    second = Wildcards(arm="labels_only_self_distilled", seed="4", fold="1")
    assert own.teachers(second) == ["student"]
    folder = "results/ablation/labels_only/seed4/fold1"
    assert own.logits(second) == [f"{folder}/calibrated.npz"]
    assert own.gates(second) == [f"{folder}/calibration.json"]
    other = students(distillation={"labels": "out_of_fold", "logits": "raw"})
    second = Wildcards(arm="self_distilled", seed="0", fold="1")
    assert other.logits(second) == [
        f"results/ablation/distilled/seed0/fold{fold}/logits.npz" for fold in range(3)
    ]


def test_an_arm_starts_from_its_own_post_pretraining():
    own = students()
    changed = Wildcards(arm="post_pretrain_causal_lm", seed="0", fold="0")
    assert own.post_pretrain(changed)["objective"] == "causal_lm"
    assert own.init(changed) == (
        "results/ablation/post_pretrain_causal_lm/init/adapter_model.safetensors"
    )
    assert own.init_config(changed).endswith("init/adapter_config.json")
    for arm in ("distilled", "post_pretrain_classification", None):
        wildcards = Wildcards({"arm": arm} if arm else {}, seed="0", fold="0")
        assert own.init(wildcards) == (
            "results/post_pretrain/student/adapter_model.safetensors"
        )


def test_a_running_mean_is_an_output_only_where_one_is_kept():
    assert students().average_files == []
    assert students(distillation={"ema": {"decay": 0.9}}).average_files[0] == (
        "results/student/fold{fold}/ema/adapter_model.safetensors"
    )

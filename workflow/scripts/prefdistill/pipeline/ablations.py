"""List the ablations: which arms each compares, and which settings each arm changes.

An arm is a student with some settings changed. Both sides of a comparison set what the
ablation is about, and follow the configuration in all else. So a table has the same
meaning whatever the configuration sets.

Imported by the Snakefile, so it stays light.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from prefdistill.settings import (
    CalibrationSettings,
    DistillationSettings,
    PostPretrainSettings,
    TrainingSettings,
)

Section = TypeVar("Section")
# Settings to change, nested as the sections of ``StudentSettings`` are.
Changes = dict[str, Any]

# Pairs of arms by ablation, (from, to): a negative difference speaks for the second.
ABLATIONS: dict[str, list[tuple[str, str]]] = {
    "distillation": [
        ("labels_only", "distilled"),
        ("labels_only_few", "distilled_few"),
        # Four times the epochs: about as many steps as distilled_few, which sees all.
        ("labels_only_few_long", "distilled_few"),
    ],
    "soft_labels": [("in_fold", "out_of_fold")],
    "calibration": [
        ("raw_logits", "tied_scaling"),
        ("untied_scaling", "tied_scaling"),
        ("one_scale", "tied_scaling"),
    ],
    "temperature": [
        ("temperature_1", "temperature_2"),
        ("temperature_1", "temperature_4"),
    ],
    "cosine": [("without_cosine", "with_cosine")],
    "sample_weights": [("rows_equal", "hard_rows"), ("rows_equal", "clear_rows")],
    "pseudo_labels": [
        ("no_pseudo_labels", "pseudo_labels"),
        ("no_pseudo_labels", "pseudo_labels_half"),
    ],
    "ema": [("last_weights", "ema_80"), ("last_weights", "ema_95")],
    "self_distillation": [
        ("distilled", "self_distilled"),
        ("labels_only", "labels_only_self_distilled"),
    ],
    "post_pretraining": [
        ("post_pretrain_none", "post_pretrain_classification"),
        ("post_pretrain_none", "post_pretrain_causal_lm"),
        ("post_pretrain_1_percent", "post_pretrain_100_percent"),
        ("post_pretrain_10_percent", "post_pretrain_100_percent"),
    ],
}


@dataclass(frozen=True, kw_only=True)
class StudentSettings:
    """Hold all settings of a student that an arm may change.

    Attributes:
        teachers: Names of its teachers; none for one that learns from labels alone.
        teacher_arm: The arm whose students are its teachers; None for the teachers of
            the configuration.
        training: Settings of its fine-tuning.
        distillation: What it learns from, and its loss.
        calibration: Scaling of its teachers' logits.
        post_pretrain: Settings of what it starts from.
    """

    teachers: list[str]
    teacher_arm: str | None
    training: TrainingSettings
    distillation: DistillationSettings
    calibration: CalibrationSettings
    post_pretrain: PostPretrainSettings


def with_changes(settings: Section, changes: Mapping[str, Any]) -> Section:
    """Return settings with changes laid over them, section by section at any depth."""
    new = {
        key: with_changes(getattr(settings, key), value)
        if isinstance(value, Mapping)
        else value
        for key, value in changes.items()
    }
    return replace(settings, **new)


def arm_changes(n_few_labels: int, epochs: float) -> dict[str, Changes]:
    """List the settings that each arm changes, by arm.

    Args:
        n_few_labels: Labelled rows of the arms that see few.
        epochs: Of the student's training.
    """
    few = n_few_labels
    few_long = {"n_rows": few, "epochs": 4 * epochs}
    return {
        "distilled": {},
        "labels_only": {"teachers": []},
        "distilled_few": _distil(n_labelled_rows=few),
        "labels_only_few": {"teachers": [], "training": {"n_rows": few}},
        "labels_only_few_long": {"teachers": [], "training": few_long},
        **_loss_arms(),
        **_row_arms(),
        "last_weights": _distil(ema={"use": False}),
        "ema_80": _distil(ema={"decay": 0.8, "use": True}),
        "ema_95": _distil(ema={"decay": 0.95, "use": True}),
        # Round two: the teacher is the student of round one, of that fold and seed.
        "self_distilled": _second_round("distilled"),
        "labels_only_self_distilled": _second_round("labels_only"),
        **{
            f"post_pretrain_{objective}": {"post_pretrain": {"objective": objective}}
            for objective in ("none", "classification", "causal_lm")
        },
        **{
            f"post_pretrain_{percent}_percent": {
                "post_pretrain": {"fraction_of_epoch": percent / 100}
            }
            for percent in (1, 10, 100)
        },
    }


def _distil(**changes: Any) -> Changes:
    return {"distillation": changes}


def _scaling(method: str, *, tied: bool = True) -> Changes:
    calibration = {"method": method, "tied": tied}
    return {"calibration": calibration, **_distil(logits="calibrated")}


def _second_round(arm: str) -> Changes:
    source = {"teachers": ["student"], "teacher_arm": arm}
    return {**source, **_distil(pseudo_labels={"weight": 0.0})}


def _loss_arms() -> dict[str, Changes]:
    """List the arms about the teachers' logits and the loss."""
    return {
        "in_fold": _distil(labels="in_fold"),
        "out_of_fold": _distil(labels="out_of_fold"),
        "raw_logits": _distil(logits="raw"),
        "tied_scaling": _scaling("vector"),
        "untied_scaling": _scaling("vector", tied=False),
        "one_scale": _scaling("temperature"),
        **{f"temperature_{t}": _distil(temperature=float(t)) for t in (1, 2, 4)},
        "without_cosine": _distil(weights={"cosine": 0.0}),
        "with_cosine": _distil(weights={"cosine": 1.0}),
    }


def _row_arms() -> dict[str, Changes]:
    """List the arms about the rows' weights."""
    return {
        "rows_equal": _distil(sample_weights={"beta": 0.0}),
        "hard_rows": _distil(sample_weights={"beta": -0.5}),
        "clear_rows": _distil(sample_weights={"beta": 0.5}),
        "no_pseudo_labels": _distil(pseudo_labels={"weight": 0.0}),
        "pseudo_labels": _distil(pseudo_labels={"weight": 1.0}),
        "pseudo_labels_half": _distil(pseudo_labels={"weight": 0.5}),
    }

"""Find the settings and input files of each student: the pipeline's own, and the arms.

The ablations' arms are students too. Arms with the same settings are trained once.
Imported by the Snakefile, so it stays light.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefdistill.pipeline.ablations import (
    ABLATIONS,
    Changes,
    StudentSettings,
    arm_changes,
    with_changes,
)
from prefdistill.settings import CalibrationSettings, Settings, result_settings


class Students:
    """Find the settings and input files of every student.

    The methods that take wildcards are input and parameter functions of Snakemake.
    Wildcards without ``arm`` mean the pipeline's own student.

    Args:
        settings: The whole configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self.n_folds = settings.folds.n
        data, student = settings.data, settings.student
        needs = {
            "pseudo_labels": data.unlabelled or data.test,
            "post_pretraining": data.ultra,
        }
        # An ablation without data is not offered.
        self.ablations = {k: v for k, v in ABLATIONS.items() if needs.get(k, True)}
        own_pairs = "pseudo" if data.unlabelled else "unlabelled"
        self.pseudo_pairs = f"results/folds/{own_pairs}.parquet"
        self.seeds = settings.ablation.seeds
        self.base = StudentSettings(
            teachers=list(settings.teachers),
            teacher_arm=None,
            training=student.training,
            distillation=settings.distillation,
            calibration=settings.calibration,
            post_pretrain=student.post_pretrain,
        )
        n_few_labels = settings.ablation.n_few_labels
        self.changes = arm_changes(n_few_labels, student.training.epochs)
        self.arms = {
            name: with_changes(self.base, changes)
            for name, changes in self.changes.items()
        }
        self.scalings = {
            scaling_name(arm.calibration): arm.calibration for arm in self.arms.values()
        }
        # The running mean of the pipeline's own student, where one is kept.
        self.average_files = [
            f"results/student/fold{{fold}}/ema/{name}"
            for name in ("adapter_model.safetensors", "adapter_config.json")
            if settings.distillation.ema.decay > 0
        ]

    def twin(self, arm: str) -> str:
        """Return the first arm with the same settings, which is trained for all."""
        return next(k for k, other in self.arms.items() if other == self.arms[arm])

    def settings(self, wildcards: Any) -> StudentSettings:
        """Return all settings of a student."""
        arm = wildcards.get("arm")
        return self.base if arm is None else self.arms[arm]

    def teachers(self, wildcards: Any) -> list[str]:
        """Return the names of a student's teachers."""
        return self.settings(wildcards).teachers

    def training(self, wildcards: Any) -> dict[str, Any]:
        """Return the training settings that decide the result, with an arm's seed."""
        settings = result_settings(self.settings(wildcards).training)
        seed = wildcards.get("seed")
        return settings if seed is None else {**settings, "seed": int(seed)}

    def distillation(self, wildcards: Any) -> dict[str, Any]:
        """Return the distillation settings."""
        return asdict(self.settings(wildcards).distillation)

    def post_pretrain(self, wildcards: Any) -> dict[str, Any]:
        """Return the post-pretraining settings that decide the result."""
        return result_settings(self.settings(wildcards).post_pretrain)

    def init(self, wildcards: Any) -> str:
        """Name the adapter that a student starts from."""
        own = self.settings(wildcards).post_pretrain != self.base.post_pretrain
        folder = f"ablation/{wildcards.arm}/init" if own else "post_pretrain/student"
        return f"results/{folder}/adapter_model.safetensors"

    def init_config(self, wildcards: Any) -> str:
        """Name the configuration of that adapter."""
        return str(Path(self.init(wildcards)).with_name("adapter_config.json"))

    def logits(self, wildcards: Any) -> list[str]:
        """List the teachers' logits to learn from, teacher by teacher."""
        raw = self.settings(wildcards).distillation.logits == "raw"
        name = "logits.npz" if raw else "calibrated.npz"
        return self._files(wildcards, name, self._label_folds(wildcards))

    def gates(self, wildcards: Any) -> list[str]:
        """List the records of the teachers' information gains, if there is a gate."""
        if self.settings(wildcards).distillation.teacher_gate == "off":
            return []
        folds = self._label_folds(wildcards)
        return self._files(wildcards, "calibration.json", folds)

    def _label_folds(self, wildcards: Any) -> Iterable[int | str]:
        """List the folds whose teachers label a student's rows."""
        in_fold = self.settings(wildcards).distillation.labels == "in_fold"
        return [wildcards.fold] if in_fold else range(self.n_folds)

    def unseen(self, wildcards: Any) -> list[str]:
        """List the teachers' calibrated logits of every fold, if they weigh rows."""
        if not self.settings(wildcards).distillation.judges_rows:
            return []
        return self._files(wildcards, "calibrated.npz", range(self.n_folds))

    def unlabelled(self, wildcards: Any) -> list[str]:
        """List the fold's teachers' logits of unlabelled pairs, for pseudo-labels."""
        if not self.settings(wildcards).distillation.pseudo_labels.weight:
            return []
        return self._files(wildcards, "unlabelled.npz", [wildcards.fold])

    def unlabelled_scalings(self, wildcards: Any) -> list[str]:
        """List the scalings of those logits, unless the student takes them raw."""
        wanted = self.settings(wildcards).distillation
        if not wanted.pseudo_labels.weight or wanted.logits == "raw":
            return []
        return self._files(wildcards, "calibration.json", [wildcards.fold])

    def unlabelled_pairs(self, wildcards: Any) -> list[str]:
        """List the table of unlabelled pairs, if there are teachers to label them."""
        has = self.unlabelled(wildcards)
        return [self.pseudo_pairs] if has else []

    def _files(
        self, wildcards: Any, name: str, folds: Iterable[int | str]
    ) -> list[str]:
        """List a file of every teacher and fold, from where the scaling puts it."""
        settings = self.settings(wildcards)
        if settings.teacher_arm:
            folder = f"results/ablation/{self.twin(settings.teacher_arm)}"
            seed = wildcards.seed
            return [f"{folder}/seed{seed}/fold{fold}/{name}" for fold in folds]
        folder = "results/teacher"
        scaled = name in ("calibrated.npz", "calibration.json")
        if scaled and settings.calibration != self.base.calibration:
            folder = f"results/ablation/{scaling_name(settings.calibration)}"
        return [
            f"{folder}/{teacher}/fold{fold}/{name}"
            for teacher in settings.teachers
            for fold in folds
        ]

    def calibration(self, wildcards: Any) -> dict[str, Any]:
        """Return how the teachers' logits are scaled under one name of ``scalings``."""
        scaling = self.scalings[wildcards.scaling]
        return {"method": scaling.method, "tied": scaling.tied}

    def predictions(self, arm: str, seed: int) -> list[str]:
        """List an arm's predictions with one seed, fold by fold."""
        folder = f"results/ablation/{self.twin(arm)}/seed{seed}"
        return [f"{folder}/fold{fold}/predictions.npz" for fold in range(self.n_folds)]

    def comparisons(self, wildcards: Any) -> list[tuple[str, str]]:
        """List the pairs of arms that an ablation compares."""
        return ABLATIONS[wildcards.ablation]

    def compared_changes(self, wildcards: Any) -> dict[str, Changes]:
        """List the arms of an ablation, each once, with what it changes."""
        pairs = ABLATIONS[wildcards.ablation]
        return {arm: self.changes[arm] for pair in pairs for arm in pair}

    def compared_predictions(self, wildcards: Any) -> list[str]:
        """List the predictions of those arms, arm by arm, seed by seed."""
        return [
            path
            for arm in self.compared_changes(wildcards)
            for seed in self.seeds
            for path in self.predictions(arm, seed)
        ]

    def unclean_arms(self, wildcards: Any) -> list[str]:
        """List the arms whose students learn from teachers that saw their dev rows."""
        return [
            arm
            for arm in self.compared_changes(wildcards)
            if not self.keeps_dev_clean(arm)
        ]

    def keeps_dev_clean(self, arm: str) -> bool:
        """Return whether no teacher of an arm was trained on its student's dev rows."""
        settings = self.arms[arm]
        return settings.distillation.keeps_dev_clean(settings.teachers)


def scaling_name(calibration: CalibrationSettings) -> str:
    """Name the folder of a calibration."""
    return f"{calibration.method}_{'tied' if calibration.tied else 'untied'}"

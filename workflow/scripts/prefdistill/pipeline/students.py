"""The students of a configuration: the pipeline's own, and the arms of the ablations.

An arm is a student with some settings changed; an ablation compares arms pair by pair.
Each arm sets what its ablation is about on both sides of a comparison and follows the
configuration in all else, so a table says the same whatever the configuration has on.
Arms that come to the same settings are trained once.

Imported by the Snakefile, so it stays light.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefdistill.settings import DistillationSettings, read, result_settings

# Arms by ablation, as (from, to): a negative difference speaks for the second.
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


def arm_changes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each arm's changes of the sections in ``Students.base``."""
    few = config["ablation"]["n_few_labels"]
    epochs = config["student"]["training"]["epochs"]
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


def _distil(**changes: Any) -> dict[str, Any]:
    return {"distillation": changes}


def _scaling(method: str, *, tied: bool = True) -> dict[str, Any]:
    calibration = {"method": method, "tied": tied}
    return {"calibration": calibration, **_distil(logits="calibrated")}


def _second_round(arm: str) -> dict[str, Any]:
    source = {"teachers": ["student"], "teacher_arm": arm}
    return {**source, **_distil(pseudo_labels={"weight": 0.0})}


def _loss_arms() -> dict[str, dict[str, Any]]:
    """Arms about the teachers' logits and the loss."""
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


def _row_arms() -> dict[str, dict[str, Any]]:
    """Arms about which rows count, and how much."""
    return {
        "rows_equal": _distil(sample_weights={"beta": 0.0}),
        "hard_rows": _distil(sample_weights={"beta": -0.5}),
        "clear_rows": _distil(sample_weights={"beta": 0.5}),
        "no_pseudo_labels": _distil(pseudo_labels={"weight": 0.0}),
        "pseudo_labels": _distil(pseudo_labels={"weight": 1.0}),
        "pseudo_labels_half": _distil(pseudo_labels={"weight": 0.5}),
    }


def with_changes(
    settings: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings with changes laid over them, section by section at any depth."""
    merged = dict(settings)
    for key, value in changes.items():
        inner = settings.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        merged[key] = with_changes(inner, value) if both else value
    return merged


class Students:
    """Settings and input files of every student.

    The methods that take wildcards are input and parameter functions of Snakemake.
    Wildcards without ``arm`` mean the pipeline's own student.

    Args:
        config: A validated configuration.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.n_folds = config["folds"]["n"]
        data = config["data"]
        needs = {
            "pseudo_labels": data["unlabelled"] or data["test"],
            "post_pretraining": data["ultra"],
        }
        # Those for which there are data.
        self.ablations = {k: v for k, v in ABLATIONS.items() if needs.get(k, True)}
        own_pairs = "pseudo" if data["unlabelled"] else "unlabelled"
        self.pseudo_pairs = f"results/folds/{own_pairs}.parquet"
        self.seeds = config["ablation"]["seeds"]
        student = config["student"]
        self.base: dict[str, Any] = {
            "teachers": list(config["teachers"]),
            "teacher_arm": None,
            "training": result_settings(student["training"]),
            "distillation": config["distillation"],
            "calibration": config["calibration"],
            "post_pretrain": result_settings(student["post_pretrain"]),
        }
        self.changes = arm_changes(config)
        self.arms = {
            name: with_changes(self.base, changes)
            for name, changes in self.changes.items()
        }
        self.scalings = {
            scaling_name(arm["calibration"]): arm["calibration"]
            for arm in self.arms.values()
        }
        keeps_mean = config["distillation"]["ema"]["decay"] > 0
        # The running mean of the pipeline's own student, where one is kept.
        self.average_files = [
            f"results/student/fold{{fold}}/ema/{name}"
            for name in ("adapter_model.safetensors", "adapter_config.json")
            if keeps_mean
        ]

    def twin(self, arm: str) -> str:
        """The first arm with the same settings, which is trained for all of them."""
        return next(k for k, other in self.arms.items() if other == self.arms[arm])

    def settings(self, wildcards: Any) -> dict[str, Any]:
        """All settings of a student."""
        arm = wildcards.get("arm")
        return self.base if arm is None else self.arms[arm]

    def teachers(self, wildcards: Any) -> list[str]:
        """The names of a student's teachers; none for one that learns from labels."""
        return self.settings(wildcards)["teachers"]

    def training(self, wildcards: Any) -> dict[str, Any]:
        """The training settings; an arm's seed is a wildcard."""
        settings = self.settings(wildcards)["training"]
        seed = wildcards.get("seed")
        return settings if seed is None else {**settings, "seed": int(seed)}

    def distillation(self, wildcards: Any) -> dict[str, Any]:
        """The distillation settings."""
        return self.settings(wildcards)["distillation"]

    def post_pretrain(self, wildcards: Any) -> dict[str, Any]:
        """The post-pretraining settings."""
        return self.settings(wildcards)["post_pretrain"]

    def init(self, wildcards: Any) -> str:
        """The adapter that a student starts from."""
        own = self.post_pretrain(wildcards) != self.base["post_pretrain"]
        folder = f"ablation/{wildcards.arm}/init" if own else "post_pretrain/student"
        return f"results/{folder}/adapter_model.safetensors"

    def init_config(self, wildcards: Any) -> str:
        """The shape of that adapter."""
        return str(Path(self.init(wildcards)).with_name("adapter_config.json"))

    def logits(self, wildcards: Any) -> list[str]:
        """The teachers' logits to learn from, teacher by teacher."""
        wanted = self.distillation(wildcards)
        in_fold = wanted["labels"] == "in_fold"
        folds = [wildcards.fold] if in_fold else range(self.n_folds)
        raw = wanted["logits"] == "raw"
        return self._files(wildcards, "logits.npz" if raw else "calibrated.npz", folds)

    def gates(self, wildcards: Any) -> list[str]:
        """The teachers' information gains, if a gate asks for them."""
        wanted = self.distillation(wildcards)
        if wanted["teacher_gate"] == "off":
            return []
        in_fold = wanted["labels"] == "in_fold"
        folds = [wildcards.fold] if in_fold else range(self.n_folds)
        return self._files(wildcards, "calibration.json", folds)

    def unseen(self, wildcards: Any) -> list[str]:
        """The teachers' calibrated logits of every fold, if rows are judged by them."""
        wanted = read(DistillationSettings, self.distillation(wildcards))
        if not wanted.judges_rows:
            return []
        return self._files(wildcards, "calibrated.npz", range(self.n_folds))

    def unlabelled(self, wildcards: Any) -> list[str]:
        """The fold's teachers' logits of unlabelled pairs, for pseudo-labels."""
        if not self.distillation(wildcards)["pseudo_labels"]["weight"]:
            return []
        return self._files(wildcards, "unlabelled.npz", [wildcards.fold])

    def unlabelled_scalings(self, wildcards: Any) -> list[str]:
        """The scalings of those logits, unless they are wanted raw."""
        wanted = self.distillation(wildcards)
        if not wanted["pseudo_labels"]["weight"] or wanted["logits"] == "raw":
            return []
        return self._files(wildcards, "calibration.json", [wildcards.fold])

    def unlabelled_pairs(self, wildcards: Any) -> list[str]:
        """The unlabelled pairs, if there are teachers to label them."""
        has = self.unlabelled(wildcards)
        return [self.pseudo_pairs] if has else []

    def _files(self, wildcards: Any, name: str, folds: Any) -> list[str]:
        """A file of every teacher and fold, from where the scaling puts it."""
        settings = self.settings(wildcards)
        if settings["teacher_arm"]:
            folder = f"results/ablation/{self.twin(settings['teacher_arm'])}"
            seed = wildcards.seed
            return [f"{folder}/seed{seed}/fold{fold}/{name}" for fold in folds]
        folder = "results/teacher"
        scaled = name in ("calibrated.npz", "calibration.json")
        if scaled and settings["calibration"] != self.base["calibration"]:
            folder = f"results/ablation/{scaling_name(settings['calibration'])}"
        return [
            f"{folder}/{teacher}/fold{fold}/{name}"
            for teacher in settings["teachers"]
            for fold in folds
        ]

    def calibration(self, wildcards: Any) -> dict[str, Any]:
        """The calibration settings of a scaling that arms ask for."""
        return self.scalings[wildcards.scaling]

    def predictions(self, arm: str, seed: int) -> list[str]:
        """An arm's predictions with one seed, fold by fold."""
        folder = f"results/ablation/{self.twin(arm)}/seed{seed}"
        return [f"{folder}/fold{fold}/predictions.npz" for fold in range(self.n_folds)]

    def comparisons(self, wildcards: Any) -> list[tuple[str, str]]:
        """The pairs of arms that an ablation compares."""
        return ABLATIONS[wildcards.ablation]

    def compared_changes(self, wildcards: Any) -> dict[str, dict[str, Any]]:
        """The arms of an ablation, each once, with the settings that they change."""
        pairs = ABLATIONS[wildcards.ablation]
        return {arm: self.changes[arm] for pair in pairs for arm in pair}

    def compared_predictions(self, wildcards: Any) -> list[str]:
        """The predictions of those arms, arm by arm, seed by seed."""
        return [
            path
            for arm in self.compared_changes(wildcards)
            for seed in self.seeds
            for path in self.predictions(arm, seed)
        ]

    def unclean_arms(self, wildcards: Any) -> list[str]:
        """Those of the arms whose students learn from what saw their dev rows."""
        return [
            arm
            for arm in self.compared_changes(wildcards)
            if not self.keeps_dev_clean(arm)
        ]

    def keeps_dev_clean(self, arm: str) -> bool:
        """Return whether no teacher of an arm was trained on its student's dev rows."""
        settings = self.arms[arm]
        distillation = read(DistillationSettings, settings["distillation"])
        return distillation.keeps_dev_clean(settings["teachers"])


def scaling_name(calibration: Mapping[str, Any]) -> str:
    """A folder's name for a calibration."""
    return f"{calibration['method']}_{'tied' if calibration['tied'] else 'untied'}"

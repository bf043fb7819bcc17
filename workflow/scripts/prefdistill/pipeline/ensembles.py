"""The ensembles that `ablation_ensemble` compares, and what each is made of.

Input and params functions of the rules. Imported by the Snakefile, so it stays light.
"""

from typing import Any

from prefdistill.pipeline.leaks import baseline_problem

BASELINES = "results/predictions/baselines.parquet"


class Ensembles:
    """Ways to average the folds' adapters, by name.

    Attributes:
        arms: For each name its folds, their weights and the method of averaging.
        settings: Of weights by advantage; without a baseline, where the configured one
            cannot be used.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Take from a validated configuration how many folds and views there are."""
        self.views = config["predict"]["views"]
        self.settings = config["ensemble"]["advantage"]
        if baseline_problem(config):
            self.settings = {**self.settings, "baseline": "none"}
        folds = list(range(config["folds"]["n"]))
        self.arms = {
            "delta_mean": (folds, "equal", "delta_mean"),
            "factor_mean": (folds, "equal", "factor_mean"),
            "advantage": (folds, "advantage", "delta_mean"),
        }
        if len(folds) > 2:  # of two, leaving one out is the other one's student
            for left_out in folds:
                rest = [fold for fold in folds if fold != left_out]
                self.arms[f"without_fold{left_out}"] = (rest, "equal", "delta_mean")

    def folds(self, wildcards: Any) -> list[int]:
        """The folds of an ensemble."""
        return self.arms[wildcards.ensemble][0]

    def fold_weights(self, wildcards: Any) -> str:
        """How they are weighed: ``equal`` or ``advantage``."""
        return self.arms[wildcards.ensemble][1]

    def method(self, wildcards: Any) -> str:
        """How they are averaged."""
        return self.arms[wildcards.ensemble][2]

    def advantage(self, wildcards: Any) -> dict[str, Any] | None:
        """The settings of the weights, where they follow rewards."""
        return self.settings if self._rewarded(wildcards) else None

    def adapters(self, wildcards: Any) -> list[str]:
        """The weights of the folds' adapters."""
        pattern = "results/student/fold{}/adapter_model.safetensors"
        return [pattern.format(fold) for fold in self.folds(wildcards)]

    def adapter_configs(self, wildcards: Any) -> list[str]:
        """The configurations beside them."""
        pattern = "results/student/fold{}/adapter_config.json"
        return [pattern.format(fold) for fold in self.folds(wildcards)]

    def fold_files(self, wildcards: Any) -> list[str]:
        """The folds' rows, where rewards are needed."""
        rewarded = self._rewarded(wildcards)
        return [f"results/folds/fold{fold}.parquet" for fold in rewarded]

    def students(self, wildcards: Any) -> list[str]:
        """The folds' predictions, view by view, where rewards are needed."""
        return self._predictions(self._rewarded(wildcards), "bf16")

    def baselines(self, wildcards: Any) -> list[str]:
        """What rewards are taken against, if anything is."""
        return self.baselines_of(self._rewarded(wildcards))

    def baselines_of(self, folds: list[int]) -> list[str]:
        """The same of the given folds."""
        if self.settings["baseline"] == "ema":
            return self._predictions(folds, "ema")
        return [BASELINES] if folds and self.settings["baseline"] == "trees" else []

    def _predictions(self, folds: list[int], kind: str) -> list[str]:
        pattern = "results/predictions/fold{}_{}/{}.parquet"
        return [pattern.format(k, kind, view) for k in folds for view in self.views]

    def _rewarded(self, wildcards: Any) -> list[int]:
        by_reward = self.fold_weights(wildcards) == "advantage"
        return self.folds(wildcards) if by_reward else []

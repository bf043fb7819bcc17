"""Which settings let a student learn from teachers that were trained on its dev rows.

Imported by the Snakefile, so it stays light: the standard library.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def baseline_problem(config: dict[str, Any]) -> str | None:
    """Why the baseline of the folds' rewards cannot be used with other settings."""
    baseline = config["ensemble"]["advantage"]["baseline"]
    distillation = config["distillation"]
    mean = distillation["ema"]
    if baseline == "trees" and not clean_dev(distillation, list(config["teachers"])):
        return (
            "rewards a fold on its dev rows, which teachers that its student learns "
            "from were trained on (labels out_of_fold, sample_weights); use "
            "'ema' or 'none'"
        )
    if baseline == "ema" and (not mean["decay"] or mean["use"]):
        return (
            "needs the running mean of each student beside its last weights; set "
            "distillation.ema.decay, such as 0.99, and use: false"
        )
    return None


def judges_rows(distillation: Mapping[str, Any]) -> bool:
    """Return whether out-of-fold teachers weigh the rows."""
    return distillation["sample_weights"]["beta"] != 0


def clean_dev(distillation: Mapping[str, Any], teachers: Sequence[str]) -> bool:
    """Whether no teacher that a student learns from was trained on its dev rows."""
    out_of_fold = distillation["labels"] == "out_of_fold"
    return not (teachers and (out_of_fold or judges_rows(distillation)))

"""Find settings that let a student learn from teachers trained on its dev rows.

Imported by the Snakefile, so it stays light: the standard library.
"""

from typing import Any

from prefdistill.settings import DistillationSettings, read


def baseline_problem(config: dict[str, Any]) -> str | None:
    """Say why the baseline of the folds' rewards does not go with other settings."""
    baseline = config["ensemble"]["advantage"]["baseline"]
    distillation = read(DistillationSettings, config["distillation"])
    mean = distillation.ema
    if baseline == "trees" and not distillation.keeps_dev_clean(config["teachers"]):
        return (
            "rewards a fold on its dev rows, which teachers that its student learns "
            "from were trained on (labels out_of_fold, sample_weights); use "
            "'ema' or 'none'"
        )
    if baseline == "ema" and (not mean.decay or mean.use):
        return (
            "needs the running mean of each student beside its last weights; set "
            "distillation.ema.decay, such as 0.99, and use: false"
        )
    return None

"""Compare known priors with the models on rows with an empty answer or equal ones.

The models are the fold students, each on the dev rows of its own fold and with a tied
scaling fitted on select, and the surface trees of the same train sides. Rows of equal
answers are only there with ``cleaning.identical: keep``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    import numpy as np
    from snakemake.iocontainers import snakemake

    from prefdistill.scores.metrics import Labels

# Intervals of fewer prompts say nothing.
LEAST_PROMPTS = 10
COLUMNS = (
    *("kind", "model", "n", "n_prompts", "model_log_loss", "prior_log_loss"),
    *("difference", "low", "high", "first_won", "second_won", "tie"),
)


def main(
    fold_paths: list[Path],
    baselines_path: Path,
    student_paths: list[list[Path]],
    table_path: Path,
    text_path: Path,
    views: list[str],
    priors: dict[str, Any],
    method: str,
    evaluation: dict[str, Any],
) -> None:
    """Score priors and models on the dev rows of all folds that are of a known kind.

    Args:
        fold_paths: The fold files.
        baselines_path: ``baselines.parquet``.
        student_paths: For each fold its student's predictions of each view, or nothing
            to compare with the trees alone.
        table_path: CSV with the columns ``COLUMNS``: ``difference`` is what the prior
            changes, in nats; its interval is left empty below ``LEAST_PROMPTS``
            prompts; ``first_won`` counts verdicts for the empty answer, of equal
            answers for A.
        text_path: The same in Markdown.
        views: The views of the predictions.
        priors: The settings ``predict.known_priors``.
        method: ``calibration.judge``, of the scalings.
        evaluation: The ``evaluation`` settings.
    """
    import numpy as np

    from prefdistill.report.stages import from_baselines
    from prefdistill.report.tables import markdown_table
    from prefdistill.scores.known_priors import KINDS, apply_priors, row_kinds
    from prefdistill.scores.metrics import labels_of, row_log_loss
    from prefdistill.storage.tables import FOLD_SCHEMA, read_table
    from prefdistill.storage.whole_files import write_csv, write_text

    trees = {
        each.fold: each
        for each in from_baselines(baselines_path)
        if each.stage == "trees" and each.split == "dev"
    }
    kinds, b_empty, verdicts, groups = [], [], [], []
    probs: dict[str, list[np.ndarray]] = {"trees": []}
    for fold, path in enumerate(fold_paths):
        table = read_table(path, FOLD_SCHEMA)
        labels = labels_of(table)
        known = labels.rows(labels.split == "dev")
        place = {name: row for row, name in enumerate(table.column("id").to_pylist())}
        kind, b_is_empty = row_kinds(table.take([place[i] for i in known.ids.tolist()]))
        kinds.append(kind)
        b_empty.append(b_is_empty)
        verdicts.append(known.label)
        groups.append(known.group)
        probs["trees"].append(trees[fold].probs_of(known.ids))
        if student_paths:
            scored = student_probabilities(student_paths[fold], labels, views, method)
            probs.setdefault("students", []).append(scored)
    kind, verdict, group = map(np.concatenate, (kinds, verdicts, groups))
    rows = []
    for model, parts in probs.items():
        own = np.concatenate(parts)
        fixed = apply_priors(own, kind, np.concatenate(b_empty), priors)
        shown = np.where(np.concatenate(b_empty), np.array([1, 0, 2])[verdict], verdict)
        for name in KINDS:
            of = kind == name
            losses = [row_log_loss(p[of], verdict[of]) for p in (own, fixed)]
            counts = np.bincount(shown[of], minlength=3).tolist()
            values = [name, model, *describe(losses, group[of], evaluation)]
            rows.append(dict(zip(COLUMNS, [*values, *counts], strict=True)))
    write_csv(table_path, rows, COLUMNS)
    cells = [[row[name] for name in COLUMNS] for row in rows]
    write_text(text_path, markdown_table(COLUMNS, cells) + "\n")


def student_probabilities(
    paths: list[Path], labels: "Labels", views: list[str], method: str
) -> "np.ndarray":
    """A student's calibrated probabilities of its labelled dev rows, ``(n, 3)``."""
    from prefdistill.scores.calibration import calibrate_judge
    from prefdistill.scores.views import read_predictions, symmetrise

    scores = read_predictions(paths, views)
    fit, _ = calibrate_judge(scores, labels, views, method)
    rows = scores.rows_of(labels.ids[labels.split == "dev"])
    return symmetrise(fit.apply(scores.logits[rows]), views)


def describe(
    losses: list["np.ndarray"], group: "np.ndarray", evaluation: dict[str, Any]
) -> list[Any]:
    """Rows, prompts, both mean losses, and the difference with its interval."""
    import numpy as np

    from prefdistill.scores.metrics import group_bootstrap

    own, fixed = losses
    n_prompts = len(np.unique(group))
    if not n_prompts:
        return [0, 0, None, None, None, None, None]
    draws = {k: evaluation[k] for k in ("n_bootstrap", "seed")}
    step = group_bootstrap(fixed - own, group, **draws)
    ends = [step.low, step.high] if n_prompts >= LEAST_PROMPTS else [None, None]
    means = [float(own.mean()), float(fixed.mean())]
    return [len(own), n_prompts, *means, step.mean, *ends]


if __name__ == "__main__":
    with run_job(snakemake):
        source, params = snakemake.input, snakemake.params
        files = [Path(path) for path in source.students]
        n_views = len(params.views)
        main(
            fold_paths=[Path(path) for path in source.folds],
            baselines_path=Path(source.baselines),
            student_paths=[
                files[k : k + n_views] for k in range(0, len(files), n_views)
            ],
            table_path=Path(snakemake.output.table),
            text_path=Path(snakemake.output.text),
            views=list(params.views),
            priors=params.priors,
            method=params.method,
            evaluation=params.evaluation,
        )

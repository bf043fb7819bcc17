"""Log loss against compute: a second pass for the least certain share of test rows.

``second_view`` adds the other order of the answers; ``cascade`` lets the 4-bit judge
pass the row on to the 16-bit one, both in all views. Every pass has its own tied
scaling; scalings and thresholds are fitted on select. Compute is counted in forward
passes of a row.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
COLUMNS = (
    *("curve", "share", "test_share", "passes", "n", "log_loss", "low", "high"),
    *("from_none", "from_none_low", "from_none_high"),
    *("from_all", "from_all_low", "from_all_high"),
)


def main(
    fold_path: Path,
    judge_paths: tuple[list[Path], list[Path]],
    table_path: Path,
    text_path: Path,
    figure_path: Path,
    views: list[str],
    method: str,
    evaluation: dict[str, Any],
) -> None:
    """Score both curves at five shares, write them as a table and a figure.

    Args:
        fold_path: A fold file, for the labels of select and test.
        judge_paths: The predictions of each view of the dear judge of the cascade and
            of its cheap one, which also gets the second views.
        table_path: CSV with the columns ``COLUMNS``; losses in nats. ``from_none`` and
            ``from_all`` are paired differences to the shares 0 and 1.
        text_path: The same in Markdown.
        figure_path: SVG of the differences to share 0.
        views: The views of the predictions, two.
        method: ``calibration.judge``, of the scalings.
        evaluation: The ``evaluation`` settings.

    Raises:
        UserError: If there is but one view.
    """
    from prefdistill.errors import UserError
    from prefdistill.report.figures import draw_budgets, save_figure
    from prefdistill.report.tables import markdown_table
    from prefdistill.scores.metrics import read_labels
    from prefdistill.scores.views import read_predictions
    from prefdistill.storage.whole_files import write_csv, write_text

    if len(views) != 2:
        raise UserError("ablation_tta needs both orders; set predict.views: [AB, BA]")
    labels = read_labels(fold_path)
    dear, cheap = (
        read_predictions(paths, views, ["select", "test"]) for paths in judge_paths
    )
    one_view = cheap.replace_logits(cheap.logits[:, :1])
    first = calibrated_splits(one_view, labels, views[:1], method)
    both = calibrated_splits(cheap, labels, views, method)
    larger = calibrated_splits(dear, labels, views, method)
    draws = {k: evaluation[k] for k in ("n_bootstrap", "seed")}
    rows = curve("second_view", first, both, 1, labels, draws)
    rows += curve("cascade", both, larger, 2, labels, draws)
    write_csv(table_path, rows, COLUMNS)
    cells = [[row[name] for name in COLUMNS] for row in rows]
    write_text(text_path, markdown_table(COLUMNS, cells) + "\n")
    save_figure(draw_budgets(rows), figure_path)


def calibrated_splits(
    scores: Any, labels: Any, views: list[str], method: str
) -> dict[str, Any]:
    """Calibrated, view-averaged probabilities of the labelled rows of each split."""
    from prefdistill.scores.calibration import calibrate_judge
    from prefdistill.scores.views import symmetrise

    fit, _ = calibrate_judge(scores, labels, views, method)
    found = {}
    for split in ("select", "test"):
        ids = labels.ids[labels.split == split]
        logits = scores.logits[scores.rows_of(ids)]
        found[split] = symmetrise(fit.apply(logits), views)
    return found


def curve(
    name: str,
    first: dict[str, Any],
    full: dict[str, Any],
    n_views: int,
    labels: Any,
    draws: dict[str, int],
) -> list[dict[str, Any]]:
    """The rows of one curve; either pass shows a row in ``n_views`` orders."""
    from prefdistill.report.comparisons import compare
    from prefdistill.scores.budget import entropy, mix_passes, threshold_for

    known = labels.rows(labels.split == "test")
    probs, shares = {}, {}
    for share in SHARES:
        threshold = threshold_for(entropy(first["select"]), share)
        mixed = mix_passes(first["test"], full["test"], threshold)
        probs[share], shares[share] = mixed
    from_none = compare(probs, SHARES[0], known, **draws)
    from_all = compare(probs, SHARES[-1], known, **draws)
    rows = []
    for none, every in zip(from_none, from_all, strict=True):
        share = none["model"]
        n_passes = n_views * (1 + shares[share])
        values = [name, share, shares[share], n_passes]
        values += [none[k] for k in ("n", "log_loss", "low", "high")]
        for each in (none, every):
            keys = ("difference", "difference_low", "difference_high")
            values += [each[k] for k in keys]
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


if __name__ == "__main__":
    with run_job(snakemake):
        source, params = snakemake.input, snakemake.params
        judges = iter(map(Path, source.judges))
        main(
            fold_path=Path(source.fold),
            judge_paths=tuple(
                [next(judges) for _ in params.views] for _ in params.judges
            ),
            table_path=Path(snakemake.output.table),
            text_path=Path(snakemake.output.text),
            figure_path=Path(snakemake.output.figure),
            views=list(params.views),
            method=params.method,
            evaluation=params.evaluation,
        )

from plot_report import main as plot_report
from toy_stages import JUDGES, N_FOLDS, TEACHERS

from prefdistill.report.inputs import FigureFiles
from prefdistill.report.report_figures import row_weight_spreads
from prefdistill.storage.records import write_json


def test_figures_of_the_toy(toy, tmp_path):
    folds = [toy.path(f"fold{k}.parquet") for k in range(N_FOLDS)]
    curve = tmp_path / "train.jsonl"
    curve.write_text('{"step": 1, "loss": 1.1}\n{"step": 2, "loss": null}\n')
    names = ("stages", "reliability", "confusion", "swap", "curves", "weights")
    figures = {name: tmp_path / f"{name}.svg" for name in names}
    logits = [pair for name in TEACHERS for pair in toy.teacher_paths(name)]
    plot_report(
        FigureFiles(
            scores=toy.path("scores.csv"),
            folds=folds,
            teacher_logits=[raw for raw, _ in logits],
            teacher_calibrated=[calibrated for _, calibrated in logits],
            final=toy.path("gptq8.parquet"),
            curves=[curve, curve],
            weights=toy.path("weights.json"),
            rows=[],
        ),
        figures,
        teachers=TEACHERS,
        judges=JUDGES,
        runs=["llama/fold 0", "student/fold 0"],
        n_bins=10,
    )
    for figure in figures.values():
        assert figure.read_text().lstrip().startswith("<?xml")
    assert "teacher calibrated" in figures["stages"].read_text()


def test_students_whose_rows_weigh_the_same_have_no_spread(tmp_path):
    quantiles = {"0.5": 1.0}
    paths = [tmp_path / f"fold{k}" / "rows.json" for k in range(2)]
    write_json(paths[0], {"n_rows": 3})
    write_json(paths[1], {"n_rows": 3, "weight_quantiles": quantiles})
    assert row_weight_spreads(paths) == {"fold1": quantiles}

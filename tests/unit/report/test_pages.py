import re
from dataclasses import asdict

from configurations import configured
from toy_stages import JUDGES
from write_pages import main as write_pages

from prefdistill.report.inputs import PageFiles
from prefdistill.storage.digests import file_digest
from prefdistill.storage.records import write_json


def test_pages(toy, tmp_path):
    shares = {
        "n": 3,
        "n_by_source": {},
        "class_shares": {"a": 0.5, "b": 0.3, "tie": 0.2},
    }
    split = {"rows": 4, "rows_cut": 1, "tokens": 80, "tokens_cut": 8}
    contents = {
        "cleaning": {
            "n_in": {"train": 9},
            "n_out": {"train": 7},
            "dropped": {"duplicate": {"train": 2}},
            "repaired": {"null_turn": 5},
        },
        "folds": {"folds": {"0": {"train": shares}}},
        "lengths": {
            "every": 2,
            "max_length": 40,
            "splits": {"dev": split | {"quantiles": {"0.5": 20, "1": 48}}},
        },
    }
    paths = {name: tmp_path / f"{name}.json" for name in contents}
    for name, content in contents.items():
        write_json(paths[name], content)
    times = tmp_path / "benchmarks/train_teacher"
    times.mkdir(parents=True)
    (times / "llama.fold0.tsv").write_text("s\tmax_rss\tcpu_time\n3600\t2000\t7200\n")
    names = ("scores", "data", "models", "run")
    pages = {name: tmp_path / f"{name}.html" for name in names}
    write_pages(
        PageFiles(
            scores=toy.path("scores.csv"),
            steps=toy.path("steps.csv"),
            **paths,
            teacher_calibrations=[toy.path("llama0.json")],
            judge_calibrations=[toy.path(f"{name}.json") for name in JUDGES],
            weights=toy.path("weights.json"),
            fingerprinted=[toy.path("weights.json")],
        ),
        pages,
        judges=JUDGES,
        teachers=["llama fold 0"],
        config={
            "teachers": {"llama": {"gpus": 2}},
            "student": {"gpus": 1},
            "distillation": {"teacher_gate": "warn"},
            "text": asdict(configured("demo").text) | {"max_length": 40},
        },
        benchmarks=tmp_path / "benchmarks",
        logs=tmp_path / "logs",
    )
    shown = {name: path.read_text() for name, path in pages.items()}
    for text in shown.values():
        assert text.startswith("<!doctype html>")
        assert not re.search(r"(src|href)=|@import|url\(", text)  # nothing beside it
    assert "<td>final</td>" in shown["scores"]
    assert "of the gap" in shown["scores"]
    assert '<td style="text-align:right">2</td>' in shown["data"]
    assert "Tokens of one in 2 rows" in shown["data"]
    assert "A row has at most 40 tokens" in shown["data"]
    assert "<td>25.0%</td>" in shown["data"]
    assert "<td>10.0%</td>" in shown["data"]
    assert "gate: warn" in shown["models"]
    assert "train_teacher" in shown["run"]
    assert "teacher_gate: warn" in shown["run"]
    assert file_digest(toy.path("weights.json")) in shown["run"]

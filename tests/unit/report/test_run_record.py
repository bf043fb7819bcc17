import pytest

from prefdistill.report.run_record import (
    mixed_versions,
    read_times,
    read_versions,
    rule_rows,
)
from prefdistill.storage.records import write_json

GPUS = {"llama": 2, "student": 1}
ON_GPU = (
    "INFO prefdistill.models.loading: x, computing in torch.bfloat16 on cuda:0 (auto)\n"
)


@pytest.fixture
def folders(tmp_path):
    """Write timing files and logs of four jobs, two of them on a GPU."""
    jobs = {
        "train_teacher/llama.fold0": ("3600", "2000", "1800", ON_GPU),
        "train_teacher/llama.fold1": ("1800", "3000", "900", "on the CPU"),
        "predict_logits/gptq4": ("7200", "1000", "3600", ON_GPU),
        "evaluate/all": ("0.1", "NA", "NA", ""),
    }
    for name, (seconds, rss, cpu, log) in jobs.items():
        for folder, suffix, text in (
            ("benchmarks", "tsv", f"s\tmax_rss\tcpu_time\n{seconds}\t{rss}\t{cpu}\n"),
            ("logs", "log", log),
        ):
            path = tmp_path / folder / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return tmp_path / "benchmarks", tmp_path / "logs"


def test_times_by_rule_and_gpus_where_the_log_says_so(folders):
    rows = rule_rows(read_times(*folders, GPUS))
    assert rows == [
        ("predict_logits", 1, 2.0, 2.0, 1.0, 2.0, 1.0),
        ("train_teacher", 2, 1.5, 1.0, 0.75, 2.0, 3.0),
        ("evaluate", 1, 0.1 / 3600, 0.1 / 3600, 0.0, 0.0, 0.0),
        ("all", 4, 3.5 + 0.1 / 3600, 2.0, 1.75, 4.0, 3.0),
    ]


def test_no_benchmarks_are_no_rows(tmp_path):
    assert rule_rows(read_times(tmp_path, tmp_path, GPUS)) == []


def test_versions_name_the_sources_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "prefdistill.running.records.PACKAGES", ("numpy", "no-such-one")
    )
    versions = read_versions(tmp_path)
    assert versions["sources"] == "no git check-out"
    assert versions["no-such-one"] == "not installed"
    assert versions["numpy"].startswith("2.")


def test_mixed_versions_are_counted(tmp_path):
    for number, numpy in enumerate(["1", "2", "2"]):
        record = {"packages": {"numpy": numpy, "torch": "2"}}
        write_json(tmp_path / f"folder{number}/file.json", record)
    assert mixed_versions(tmp_path) == [("numpy", "1", 1), ("numpy", "2", 2)]
    assert mixed_versions(tmp_path / "folder0") == []

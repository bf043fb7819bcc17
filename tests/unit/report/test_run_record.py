"""Time by rule from benchmark files, versions, and token lengths before the cut."""

import json

import pyarrow as pa
import pytest
from measure_lengths import main as measure_lengths

from prefdistill.data.prompts import encode_pairs
from prefdistill.report.run_record import read_times, read_versions, rule_rows
from prefdistill.settings import TextSettings, read
from prefdistill.storage.tables import FOLD_SCHEMA, write_table

GPUS = {"llama": 2, "student": 1}
ON_GPU = (
    "INFO prefdistill.models.loading: x, computing in torch.bfloat16 on cuda:0 (auto)\n"
)


@pytest.fixture
def folders(tmp_path):
    """Benchmarks and logs of four jobs, two of them on a GPU."""
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
        "prefdistill.report.run_record.PACKAGES", ("numpy", "no-such-one")
    )
    versions = read_versions(tmp_path)
    assert versions["sources"] == "no git check-out"
    assert versions["no-such-one"] == "not installed"
    assert versions["numpy"].startswith("2.")


def test_lengths_before_the_cut(
    tiny_model_folder, tiny_tokenizer, tmp_path, monkeypatch
):
    texts = ["a b c " * n for n in (5, 40, 200)]
    rows = [
        {"id": f"train:{n}", "source": "train", "split": split, "group": str(n)}
        | {"prompt": ["why?"], "response_a": [text], "response_b": ["no"]}
        | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
        for n, (split, text) in enumerate(
            zip(("train", "train", "dev"), texts, strict=True)
        )
    ]
    table = pa.Table.from_pylist(rows, schema=FOLD_SCHEMA)
    write_table(tmp_path / "fold0.parquet", table, FOLD_SCHEMA)
    text = {
        "template": "{prompt}|{response_a}|{response_b}", "turn": "{n}",
        "max_length": 100, "prompt_share": 0.25, "head_share": 0.5,
    }  # fmt: skip
    base = tiny_model_folder("gemma2") / "config.json"
    counts, figure = tmp_path / "lengths.json", tmp_path / "lengths.svg"
    settings = read(TextSettings, text)
    measure_lengths(tmp_path / "fold0.parquet", base, counts, figure, settings)
    found = json.loads(counts.read_text())
    cut = encode_pairs(table, tiny_tokenizer, settings)
    assert (found["max_length"], found["every"]) == (100, 1)
    assert (
        sum(part["rows_cut"] for part in found["splits"].values())
        == (cut.n_truncated)
        > 0
    )
    dev = found["splits"]["dev"]
    assert dev["tokens"] - dev["tokens_cut"] == cut.lengths[2]
    assert dev["quantiles"]["1"] == dev["tokens"]
    assert figure.read_text().startswith("<?xml")
    monkeypatch.setattr("prefdistill.models.lengths.MAX_ROWS", 2)
    settings = read(TextSettings, text)
    measure_lengths(tmp_path / "fold0.parquet", base, counts, figure, settings)
    few = json.loads(counts.read_text())
    assert few["every"] == 2
    assert few["splits"]["dev"] == dev
    assert few["splits"]["train"]["rows"] == 1

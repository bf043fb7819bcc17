"""The benchmarks' pure parts, and one tiny run of the engine's."""

import json
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from benchmarks import engine, gpu_sameness, result_rows, sameness_models, workload
from prefdistill.engine import engine as fast
from prefdistill.engine import fp8, packing
from prefdistill.training import trainer as training

GEMMA = workload.SHAPES["gemma-2-9b"]


@pytest.fixture(autouse=True)
def kept_threshold(monkeypatch):
    """Put back what benchmarks lower in their process."""
    monkeypatch.setattr(fast, "COMPILE_FLOP", fast.COMPILE_FLOP)


def result(**changes):
    row = {"model": "m", "mode": "train", "base": "bf16", "variant": "engine"}
    row |= {"gpus": 1, "useful_tokens_per_s": 3000.0, "spread": [2900.0, 3100.0]}
    row |= {"useful_tflops": 50.0, "peak_fraction": 0.5, "peak_gib": 40.25}
    row |= {"fill": 0.98, "shared": 0.065, "first_step_s": 61.0}
    row |= {"ratio_to_recipe": None}
    return row | changes


def test_linear_parameters_of_the_real_shapes():
    billions = {
        name: workload.linear_parameters(workload.SHAPES[name]) / 1e9
        for name in workload.PUBLISHED
    }
    assert billions == pytest.approx(
        {"gemma-2-9b": 8.32, "llama-3.1-8b": 6.98, "qwen2.5-7b": 6.53}, abs=0.006
    )


def test_shapes_are_those_that_transformers_builds():
    from transformers import AutoModelForSequenceClassification

    for name in (*workload.PUBLISHED, *workload.TINY, "smollm2-135m"):
        shape = workload.SHAPES[name]
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(
                engine.configuration(shape)
            )
        products = [
            module.weight.numel()
            for module in model.model.layers.modules()
            if isinstance(module, torch.nn.Linear)
        ]
        assert sum(products) == workload.linear_parameters(shape)


def test_useful_operations():
    n, lengths = workload.linear_parameters(GEMMA), np.array([100, 300])
    attention = 4 * 42 * 16 * 256 * (100**2 + 300**2) / 2
    forward = workload.useful_flops(GEMMA, lengths, train=False)
    assert forward == pytest.approx(2 * n * 400 + attention)
    whole = workload.useful_flops(GEMMA, lengths, train=True)
    assert whole == pytest.approx(4 * n * 400 + 3 * attention)
    upper = workload.useful_flops(GEMMA, lengths, train=True, lowest_layer=21)
    assert upper == pytest.approx(forward + (whole - forward) / 2)


def test_adapters_of_the_variants():
    assert workload.lora_settings("engine", "infer", 42) is None
    assert workload.lora_settings("recipe", "train", 42)["r"] == 64
    upper = workload.lora_settings("recipe_upper", "train", 42)
    assert (upper["r"], upper["lowest_layer"], len(upper["targets"])) == (16, 16, 3)
    with pytest.raises(ValueError, match="no variant"):
        workload.lora_settings("engine_upper", "infer", 42)


def test_lengths_from_a_file(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(
        "id,prompt,response_a,response_b\n"
        '1,"[""aaaa""]","[""bbbb"", null]","[""cccc""]"\n'
        f'2,plain,"[""{"d" * 99999}""]","[]"\n'
    )
    lengths, prefixes = workload.csv_lengths(path, 2048)
    assert lengths.tolist() == [3 + 24, 2048]
    assert prefixes.tolist() == [1 + 12, (1 + 12) * 2048 // (99999 // 4 + 25)]
    drawn, prefixes, said = workload.draw_lengths(5, 2048, path)
    assert set(zip(drawn.tolist(), prefixes.tolist(), strict=True)) <= {
        (27, 13),
        (2048, 1),
    }
    assert said.startswith("pairs.csv")


def test_simulated_lengths():
    lengths, prefixes, said = workload.draw_lengths(20_000, 2048, None)
    assert "log-normal" in said
    assert (lengths.min(), lengths.max()) == (48, 2048)
    assert np.median(lengths) == pytest.approx(650, rel=0.03)
    assert prefixes.sum() / lengths.sum() == pytest.approx(0.13, abs=0.001)


def test_random_pairs_have_their_lengths():
    lengths, prefixes = np.array([2, 3, 9, 64]), np.array([0, 9, 4, 8])
    encoded = workload.random_pairs(lengths, prefixes, 50)
    assert encoded.prefix_lengths.tolist() == [1, 2, 4, 8]
    for row, length in enumerate(lengths):
        for view in ("AB", "BA"):
            assert len(encoded.tokens(row, view)) == length


def test_padded_batches():
    lengths = np.array([3, 9, 1, 5, 7])
    plain = workload.padded_batches(lengths, 2, by_length=False)
    assert [batch.tolist() for batch in plain] == [[0, 1], [2, 3], [4]]
    sorted_ = workload.padded_batches(lengths, 2, by_length=True)
    assert [batch.tolist() for batch in sorted_] == [[1, 4], [3, 0], [2]]
    tokens, mask = workload.pad_rows([np.array([7]), np.array([8, 9])])
    assert tokens.tolist() == [[7, 0], [8, 9]]
    assert mask.tolist() == [[1, 0], [1, 1]]


def test_recipe_and_engine_see_the_same_rows():
    rows_ = engine.step_rows(np.array([3, 5]), seed=0)
    assert sorted(rows_.tolist()) == [6, 7, 10, 11]


def test_a_new_row_replaces_the_old_one_of_its_key(tmp_path):
    path = tmp_path / "sub" / "gpu.json"
    result_rows.store_row(path, result(fill=0.5))
    result_rows.store_row(path, result(base="nf4"))
    result_rows.store_row(path, result(fill=0.9))
    stored = result_rows.read_rows(path)
    assert [(row["base"], row["fill"]) for row in stored] == [
        ("bf16", 0.9),
        ("nf4", 0.98),
    ]
    assert result_rows.read_rows(tmp_path / "absent.json") == []


def test_ratio_is_to_the_recipe_with_the_same_adapter():
    recipe = result(variant="recipe", base="nf4", useful_tokens_per_s=1000.0)
    upper = result(variant="recipe_upper", base="nf4", useful_tokens_per_s=500.0)
    assert result_rows.ratio_to_recipe(result(), [upper, recipe]) == 3.0
    failed = result(variant="recipe", useful_tokens_per_s=None)
    assert result_rows.ratio_to_recipe(result(), [failed]) is None


def test_table():
    failed = result(base="fp8", useful_tokens_per_s=None, error="out of memory")
    old = result()
    old.pop("shared")  # measured before prompts were shared
    table = result_rows.speed_table([result(), failed, old]).splitlines()
    head, _, first, second, third = table
    assert {line.count("|") for line in table} == {head.count("|")}
    cells = "| 3,000 | 2,900–3,100 | 50 | 0.50 | 40.2 | 0.980 |"
    assert f"{cells} 0.065 | 61.0 |  |" in first
    assert "out of memory" in second
    assert f"{cells}  | 61.0 |  |" in third


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla T4", "t4"),
        ("cpu", "cpu"),
    ],
)
def test_file_name_of_a_gpu(name, short):
    assert result_rows.gpu_name(name) == short


def test_cases_hold_the_recipe_first_and_once():
    cases = engine.plan_cases(
        ["tiny-llama"],
        ["train", "infer"],
        ["bf16", "fp8"],
        ["engine", "recipe_upper"],
        "nf4",
    )
    assert [(case.mode, case.base, case.variant) for case in cases] == [
        ("train", "nf4", "recipe_upper"),
        ("train", "bf16", "engine"),
        ("train", "fp8", "engine"),
        ("infer", "bf16", "engine"),
        ("infer", "fp8", "engine"),
    ]


def test_tiny_run(tmp_path, capsys):
    out = tmp_path / "tiny.json"
    words = f"--tiny --models tiny-gemma2 --bases bf16 nf4 --out {out}"
    assert engine.run(engine.read_arguments(words.split()))
    stored = json.loads(out.read_text())
    assert len(stored) == 6
    for row in stored:
        assert row["useful_tokens_per_s"] > 0
        assert 0 < row["fill"] <= 1
        assert (row["shared"] == 0) == ("recipe" in row["variant"])
        assert 0 <= row["shared"] < 0.066
        assert row["first_step_s"] >= row["build_s"]
        assert (row["ratio_to_recipe"] is None) == ("recipe" in row["variant"])
        assert {"machine", "versions", "lengths", "targets", "gpus"} <= row.keys()
    printed = capsys.readouterr().out
    assert printed.count("tokens/s") == 6
    assert result_rows.speed_table(stored).count("\n") == 7


def test_a_failure_is_a_row_and_the_rest_goes_on(tmp_path, monkeypatch):
    real = engine.measure

    def measure(case, amount, device):
        if case.is_recipe:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(case, amount, device)

    monkeypatch.setattr(engine, "measure", measure)
    out = tmp_path / "tiny.json"
    words = f"--tiny --models tiny-llama --modes infer --bases bf16 --out {out}"
    assert not engine.run(engine.read_arguments(words.split()))
    engine_row, recipe_row = json.loads(out.read_text())
    assert recipe_row["error"] == "out of memory"
    assert recipe_row["peak_fraction"] is None
    assert engine_row["useful_tokens_per_s"] > 0


@pytest.mark.parametrize("base", ["bf16", "fp8"])
def test_sameness_of_tiny_models(base):
    options = gpu_sameness.parse(["--tiny"])
    lines = list(gpu_sameness.compare(options, "llama", base))
    assert len(lines) == 9
    lines.append(gpu_sameness.compare_steps(options, "llama", base))
    assert all(line["ok"] for line in lines)
    assert lines[-1]["fall_of_loss"] > 0.2


@pytest.mark.parametrize("base", ["bf16", "fp8"])
def test_sameness_finds_rows_that_see_a_token_of_the_row_before(monkeypatch, base):
    def leaky(rows, step=1, shared=None):
        seen = [rows[0], *(np.append(a[-1:], b) for a, b in pairwise(rows))]
        return collate(rows if shared is not None else seen, step, shared)

    collate = packing.collate
    monkeypatch.setattr(packing, "collate", leaky)
    monkeypatch.setattr(gpu_sameness, "EXACT", gpu_sameness.TOLERANCES[base]["itself"])
    options = gpu_sameness.parse(["--tiny"])
    twice, alone = islice(gpu_sameness.compare(options, "llama", base), 2)
    assert twice["ok"]
    assert not alone["ok"]
    assert alone["errors"]["logits"] > 0.2


def test_sameness_of_steps_finds_an_engine_that_keeps_b(monkeypatch):
    monkeypatch.setattr(training, "increment_version", lambda _: None)
    line = gpu_sameness.compare_steps(gpu_sameness.parse(["--tiny"]), "llama", "bf16")
    assert not line["ok"]
    assert line["errors"]["logits"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("architecture", ["gemma2", "qwen2"])
def test_steps_on_fp8_are_exact_but_for_its_rounding(monkeypatch, architecture):
    monkeypatch.setattr(fp8, "FP8", torch.float32)
    monkeypatch.setattr(sameness_models, "rounded", lambda values: values)
    options = gpu_sameness.parse(["--tiny"])
    line = gpu_sameness.compare_steps(options, architecture, "fp8")
    assert max(line["errors"].values()) < 1e-4
    assert line["fall_of_loss"] > 0.05


def test_curves_are_compared_in_pairs():
    steps = np.linspace(1.1, 0.9, 100)
    noise = np.random.default_rng(0).normal(0, 0.01, 100)
    curves = {"bf16": steps, "nf4": steps + noise, "fp8": steps + 0.05}
    curves = {base: list(losses) for base, losses in curves.items()}
    curves["fp16"] = [*curves["bf16"][:-1], None]
    lines = {line["base"]: line for line in gpu_sameness.compare_curves(curves)}
    assert [lines[base]["ok"] for base in curves] == [True, True, False, False]
    assert lines["fp8"]["difference"] == pytest.approx(0.05)
    assert lines["nf4"]["standard_error"] == pytest.approx(0.01 / 30**0.5, rel=0.3)

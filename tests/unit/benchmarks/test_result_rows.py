import pytest

from benchmarks import result_rows


def result(**changes):
    row = {"model": "m", "mode": "train", "base": "bf16", "variant": "engine"}
    row |= {"gpus": 1, "useful_tokens_per_s": 3000.0, "spread": [2900.0, 3100.0]}
    row |= {"useful_tflops": 50.0, "peak_fraction": 0.5, "peak_gib": 40.25}
    row |= {"fill": 0.98, "shared": 0.065, "first_step_s": 61.0}
    row |= {"ratio_to_recipe": None}
    return row | changes


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

from dataclasses import replace

import pytest

from benchmarks import write_tables
from benchmarks.result_rows import read_rows
from benchmarks.workload import SHAPES, useful_flops
from benchmarks.write_tables import DOCUMENT, RESULTS

MEASURED = [row for path in RESULTS.values() for row in read_rows(path)]


def speeds(variant="engine", value=10_000.0):
    return [
        {"model": model, "mode": mode, "base": base, "variant": variant, "gpus": 1}
        | {"useful_tokens_per_s": value}
        for model in write_tables.PUBLISHED
        for mode in ("train", "infer")
        for base in ("bf16", "nf4")
    ]


def test_document_has_the_tables_of_the_stored_results():
    text = DOCUMENT.read_text("utf-8")
    assert write_tables.render(text) == text


def test_work_of_the_published_configuration():
    config, pairs = write_tables.published()
    work = {
        (each["model"], each["stage"]): each
        for each in write_tables.list_work(config, pairs)
    }
    assert len(work) == 10
    assert work["llama", "train"]["pairs"] == 3 * pairs.train
    assert work["student", "train"]["pairs"] == 2 * 3 * pairs.train
    assert work["student", "train"]["shape"] == "gemma-2-9b"
    assert work["qwen", "logits"]["shape"] == "qwen2.5-7b"
    assert pairs.post_pretrain == write_tables.PUBLISHED_PAIRS["n_ultra"]


def test_hours_follow_from_speeds():
    config, pairs = write_tables.published()
    work = write_tables.list_work(config, pairs)
    tokens = sum(each["pairs"] for each in work) * 2 * 800
    table = write_tables.hours_table(config, pairs, speeds())
    assert f"| {tokens / 10_000 / 3600:.1f} |" in table.splitlines()[-1]
    *lines, last = write_tables.hours_table(config, pairs, []).splitlines()
    assert all("|  |  |" in line for line in lines[2:])
    *_, measured, modelled = last.strip("| ").split(" | ")
    assert measured == modelled  # where nothing is measured


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: row["variant"])
def test_the_cost_model_agrees_with_what_was_measured(row):
    """Check that hours at a row's TFLOP/s are within 25 % of those at its tokens/s."""
    config, pairs = write_tables.published()
    for each in write_tables.list_work(config, pairs):
        if each["shape"] != row["model"] or each["mode"] != row["mode"]:
            continue
        work = replace(each["work"], minutes=0)
        modelled = work.gpu_hours(row["useful_tflops"])
        measured = work.n_tokens / row["useful_tokens_per_s"] / 3600
        assert modelled == pytest.approx(measured, rel=0.25), each["stage"]


def test_the_hours_of_a_configuration_agree_with_the_speeds_of_its_models():
    """Check one `gpu_tflops` for all models and stages, which have their own speeds."""
    config, pairs = write_tables.published()
    rows = speeds()
    for row in rows:
        # By the weights of the matrix products alone, and with attention.
        shape = SHAPES[row["model"]]
        per_token = useful_flops(shape, [800], train=row["mode"] == "train") / 800
        row["useful_tokens_per_s"] = 400e12 / per_token
    last = write_tables.hours_table(config, pairs, rows).splitlines()[-1]
    measured, modelled = map(float, last.strip("| ").split("|")[-2:])
    assert modelled == pytest.approx(measured, rel=0.25)


def test_speed_with_an_adapter_is_preferred_where_measured():
    rows = speeds() + speeds("engine_adapter", 8_000.0)
    wanted = (rows, "gemma-2-9b", "infer", "auto")
    assert write_tables.find_speed(*wanted, adapter=True) == 8_000.0
    assert write_tables.find_speed(*wanted, adapter=False) == 10_000.0
    assert write_tables.find_speed(rows, None, "infer", "nf4", adapter=False) is None


def test_fill_in_wants_one_place_a_table():
    text = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n"
    filled = write_tables.fill_in(text, {"x": r"new \1"})
    assert filled == text.replace("old", r"new \1")
    with pytest.raises(ValueError, match="0 places"):
        write_tables.fill_in(text, {"y": ""})

from benchmarks import cpu


def test_import_lines_are_those_that_run():
    lines = cpu.import_lines(cpu.ROOT / "workflow/scripts/train_teacher.py")
    assert "from prefdistill.training.trainer import choose_rows, train_rows" in lines
    assert not [line for line in lines if "snakemake" in line]


def test_share_of_the_start_in_a_demo(tmp_path):
    jobs = {
        "make_folds/make_folds.tsv": 0.5,
        "train_teacher/llama.fold0.tsv": 10.0,
        "predict_logits/gptq4.tsv": 8.0,
        "calibrate_judge/gptq4.tsv": 2.0,
    }
    for name, seconds in jobs.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"s\tcpu_time\n99\t{seconds}\n")
    costs = {"data": 1.0, "model": 3.0, "GPTQ": 6.0, "load tiny-llama": 0.5}
    assert cpu.demo_share(tmp_path, costs) == [
        ("data", "2", "3", "2", "67 %"),
        ("model", "1", "10", "4", "35 %"),
        ("GPTQ", "1", "8", "6", "75 %"),
        ("all", "4", "21", "12", "55 %"),
    ]


def test_packing_table():
    row = {"model": "m", "mode": "train", "useful_tokens_per_s": 10.0, "fill": 0.5}
    table = cpu.packing_table([row, row | {"ratio_to_recipe": 1.5}])
    assert table.splitlines()[-1] == "| m | train | 10 | 0.50 | 10 | 1.50 |"

"""A dry run shows what each job asks for, here and on Slurm."""

import re
import subprocess
import sys
from collections import defaultdict

import pytest
import yaml
from running import ROOT, snakemake

from prefdistill.running.rule_lookup import producing_rules

RULES_ON_GPUS = {
    *("post_pretrain", "train_teacher", "infer_logits", "distill_student"),
    *("quantise_model", "quantise_base", "predict_logits"),
}


def asked(output):
    """Threads and resources of every job of a dry run, by rule."""
    jobs = defaultdict(list)
    for block in re.split(r"^(?:local)?rule ", output, flags=re.MULTILINE)[1:]:
        pairs = dict(re.findall(r"(\w+)=([^\s,]+)", block.split("resources:")[1]))
        threads = re.search(r"threads: (\d+)", block)
        pairs["threads"] = threads[1] if threads else "1"
        jobs[block.split(":")[0]].append(pairs)
    del jobs["all"]
    return jobs


@pytest.fixture
def data(tmp_path):
    """Data files of the published sizes, which take no room, in the run's folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    megabytes = {"train": 184, "lmsys-33k-deduplicated": 106, "ultrafeedback": 192}
    for name, size in (megabytes | {"test": 80}).items():
        with open(folder / f"{name}.csv", "wb") as handle:
            handle.truncate(size * 10**6)
    return tmp_path


def plan_on_slurm(folder, *configs):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--profile", "slurm", "--dry-run"),
            *("--directory", folder, "--configfile", *configs),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return asked(done.stdout + done.stderr)


def test_the_demo_asks_for_little_everywhere(tmp_path):
    done = snakemake(tmp_path, "--dry-run", "all", config=ROOT / "config/demo.yaml")
    jobs = asked(done.stdout + done.stderr)
    assert sum(map(len, jobs.values())) == 53
    for rule, asks in jobs.items():
        for each in asks:
            assert each["threads"] == "1", rule
            assert 2_000 <= int(each["mem_mb"]) < 4_100, rule
            assert 15 < int(each["runtime"]) <= 20, rule
    # What an error calls the rule of a file is the rule that makes it.
    blocks = re.split(r"^(?:local)?rule ", done.stdout, flags=re.MULTILINE)[1:]
    assert len(blocks) == 54
    for block in blocks:
        made = re.search(r"^    output: (.*)$", block, flags=re.MULTILINE)
        for path in made[1].split(", ") if made else ():
            rules = producing_rules(path)
            assert block.split(":")[0] in rules, path
            assert len(rules) == 1 or path.startswith("results/base/"), path
    on_gpus = {rule for rule, asks in jobs.items() if "gpu" in asks[0]}
    assert on_gpus == RULES_ON_GPUS - {"quantise_base"}


def test_the_drawn_rule_graph_is_the_demos(tmp_path):
    config = ROOT / "config/demo.yaml"
    done = snakemake(tmp_path, "--rulegraph", "all", config=config)
    rules = re.findall(r'label = "(\w+)"', done.stdout)
    drawn = re.findall(
        r"<text [^>]*>(\w+)</text>", (ROOT / "docs/rulegraph.svg").read_text()
    )
    assert rules
    assert sorted(drawn) == sorted(rules), "make dag"


def test_on_slurm_the_site_caps_what_the_rules_ask_for(data):
    jobs = plan_on_slurm(data, ROOT / "config/plan.yaml")
    wanted = ("slurm_partition", "gpu", "threads", "mem_mb", "runtime")
    shown = {
        rule: tuple(asks[0].get(name) for name in wanted) for rule, asks in jobs.items()
    }
    # 300 steps of 32 pairs: 106 minutes, twice, and 15 to start.
    assert shown["train_teacher"] == ("gpu", "1", "4", "24082", "227")
    assert shown["distill_student"] == ("gpu", "1", "4", "26509", "1440")
    assert shown["merge_adapter"] == ("cpu", None, "4", "24880", "38")
    assert shown["import_pairs"] == ("cpu", None, "1", "3756", "37")
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    for rule, asks in jobs.items():
        for each in asks:
            on_gpu = rule in profile["set-resources"]
            assert ("gpu" in each) == on_gpu, rule
            assert each["slurm_partition"] == ("gpu" if on_gpu else "cpu")
            assert int(each["runtime"]) <= profile["config"]["max_runtime"]


def test_several_gpus_bring_cores_and_memory(data):
    overlay = data / "large.yaml"
    overlay.write_text(
        "base_models: {large: {source: hub, repo: meta-llama/Llama-3.3-70B-Instruct}}\n"
        "teachers: {llama: {base: large, gpus: 4}}\n"
    )
    jobs = plan_on_slurm(data, ROOT / "config/plan.yaml", overlay)
    for each in jobs["train_teacher"]:
        assert (each["gpu"], each["threads"]) == ("4", "16")
        assert 180_000 < int(each["mem_mb"]) < 190_000


def test_a_base_of_unknown_size_is_one_line_before_any_job(tmp_path):
    overlay = tmp_path / "unknown.yaml"
    overlay.write_text("base_models: {judge: {source: hub, repo: a/judge}}\n")
    done = snakemake(tmp_path, "--dry-run", "all", overlays=(overlay,))
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert lines == [
        "error: config: base_models.judge: its size shows in no name; set "
        "base_models.judge.billions, its parameters in billions such as 0.135"
    ]
    assert "Traceback" not in done.stderr


def show_jobs(command, folder, *arguments):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "prefdistill", command, "all"),
            *("--profile", "slurm", "--directory", folder, *arguments),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line
    }


def test_the_plan_adds_up_the_cost_model(data):
    arguments = ("--configfile", ROOT / "config/plan.yaml")
    rows = show_jobs("plan", data, *arguments)
    # 300 steps of 32 pairs in both orders: 15.4 million tokens (800 each) at 4 x 8e9
    # operations and 80 TFLOP/s, and 16 GB to load, on each of three folds.
    hours = 300 * 32 * 2 * 800 * 4 * 8e9 / 80e12 / 3600 + 16 / 5 / 60
    assert rows["train_teacher"][:2] == ["3", "1"]
    assert float(rows["train_teacher"][2]) == pytest.approx(3 * hours, abs=0.01)
    assert float(rows["train_teacher"][3]) == pytest.approx(hours, abs=0.01)
    rules = (RULES_ON_GPUS | {"predict_average"}) & rows.keys()
    total = sum(float(rows[name][2].replace(",", "")) for name in rules)
    assert float(rows["all"][2].replace(",", "")) == pytest.approx(total, rel=0.01)
    left = show_jobs("status", data, *arguments)
    assert left["all"][-2:] == [rows["all"][0], rows["all"][2]]
    assert left["No"] == ["driver", "is", "at", "work", "here."]

"""Measure packing's gain on the CPU and the cost of a job's start: `make bench-cpu`.

    python -m benchmarks.cpu               # all three tables; minutes on one core
    python -m benchmarks.cpu --only start  # what a job costs before it works
    python -m benchmarks.cpu --only demo   # that cost's share in a finished demo

Everything runs on one thread. The demo's share comes from the timing files that
Snakemake leaves in `logs/benchmarks/`.
"""

import argparse
import ast
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.engine import Amount, Case, measure
from benchmarks.result_rows import Row, markdown_table
from prefdistill.models.quick_imports import hide_unused_imports
from prefdistill.running.job import set_threads

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "workflow/scripts"
PARTS = ("packing", "start", "demo")
N_STARTS = 5
TINY = Amount(pairs=16, shorten=4, token_budget=2048, infer_budget=4096)
# Rows about as long as the demo's; the larger shape gets fewer.
PACKING = {
    "tiny-llama": TINY,
    "tiny-gemma2": TINY,
    "smollm2-135m": replace(TINY, pairs=8, repeats=2),
}

# By kind of job: a script whose imports are typical, and its later imports.
KINDS = {
    "data": ("make_folds.py", ""),
    "model": (
        "train_teacher.py",
        "from prefdistill.models.quick_imports import import_model_libraries\n"
        "import_model_libraries('fp32')\n"
        "from transformers import AutoModelForSequenceClassification\n"
        "import peft",
    ),
    "GPTQ": (
        "quantise_model.py",
        "from prefdistill.models.quick_imports import import_quantiser\n"
        "import_quantiser()\n"
        "import prefdistill.export.gptq, gptqmodel",
    ),
}
# What ``job.run_job`` does for the end of a job.
END = "import atexit, gc\natexit.register(gc.freeze)"
MODEL_RULES = {
    *("make_tiny_model", "post_pretrain", "train_teacher", "infer_logits"),
    *("distill_student", "predict_logits"),
}
LOADING = """
from prefdistill.models.quick_imports import import_model_libraries
import_model_libraries("fp32")
from pathlib import Path
from time import process_time
import sys
from dataclasses import replace
import numpy as np
import peft
from transformers import AutoModelForSequenceClassification
from benchmarks import workload
from benchmarks.engine import training_settings, Amount
from prefdistill.storage.checkpoints import Checkpoints
from prefdistill.training.objectives import label_objective
from prefdistill.models.loading import load_classifier
from prefdistill.models.lora import add_adapter
from prefdistill.settings import LoraSettings, read
from prefdistill.training.trainer import Trainer
folder = Path(sys.argv[1])
encoded = workload.random_pairs(np.full(4, 64), np.full(4, 8), 800)
settings = replace(training_settings(Amount(pairs=4)), max_steps=1)
started = process_time()
model = load_classifier(folder, "fp32")
lora = read(LoraSettings, workload.lora_settings("engine", "train", 1))
model = add_adapter(model, lora, 0)
loaded = process_time()
trainer = Trainer(model, encoded, label_objective(np.eye(3, dtype=np.float32)[[0] * 4]),
                  settings, 1.0, Checkpoints(folder / "none", "bench"))
trainer.run(folder / "curve.jsonl")
print(loaded - started, process_time() - loaded)
"""


# --- packing -----------------------------------------------------------------------


def compare_packing() -> list[Row]:
    """Measure padded and packed work; ``ratio_to_recipe`` is on the packed rows.

    The padded side is plain transformers and PEFT in float32 without recomputation, in
    the recipe's batches; its attention is PyTorch's fused one where the model has no
    soft cap, which that cannot do.
    """
    import torch

    rows = []
    for model, amount in PACKING.items():
        attention = "eager" if "gemma2" in model else "sdpa"
        plain = replace(amount, attention=attention, checkpointing=False)
        for mode in ("train", "infer"):
            pair = [
                measure(Case(model, mode, "bf16", variant), plain, torch.device("cpu"))
                for variant in ("recipe", "engine")
            ]
            padded, packed = pair
            speeds = packed["useful_tokens_per_s"], padded["useful_tokens_per_s"]
            packed["ratio_to_recipe"] = round(speeds[0] / speeds[1], 2)
            rows += pair
            print(json.dumps(packed), file=sys.stderr, flush=True)
    return rows


def packing_table(rows: list[Row]) -> str:
    """Write padded and packed rows, which come in pairs, side by side."""
    lines = [
        (
            *(packed["model"], packed["mode"]),
            f"{padded['useful_tokens_per_s']:,.0f}",
            f"{padded['fill']:.2f}",
            f"{packed['useful_tokens_per_s']:,.0f}",
            f"{packed['ratio_to_recipe']:.2f}",
        )
        for padded, packed in zip(rows[::2], rows[1::2], strict=True)
    ]
    head = ("model", "mode", "padded, tokens/s", "fill", "packed, tokens/s", "ratio")
    return markdown_table(head, lines)


# --- the start of a job ------------------------------------------------------------


def import_lines(script: Path) -> list[str]:
    """List a script's imports of every scope, except those for type checkers."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    nodes = [each for each in ast.walk(tree) if isinstance(each, ast.Import)]
    nodes += [each for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)]
    return [text for text in map(ast.unparse, nodes) if "snakemake" not in text]


def cpu_seconds(code: str, *arguments: str) -> tuple[float, str]:
    """Run code in a new interpreter; return its CPU seconds and what it printed."""
    paths = os.pathsep.join([str(SCRIPTS), str(ROOT)])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, done.stdout


def _median_of_starts(code: str) -> float:
    cpu_seconds(code)  # the files come from the disk once
    return statistics.median(cpu_seconds(code)[0] for _ in range(N_STARTS))


def start_costs() -> dict[str, float]:
    """Measure CPU seconds before a job's work, by kind, and of load and first step."""
    costs = {"interpreter": _median_of_starts("pass")}
    for kind, (script, later) in KINDS.items():
        lines = import_lines(SCRIPTS / script)
        costs[kind] = _median_of_starts("\n".join([END, later, *lines]))
    for model in ("tiny-llama", "smollm2-135m"):
        with tempfile.TemporaryDirectory() as folder:
            save_random_model(model, Path(folder))
            parts = [cpu_seconds(LOADING, folder)[1].split() for _ in range(N_STARTS)]
        for name, values in zip(
            ("load", "step"), zip(*parts, strict=True), strict=True
        ):
            costs[f"{name} {model}"] = statistics.median(map(float, values))
    return costs


def save_random_model(model: str, folder: Path) -> None:
    """Save a causal model of a shape with random weights, in bf16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from benchmarks import workload

    config = AutoConfig.for_model(**workload.SHAPES[model], pad_token_id=0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        folder
    )


def start_table(costs: dict[str, float]) -> str:
    """Write the costs as a Markdown table."""
    words = {
        "interpreter": "interpreter alone",
        **{kind: f"interpreter and imports, {kind} job" for kind in KINDS},
    }
    for name in costs.keys() - words.keys():
        what, model = name.split()
        said = "load" if what == "load" else "first step with"
        words[name] = f"{said} {model} and an adapter of rank 64"
    lines = [(words[name], f"{seconds:.2f}") for name, seconds in costs.items()]
    return markdown_table(("what", "CPU s"), lines)


# --- the demo ----------------------------------------------------------------------


def kind_of(path: Path) -> str:
    """Tell the kind of job that wrote a timing file."""
    rule = path.parent.name
    if rule.startswith("quantise") or path.stem.startswith("gptq"):
        return "GPTQ" if rule != "calibrate_judge" else "data"
    return "model" if rule in MODEL_RULES else "data"


def demo_share(folder: Path, costs: dict[str, float]) -> list[tuple[str, ...]]:
    """Count jobs, CPU seconds and the start's part of them, by kind and in all.

    Args:
        folder: Snakemake's timing files, ``RULE/NAME.tsv``.
        costs: From ``start_costs``.
    """
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for path in sorted(folder.glob("*/*.tsv")):
        with open(path, encoding="utf-8", newline="") as handle:
            for line in csv.DictReader(handle, delimiter="\t"):
                kind = kind_of(path)
                own = float(line["cpu_time"])
                # Snakemake looks too seldom to see a short job's whole time.
                seconds[kind].append(max(own, costs[kind]))
    lines, starts_in_all = [], 0.0
    for kind, own in seconds.items():
        loading = costs["load tiny-llama"] if kind == "model" else 0.0
        starts = len(own) * (costs[kind] + loading)
        starts_in_all += starts
        lines.append(_share_line(kind, len(own), sum(own), starts))
    n_jobs = sum(map(len, seconds.values()))
    lines.append(
        _share_line("all", n_jobs, sum(map(sum, seconds.values())), starts_in_all)
    )
    return lines


def _share_line(kind: str, n_jobs: int, work: float, starts: float) -> tuple[str, ...]:
    share = f"{100 * starts / work:.0f} %" if work else ""
    return kind, str(n_jobs), f"{work:.0f}", f"{starts:.0f}", share


def main() -> None:
    """Measure and print the tables asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--times", type=Path, default=ROOT / "logs/benchmarks")
    arguments = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    set_threads(1)
    hide_unused_imports()
    if "packing" in arguments.only:
        print(packing_table(compare_packing()), flush=True)
    costs = start_costs() if {"start", "demo"} & set(arguments.only) else {}
    if "start" in arguments.only:
        print(start_table(costs), flush=True)
    if "demo" in arguments.only:
        if not arguments.times.is_dir():
            sys.exit("error: no logs/benchmarks/ here: run `make demo` first")
        head = ("jobs", "number", "CPU s", "of it start", "share")
        print(markdown_table(head, demo_share(arguments.times, costs)))


if __name__ == "__main__":
    main()

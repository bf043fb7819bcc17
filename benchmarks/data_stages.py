"""Time import, cleaning and folds of up to a million simulated pairs.

    python -m benchmarks.data_stages                  # 10k, 100k, 1M pairs; minutes
    python -m benchmarks.data_stages --pairs 1000

Each stage runs in its own process. The result is a Markdown table of seconds and of the
peak memory of the three stages.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.result_rows import markdown_table
from prefdistill.running.job import set_threads

SCRIPTS = Path(__file__).resolve().parents[1] / "workflow/scripts"
STAGES = {
    "simulate": """
from prefdistill.settings import SimulationSettings
from simulate_pairs import main
paths = {name: Path(f"{name}.csv") for name in ("train", "extra", "ultra", "test")}
settings = SimulationSettings(
    n_train=N, n_extra=30, n_ultra=30, n_test=30, dirty_fraction=0.03, seed=0)
main(**paths, truth=Path("truth.parquet"), settings=settings)
""",
    "import": """
from import_pairs import main
data = {"train": ["train.csv"], "extra": ["extra.csv"], "ultra": ["ultra.csv"]}
main(Path("pairs.parquet"), Path("import.json"), data | {"test": "test.csv"})
""",
    "clean": """
from dataclasses import fields
from clean_pairs import main
from prefdistill.settings import CleaningSettings
policy = CleaningSettings(**{field.name: "drop" for field in fields(CleaningSettings)})
main(Path("pairs.parquet"), Path("import.json"), Path("clean.parquet"),
     Path("cleaning.json"), policy)
""",
    "fold": """
from make_folds import main
from prefdistill.settings import FoldSettings
settings = FoldSettings(
    n=3, select_fraction=0.04, test_fraction=0.08, test_part=None, seed=0)
main(Path("clean.parquet"), [Path(f"fold{k}.parquet") for k in range(3)],
     Path("post_pretrain.parquet"), Path("unlabelled.parquet"), Path("folds.json"),
     settings, Path("pseudo.parquet"))
""",
}


def run_stage(stage: str, n_pairs: int, folder: Path) -> tuple[float, float]:
    """Run one stage; return its seconds with start-up, and peak resident GB."""
    code = f"from pathlib import Path\nN = {n_pairs}\n{STAGES[stage]}"
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: {stage} of {n_pairs} pairs ended with status {status}")
    return time.monotonic() - started, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Run the stages at each size and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [10_000, 100_000, 1_000_000]
    parser.add_argument("--pairs", type=int, nargs="+", default=sizes)
    set_threads(1)
    lines = []
    for n_pairs in parser.parse_args().pairs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            took = {stage: run_stage(stage, n_pairs, folder) for stage in STAGES}
            megabytes = (folder / "train.csv").stat().st_size / 1e6
        del took["simulate"]
        seconds, gigabytes = zip(*took.values(), strict=True)
        lines.append(
            (
                *(f"{n_pairs:,}", f"{megabytes:,.0f}"),
                *(f"{each:.1f}" for each in seconds),
                *(f"{sum(seconds):.1f}", f"{max(gigabytes):.2f}"),
            )
        )
    head = ("pairs", "CSV, MB", "import, s", "clean, s", "fold, s", "all, s", "GB")
    print(markdown_table(head, lines))


if __name__ == "__main__":
    main()

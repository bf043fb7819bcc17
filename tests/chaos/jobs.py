"""Kill real jobs of a finished run, and run two copies of one at the same time.

    python tests/chaos/jobs.py --kills 50 --races 50 --seed 0

The reduced demo is run once, or ``--run`` names a finished one. It keeps the script
that Snakemake made for each job. A trial executes such a script again in a copy of the
finished run, in a process that is killed.

A killed job must leave each of its targets absent or whole. When it runs again, its
files must equal those of the undisturbed run, byte for byte (except the ``seconds`` of
a training step), with no others beside them. Of two copies, one must publish all
outputs, whatever happens to the other and whenever Snakemake deletes the outputs
because the second one starts.
"""

import argparse
import json
import os
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from children import (
    FILE_CALLS,
    KILLED,
    MAX_DRAWS,
    Child,
    Place,
    Tally,
    contents,
    count_calls,
    differing,
    draw_place,
    prepare,
    working_folder,
)

prepare()

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from running import snakemake  # noqa: E402

import prefdistill.running.job  # noqa: E402
from prefdistill.running.progress import Progress  # noqa: E402

RULES = (
    "simulate_pairs",
    "import_pairs",
    "clean_pairs",
    "make_folds",
    "make_tiny_model",
    "post_pretrain",
    "train_teacher",
    "infer_logits",
    "calibrate_logits",
    "distill_student",
    "average_adapters",
    "merge_adapter",
    "predict_logits",
)
# Jobs with checkpoints or several outputs can fail in more ways: half of the trials.
OFTEN = ("train_teacher", "distill_student", "infer_logits", "merge_adapter")
SMALLER = {"teachers": {"qwen": None}, "folds": {"n": 2}}
RUN_TARGETS = (
    "results/merged/model.safetensors",
    "results/predictions/merged/logits.npz",
)
PREAMBLE_END = "######## snakemake preamble end #########"
CAPTURE = "--skip-script-cleanup"


@dataclass
class Job:
    """A job of the finished run.

    Attributes:
        script: The script that Snakemake executed for it.
        rule: Its rule.
        outputs: Declared targets, relative to the run's folder.
        files: Content of ``results/`` after an undisturbed run of the job.
        counts: Calls of the functions at which it can be killed.
        seconds: Duration.
        largest_file: Bytes of its largest target.
    """

    script: Path
    rule: str
    outputs: list[str]
    files: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    largest_file: int = 0

    @classmethod
    def read(cls, script: Path) -> "Job":
        """Read rule and outputs from the ``snakemake`` object in the preamble."""
        space: dict[str, Any] = {"__file__": str(script)}
        exec(script.read_text().partition(PREAMBLE_END)[0], space)
        job = space["snakemake"]
        return cls(script, job.rule, list(map(str, job.output)))

    def run(self, folder: Path) -> None:
        """Execute the script as Snakemake does; call this in a child."""
        os.chdir(folder)
        runpy.run_path(str(self.script), run_name="__main__")

    def forget(self, folder: Path) -> None:
        """Delete the outputs, as Snakemake does before a job starts."""
        for name in self.outputs:
            (folder / name).unlink(missing_ok=True)

    def measure(self, finished: Path, folder: Path) -> None:
        """Make the reference: run undisturbed in a child, and count its calls."""
        fresh_copy(finished, folder)
        self.forget(folder)
        counts_path = folder / "counts"

        def body() -> None:
            counts = count_calls(FILE_CALLS)
            self.run(folder)
            os.chdir("/")
            counts_path.write_text(json.dumps(counts))

        started = time.monotonic()
        code = Child(body, folder / "terminal").wait()
        self.seconds = time.monotonic() - started
        if code:
            sys.exit(f"{self.rule}: {(folder / 'terminal').read_text()}")
        self.counts = json.loads(counts_path.read_text())
        self.files = contents(folder / "results")
        sizes = [(folder / name).stat().st_size for name in self.outputs]
        self.largest_file = max(sizes)
        shutil.rmtree(folder)


def fresh_copy(finished: Path, folder: Path) -> None:
    """Copy only the results of the finished run to an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copytree(finished / "results", folder / "results", symlinks=True)


def read_jobs(finished: Path) -> list[Job]:
    """Read one job of each rule."""
    scripts = (finished / ".snakemake/scripts").glob("*.py")
    known = [path for path in scripts if path.name.split(".")[1] in RULES]
    found: dict[str, Job] = {}
    for job in sorted(map(Job.read, known), key=lambda job: job.outputs):
        found.setdefault(job.rule, job)
    return [found[rule] for rule in RULES]


def warm_up(finished: Path) -> None:
    """Import what the jobs import, by loading a model once."""
    import scipy.optimize  # noqa: F401

    from prefdistill.models.loading import load_classifier
    from prefdistill.models.lora import add_adapter
    from prefdistill.settings import LoraSettings, read

    lora = {"r": 1, "alpha": 1, "dropout": 0.0, "targets": ["q_proj"]}
    for manifest in finished.glob("results/base/*/manifest.json"):
        model = load_classifier(manifest.parent, "nf4")
        add_adapter(model, read(LoraSettings, lora | {"lowest_layer": 0}), seed=0)


@dataclass
class Trials:
    """Trials over all jobs, one after another.

    Attributes:
        jobs: The jobs to run.
        finished: The finished run.
        folder: The trials' folder.
        rng: Random generator.
    """

    jobs: list[Job]
    finished: Path
    folder: Path
    rng: np.random.Generator

    def kill(self, number: int, tally: Tally) -> str | None:
        """Kill a job, check its targets, run it again; return what went wrong."""
        job = self._job(number)
        kind = ("at any instant", "in a write", *FILE_CALLS)[number % 5]
        for _ in range(MAX_DRAWS):
            folder = self._start_afresh(job, f"kill{number}")
            code = self._run_and_kill(job, folder, kind)
            if code:
                break
        else:
            return f"{job.rule}: no kill came in time"
        if code not in KILLED:
            return f"{job.rule}, {kind}: exit status {code}"
        tally.counts[kind] += 1
        tally.counts[f"of {job.rule}"] += 1
        left = contents(folder / "results")
        for name in job.outputs:
            name = name.removeprefix("results/")
            if name in left and left[name] != job.files[name]:
                return f"{job.rule}, {kind}: {name} is not whole"
        if number % 2:
            job.forget(folder)
        code = Child(lambda: job.run(folder), folder / "terminal").wait()
        if code:
            return f"{job.rule}, {kind}: exit status {code} when run again"
        return self._difference(job, folder)

    def _run_and_kill(self, job: Job, folder: Path, kind: str) -> int:
        place: Place | None = None
        if kind != "at any instant":
            kind = kind if job.counts.get(kind) else "at a rename"
            place = draw_place(kind, FILE_CALLS, job.counts, job.largest_file, self.rng)

        def body() -> None:
            if place:
                place.arm()
            job.run(folder)

        child = Child(body, folder / "terminal")
        if place is None:
            delay = self.rng.uniform(0, job.seconds)
            time.sleep(delay)
            child.signal(signal.SIGKILL)
        code = child.wait()
        if place is None and code == 0:
            # Too late: the machine is less busy than when the time was taken.
            job.seconds = min(job.seconds, 0.9 * delay)
        return code

    def race(self, number: int, tally: Tally) -> str | None:
        """Start two copies of a job; return what went wrong, if anything."""
        job = self._job(number)
        folder = self._start_afresh(job, f"race{number}")
        delay = self.rng.uniform(0, 1.2 * job.seconds)
        end = (None, signal.SIGKILL, signal.SIGTERM)[number % 3]
        ends_at = self.rng.uniform(0, 1.5 * job.seconds)
        deletes = number % 2 == 1
        started = time.monotonic()
        first, second = self._copy(job, folder), None
        actions = [(delay, "start")] + ([(ends_at, "end")] if end else [])
        for moment, action in sorted(actions):
            time.sleep(max(0.0, started + moment - time.monotonic()))
            if action == "end":
                first.signal(end)
                if end == signal.SIGKILL:
                    first.wait()  # until then it counts as a live process
                continue
            if deletes:
                job.forget(folder)
            second = self._copy(job, folder)
        codes = first.wait(), second.wait()
        tally.counts[f"first copy: {codes[0]}"] += 1
        tally.counts["outputs deleted at the second's start"] += deletes
        tally.counts[f"of {job.rule}"] += 1
        allowed = {None: {0}, signal.SIGKILL: {0, -9}, signal.SIGTERM: {0, 143, -15}}
        if codes[0] not in allowed[end] or codes[1] != 0:
            return f"{job.rule}: exit statuses {codes}"
        killed = first.pid if codes[0] < 0 else None
        problem = self._who_worked(job, folder, killed, tally)
        return problem or self._difference(job, folder)

    def _copy(self, job: Job, folder: Path) -> Child:
        """Start a copy that logs its start, end and renames in ``notes``."""

        def body() -> None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            notes = os.open(folder / "notes", flags)

            def note(what: str) -> None:
                os.write(notes, f"{os.getpid()} {what}\n".encode())

            @contextmanager
            def only_copy(its_job: Any) -> Iterator[None]:
                with real_copy(its_job):
                    note("starts")
                    try:
                        yield
                    finally:
                        note("ends")

            def replace(source: Any, target: Any, **named: Any) -> None:
                real_replace(source, target, **named)
                note(str(Path(folder, target).relative_to(folder)))

            real_copy, real_replace = prefdistill.running.job.only_copy, os.replace
            prefdistill.running.job.only_copy, os.replace = only_copy, replace
            job.run(folder)

        return Child(body, folder / "terminal")

    def _who_worked(
        self, job: Job, folder: Path, killed: int | None, tally: Tally
    ) -> str | None:
        """Check that one copy published all outputs, and that copies worked in turn.

        Args:
            job: The job.
            folder: The folder in which it ran twice.
            killed: Process number of a copy that was killed.
            tally: Counts copies that worked, and that waited.
        """
        at_work, workers, publisher = None, set(), {}
        for line in (folder / "notes").read_text().splitlines():
            copy, what = line.split()
            if what == "starts":
                if at_work not in (None, str(killed)):
                    return f"{job.rule}: two copies worked at the same time"
                at_work = copy
                workers.add(copy)
            elif copy != at_work:
                return f"{job.rule}: a copy wrote {what} while another worked"
            elif what == "ends":
                at_work = None
            else:
                publisher[what] = copy
        if len({publisher.get(name) for name in job.outputs}) != 1:
            return f"{job.rule}: the outputs are not those of one copy"
        tally.counts[f"copies that worked: {len(workers)}"] += 1
        waited = "waiting for it" in (folder / "terminal").read_text()
        tally.counts["one copy waited for the other"] += waited
        return None

    def _job(self, number: int) -> Job:
        often = [job for job in self.jobs if job.rule in OFTEN]
        jobs = often if number % 2 else self.jobs
        job = jobs[number // 2 % len(jobs)]
        if not job.files:
            job.measure(self.finished, self.folder / "reference")
        return job

    def _start_afresh(self, job: Job, name: str) -> Path:
        folder = self.folder / name
        fresh_copy(self.finished, folder)
        job.forget(folder)
        return folder

    def _difference(self, job: Job, folder: Path) -> str | None:
        """Describe how a trial's files differ from the reference; None if equal."""
        wrong = differing(contents(folder / "results"), job.files)
        wrong += [str(path) for path in (folder / "scratch").rglob("*-step-*")]
        if wrong:
            return f"{job.rule}: {', '.join(wrong)} differ"
        shutil.rmtree(folder)
        return None


def run_demo(folder: Path) -> Path:
    """Run a small part of the reduced demo, and keep the scripts of its jobs."""
    overlay = folder / "smaller.yaml"
    overlay.write_text(yaml.safe_dump(SMALLER))
    run = folder / "run"
    run.mkdir()
    print("running the workflow once", flush=True)
    result = snakemake(run, CAPTURE, *RUN_TARGETS, overlays=(overlay,))
    if result.returncode:
        sys.exit((result.stdout + result.stderr)[-4000:])
    return run


def run_trials(
    finished: Path | None, n_kills: int, n_races: int, seed: int
) -> tuple[Tally, Tally]:
    """Run all trials, print counts by kind, and return the two tallies."""
    kills, races = Tally(), Tally()
    with working_folder() as folder:
        finished = finished or run_demo(folder)
        warm_up(finished)
        rng = np.random.default_rng(seed)
        trials = Trials(read_jobs(finished), finished, folder, rng)
        progress = Progress(n_kills + n_races, "trials")
        for number in range(n_kills):
            kills.add(f"kill {number}", trials.kill(number, kills))
            progress.update()
        for number in range(n_races):
            races.add(f"race {number}", trials.race(number, races))
            progress.update()
    kills.report("killed jobs, every target whole or absent, then as undisturbed")
    races.report("races of two copies of a job, one published")
    return kills, races


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--races", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help=f"a run made with {CAPTURE}")
    options = parser.parse_args()
    tallies = run_trials(options.run, options.kills, options.races, options.seed)
    sys.exit(any(tally.failures for tally in tallies))


if __name__ == "__main__":
    main()

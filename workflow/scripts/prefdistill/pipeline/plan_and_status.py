"""Show what a Snakemake command would take (plan), or where its run stands (status).

Snakemake builds the graph of jobs, with every option, profile and overlay, and prints
the lines of ``--summary``; ours replace them. So nothing is guessed from printed text,
and nothing is run or locked. The cost model that sets the jobs' time limits gives the
hours.

Snakemake is imported inside functions: it brings numpy and pandas.
"""

import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from prefdistill.pipeline.config_files import read_plainly
from prefdistill.pipeline.driver import driver_at_work, read_command
from prefdistill.pipeline.job_states import STATES, Job, state_of


def plan(arguments: Sequence[str], prog: str) -> None:
    """Run ``prefdistill plan``.

    Raises:
        UserError: If a configuration file is missing or is not YAML.
    """
    read_command(
        arguments,
        prog,
        "Show what a run would take: its jobs by rule, with GPU hours, memory and disk."
        "\nNothing is run.",
    )

    def text(dag: Any) -> str:
        free_gb = shutil.disk_usage(".").free / 1e9
        return plan_text(jobs_of(dag), _gpu_tflops(dag), free_gb)

    _summarise(arguments, text)


def status(arguments: Sequence[str], prog: str) -> None:
    """Run ``prefdistill status``.

    Raises:
        UserError: If a configuration file is missing or is not YAML.
    """
    folder = read_command(
        arguments,
        prog,
        "Show which jobs of a run are done, running, failed and left, and the GPU hours"
        " left.\nWorks while the run does.",
    )
    # First, because reading the Snakefile takes this process's share of the lock.
    driver = driver_at_work(folder)

    def text(dag: Any) -> str:
        targets = ", ".join(map(str, dag.targetrules or dag.targetfiles))
        return status_text(jobs_of(dag), _gpu_tflops(dag), driver, targets)

    _summarise(arguments, text)


def _gpu_tflops(dag: Any) -> float:
    """Return a setting of the Snakefile, as it is after validation."""
    return dag.workflow.globals["SETTINGS"].gpu_tflops


def _summarise(arguments: Sequence[str], text: Callable[[Any], str]) -> None:
    """Run ``snakemake --summary``, but print ``text`` of its graph of jobs."""
    import snakemake.api  # noqa: F401 (before snakemake.dag, which needs it)
    from snakemake.cli import main as run_snakemake
    from snakemake.dag import DAG

    async def lines(dag: DAG, detailed: bool = False) -> AsyncIterator[str]:
        yield text(dag)

    DAG.summary = lines
    read_plainly()
    run_snakemake(["--summary", *arguments])


def jobs_of(dag: Any) -> list[Job]:
    """List the jobs of a graph, without target rules, each after those it needs."""
    order = [job for level in dag.toposorted() for job in sorted(level, key=str)]
    return [_job(dag, job) for job in order if not job.is_norun]


def _job(dag: Any, job: Any) -> Job:
    asked = job.rule.resources.get("runtime")
    work = getattr(getattr(asked, "_evaluator", None), "work", None)
    return Job(
        rule=job.rule.name,
        needed=dag.needrun(job),
        memory_gb=(job.resources.get("mem_mb") or 0) / 1000,
        gpus=job.resources.get("gpu") or 0,
        work=work(job.wildcards) if work else None,
        log=Path(job.log[0]) if job.log else None,
    )


def _by_rule(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    """Group jobs by rule, in the order of their first jobs."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.rule, []).append(job)
    return found


def plan_text(jobs: Sequence[Job], gpu_tflops: float, free_gb: float) -> str:
    """Write a table of the jobs that are to run, by rule and in all.

    Args:
        jobs: All jobs of the run; those that are not needed are left out.
        gpu_tflops: TFLOP/s that one GPU sustains.
        free_gb: Free GB on the file system of the results.
    """
    needed = [job for job in jobs if job.needed]
    if not needed:
        return "Nothing is to be done."
    groups = {**_by_rule(needed), "all": needed}
    rows = [
        (
            rule,
            len(group),
            gpus := max(job.gpus for job in group),
            _figure(sum(job.gpu_hours(gpu_tflops) for job in group)) if gpus else "",
            _figure(max(job.hours(gpu_tflops) for job in group)),
            _figure(max(job.memory_gb for job in group)),
            _figure(sum(job.work.disk_gb for job in group if job.work)),
            _figure(max(scratch)) if any(scratch := _scratch(group)) else "",
        )
        for rule, group in groups.items()
    ]
    head = ("rule", "jobs", "GPUs", "GPU hours", "longest, h")
    head += ("memory, GB", "disk, GB", "scratch, GB")
    needed_gb = sum(job.work.disk_gb for job in needed if job.work)
    lines = [
        _table(head, rows),
        "GPUs, memory and scratch (checkpoints, while it runs) of the largest job; GPU "
        f"hours at\n{gpu_tflops:g} TFLOP/s a GPU (gpu_tflops), without "
        "waiting and start-up; disk at most.",
        f"{_figure(free_gb)} GB are free here.",
    ]
    if needed_gb > free_gb:
        lines[-1] = (
            f"warning: only {lines[-1]} The results may take {_figure(needed_gb)} GB."
        )
    silent = sorted({job.rule for job in needed if job.work is None})
    if silent:
        lines.append(f"without an estimate: {', '.join(silent)}")
    return "\n\n".join(lines)


def _scratch(jobs: Sequence[Job]) -> list[float]:
    return [job.work.scratch_gb for job in jobs if job.work]


def status_text(
    jobs: Sequence[Job], gpu_tflops: float, driver: str | None, target: str
) -> str:
    """Write a table of jobs by rule and state, and a line per running or failed job.

    Args:
        jobs: All jobs of the run.
        gpu_tflops: TFLOP/s that one GPU sustains.
        driver: The driver at work, in words, or None.
        target: Names of what the run makes.
    """
    states = [state_of(job) for job in jobs]
    places = {rule: [] for rule in _by_rule(jobs)}
    for place, job in enumerate(jobs):
        places[job.rule].append(place)
    rows = []
    for rule, own in [*places.items(), ("all", range(len(jobs)))]:
        counts = [sum(states[k].kind == kind for k in own) for kind in STATES]
        left = sum(
            jobs[k].gpu_hours(gpu_tflops) * (1 - states[k].share)
            for k in own
            if jobs[k].needed
        )
        rows.append((rule, *counts, _figure(left) if left else ""))
    notes = [
        f"{state.kind}: {_name(job)}: {state.text}"
        for job, state in zip(jobs, states, strict=True)
        if state.kind in ("running", "failed", "stopped")
    ]
    return "\n\n".join(
        [
            f"{driver} is at work." if driver else "No driver is at work here.",
            _table((target, *STATES, "GPU hours left"), rows),
            *(["\n".join(notes)] if notes else []),
            f"GPU hours at {gpu_tflops:g} TFLOP/s a GPU (gpu_tflops).",
        ]
    )


def _figure(value: float) -> str:
    """Format a number with at most three significant digits and two decimals."""
    if 0 < value < 0.005:
        return "<0.01"
    digits = 0 if value >= 100 or not value else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write columns for a terminal; set off the last row (all), leave zeros out."""
    cells = [head, *[[str(cell or "") for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in cells
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _name(job: Job) -> str:
    return f"{job.rule} {job.log.stem}" if job.log else job.rule

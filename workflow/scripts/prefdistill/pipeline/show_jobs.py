"""Show what a Snakemake command would take, or where its run stands.

Snakemake builds the graph of jobs itself, with every option, profile and overlay, and
asks it for the lines of ``--summary``; ours take their place. So nothing is guessed
from printed text, and nothing is run or locked.

Snakemake is imported inside functions: it brings numpy and pandas.
"""

import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from prefdistill.pipeline.driver import driver_at_work, read_command
from prefdistill.pipeline.overview import Job, plan_text, status_text


def jobs_of(dag: Any) -> list[Job]:
    """List a graph's jobs without its targets, each after those that it needs."""
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
        config, free_gb = dag.workflow.globals["config"], shutil.disk_usage(".").free
        return plan_text(jobs_of(dag), config, free_gb / 1e9)

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
        config = dag.workflow.globals["config"]
        return status_text(jobs_of(dag), config, driver, targets)

    _summarise(arguments, text)


def _summarise(arguments: Sequence[str], text: Callable[[Any], str]) -> None:
    """Run ``snakemake --summary`` with a text of its graph instead of its own lines."""
    import snakemake.api  # noqa: F401 (before snakemake.dag, which needs it)
    from snakemake.cli import main as run_snakemake
    from snakemake.dag import DAG

    async def lines(dag: DAG, detailed: bool = False) -> AsyncIterator[str]:
        yield text(dag)

    DAG.summary = lines
    run_snakemake(["--summary", *arguments])

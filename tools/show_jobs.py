"""Show what a Snakemake command would take, or where its run stands.

usage: show_jobs.py plan|status [target ...] [option of snakemake ...]

Snakemake builds the graph of jobs itself, with every option, profile and overlay, and
asks it for the lines of `--summary`; ours take their place. So nothing is guessed from
printed text, and nothing is run or locked.
"""

import argparse
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

import snakemake.api  # noqa: F401 (before snakemake.dag, which needs it)
from snakemake.cli import main as run_snakemake
from snakemake.dag import DAG

from prefdistill.pipeline.driver import driver_at_work
from prefdistill.pipeline.overview import Job, plan_text, status_text


def jobs_of(dag: DAG) -> list[Job]:
    """The jobs of a graph but for its targets, each after those that it needs."""
    order = [job for level in dag.toposorted() for job in sorted(level, key=str)]
    return [_job(dag, job) for job in order if not job.is_norun]


def _job(dag: DAG, job: Any) -> Job:
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


def main(kind: str, command: list[str]) -> None:
    """Run ``snakemake --summary`` with our lines instead of its own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-d", "--directory", type=Path, default=Path())
    driver = driver_at_work(parser.parse_known_args(command)[0].directory)

    async def lines(dag: DAG, detailed: bool = False) -> AsyncIterator[str]:
        config, jobs = dag.workflow.globals["config"], jobs_of(dag)
        if kind == "plan":
            yield plan_text(jobs, config, shutil.disk_usage(".").free / 1e9)
        else:
            targets = ", ".join(map(str, dag.targetrules or dag.targetfiles))
            yield status_text(jobs, config, driver, targets)

    DAG.summary = lines
    run_snakemake(["--summary", *command])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

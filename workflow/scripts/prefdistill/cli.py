"""Run the command ``prefdistill``: find the sub-command, and pass it its arguments.

A sub-command is a function of its arguments and of the name that its usage shows. Its
module is imported only when it is called, so that ``prefdistill --help`` is quick.
"""

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefdistill.version import __version__


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        module: The module that defines it.
        function: Name of its function, which takes the arguments and the usage's name.
        summary: Its line in ``prefdistill --help``.
        in_wheel: Whether it works without the workflow's files and extra packages.
    """

    module: str
    function: str
    summary: str
    in_wheel: bool = False


COMMANDS = {
    "run": Command(
        "prefdistill.pipeline.driver",
        "main",
        "run Snakemake, after clearing up a killed driver",
    ),
    "plan": Command(
        "prefdistill.pipeline.plan_and_status",
        "plan",
        "show what a run would take, by rule",
    ),
    "status": Command(
        "prefdistill.pipeline.plan_and_status",
        "status",
        "show which jobs are done, failed and left",
    ),
    "clean": Command(
        "prefdistill.pipeline.driver",
        "clean",
        "remove results, logs and checkpoints, unless in use",
    ),
    "pool": Command(
        "prefdistill.report.pooling",
        "main",
        "pool runs of folds.test_part into one score",
    ),
    "predict": Command(
        "prefdistill.predict", "main", "score a file of pairs with a judge", True
    ),
    "check-served": Command(
        "prefdistill.check_served",
        "main",
        "compare a server with its judge's files",
        True,
    ),
    "push": Command(
        "prefdistill.export.push", "main", "upload a release folder to the Hub", True
    ),
}
EPILOG = """
Each command explains itself: prefdistill predict --help

Run, plan, status, clean and pool need a clone of the repository, where the command is
`python -m prefdistill`. A wheel has the others.

exit status:
  0     done
  1     failed; one line on standard error says why and what to do
  2     wrong arguments
  143   stopped by a signal; the same command resumes (predict)
  Snakemake's own, for run, plan and status

example:
  prefdistill predict results/gptq/4bit pairs.csv out.csv
"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the sub-command, and leave its arguments unparsed."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {each.summary}" for name, each in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="prefdistill",
        usage="prefdistill [-h] [--version] COMMAND [argument ...]",
        description="From human preference pairs to a small, calibrated, quantised "
        "judge.\n\ncommands:\n" + "\n".join(lines),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of the above"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _require_clone(name: str) -> None:
    """Check that the package lies in a clone, with the workflow's files around it.

    Raises:
        UserError: If it does not, as in an installed wheel.
    """
    from prefdistill.errors import UserError

    if not (Path(__file__).resolve().parents[2] / "Snakefile").is_file():
        raise UserError(
            f"prefdistill {name}: needs the workflow, which a wheel does not have; run "
            f"`python -m prefdistill {name}` in a clone of the repository"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error is one line with exit status 1.

    Args:
        arguments: The command's arguments; None takes those of the process.
    """
    given = parse_arguments(arguments)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Ctrl-C ends imports without a traceback; commands that save handle it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Imported here, as it takes longer than all of `prefdistill --help`.
    from prefdistill.errors import UserError, disk_fault

    command = COMMANDS[given.command]
    try:
        if not command.in_wheel:
            _require_clone(given.command)
        function = getattr(importlib.import_module(command.module), command.function)
        function(given.arguments, f"prefdistill {given.command}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("prefdistill"):
            raise
        sys.exit(
            f"error: {error.name}: not installed for {sys.executable}; in a clone, run "
            f"`make setup`, then .venv/bin/python -m prefdistill {given.command}"
        )
    except (UserError, OSError) as error:
        sys.exit(f"error: {disk_fault(error) or error}")

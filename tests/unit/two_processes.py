"""What each of two processes does in the tests of ``distributed``; see there.

Run by ``test_distributed`` through ``run_job``, with a JSON file of what to do.
"""

import json
import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow/scripts"))

from prefdistill.job import hide_unused_imports, run_job


def work(todo):
    """Train and score as asked, and write what came out."""

    ...


if __name__ == "__main__":
    todo = json.loads(Path(sys.argv[1]).read_text())
    job = types.SimpleNamespace(
        log=[todo["log"]], threads=1, input=[], output=[], params={}
    )
    with run_job(job, processes=todo["processes"]):
        hide_unused_imports()
        work(todo)

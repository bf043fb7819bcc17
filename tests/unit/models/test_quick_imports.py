"""Imports of model jobs: complete, without the collector, and without packages to hide.

Each runs in an interpreter of its own, as a job does.
"""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefdistill.models.precision import is_gptq
from prefdistill.models.quick_imports import (
    collector_paused,
    import_early,
    unused_packages,
)

SCRIPTS = Path(__file__).resolve().parents[3] / "workflow/scripts"


def run(code: str, *arguments: str) -> str:
    """What a new interpreter prints for some code."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


MODEL_JOB = """
import gc, json, sys
from pathlib import Path
walks = []
gc.callbacks.append(lambda phase, info: walks.append(info["generation"]))
from prefdistill.models.quick_imports import import_model_libraries
before = len(walks)
import_model_libraries("fp32")
during = walks[before:]
from prefdistill.models.loading import load_classifier, load_tokenizer
model = load_classifier(Path(sys.argv[1]), "fp32")
load_tokenizer(sys.argv[1])
hidden = [name for name, module in sys.modules.items() if module is None]
print(json.dumps([during, gc.isenabled(), gc.get_freeze_count(), hidden,
                  "transformers.modeling_utils" in sys.modules,
                  sum(each.numel() for each in model.parameters())]))
"""


def test_a_model_job_imports_without_the_collector(tiny_model_folder):
    printed = run(MODEL_JOB, str(tiny_model_folder("llama"))).splitlines()[-1]
    during, enabled, n_frozen, hidden, imported, n_weights = json.loads(printed)
    assert during == []
    assert enabled
    assert n_frozen > 100_000
    assert {"scipy", "gptqmodel", "bitsandbytes"} <= set(hidden)
    assert imported
    assert n_weights > 0


def test_the_collector_comes_back_after_an_error():
    def fail() -> None:
        with collector_paused():
            assert not gc.isenabled()
            raise ImportError("no such package")

    with pytest.raises(ImportError):
        fail()
    assert gc.isenabled()
    gc.unfreeze()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_a_library_that_moved_is_left_to_the_job():
    import_early(["transformers.no_such_module", "no_such_package", "json"])
    assert "no_such_package" not in sys.modules


AT_THE_END = """
import gc, logging, sys
from types import SimpleNamespace
from prefdistill.running.job import run_job
from prefdistill.running.job import guarded
class Ring:
    def __init__(self): self.me = self
    def __del__(self): print("collected")
job = SimpleNamespace(threads=1, log=[sys.argv[1]], input=[], output=[], params={})
gc.disable()  # but for the walk at the end, which it does not stop
with guarded(job):
    Ring()
    if sys.argv[2] == "collect":
        gc.collect()
print("done")
"""


def test_a_job_ends_without_a_last_walk(tmp_path):
    log = str(tmp_path / "logs/rule/job.log")
    assert run(AT_THE_END, log, "collect").split() == ["collected", "done"]
    assert run(AT_THE_END, log, "leave").split() == ["done"]


def test_what_a_job_may_hide(tiny_model_folder, tmp_path):
    folder = tiny_model_folder("llama")
    assert not is_gptq(folder)
    assert "bitsandbytes" in unused_packages("fp32", folder)
    assert "bitsandbytes" not in unused_packages("nf4")
    config = {
        "model_type": "llama",
        "quantization_config": {"quant_method": "gptq"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_gptq(tmp_path)
    assert "gptqmodel" not in unused_packages("auto", tmp_path)

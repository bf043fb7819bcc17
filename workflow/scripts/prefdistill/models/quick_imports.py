"""Import the libraries of a model job at the least cost.

torch, transformers and GPTQModel make about a million objects that live until the job
ends. Python's garbage collector walks all of them again and again while they come, and
once more at the end: two fifths of a model job's start, more than any package that
could be left out. So imports run without the collector, and what they made is set aside
for good (``gc.freeze``).
"""

import gc
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

# Imported by all that loads or makes a model; the rest that a job needs comes with it.
MODEL_LIBRARY = "transformers.modeling_utils"
UNUSED_BY_GPTQ = ("bitsandbytes", "sklearn", "torchao")


def unused_packages(precision: str, folder: Path | None = None) -> list[str]:
    """List installed packages that loading a model this way never needs.

    transformers and PEFT would import them, which costs a job 1 to 4 seconds, so
    ``import_model_libraries`` hides them.
    """
    import torch

    from prefdistill.models.precision import is_gptq

    if folder is not None and is_gptq(folder):
        return list(UNUSED_BY_GPTQ)
    # pandas is not listed: pyarrow looks for it and fails if it is hidden.
    names = ["gptqmodel", "optimum", "torchao", "sklearn", "scipy"]
    may_be_nf4 = precision == "auto" and torch.cuda.is_available()
    needed = precision == "nf4" or may_be_nf4
    return names if needed else [*names, "bitsandbytes"]


def hide_unused_imports(*names: str) -> None:
    """Make optional packages look absent, so that PEFT does not spend seconds on them.

    Call it before ``peft`` is imported. A job that quantises must name the packages.

    Args:
        *names: The packages; without any, those that only quantising needs.
    """
    for name in names or ("gptqmodel", "optimum", "torchao", "sklearn"):
        sys.modules.setdefault(name, None)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Import in the body, without the garbage collector's walks.

    What the body made is never collected, so it may hold only imports, no data.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def import_early(names: Iterable[str]) -> None:
    """Import modules that a job needs later. The job itself says if one is missing."""
    for name in names:
        with suppress(ImportError):
            importlib.import_module(name)


def import_model_libraries(precision: str, folder: Path | None = None) -> None:
    """Import what loading a model needs, and hide packages that it does not need.

    Args:
        precision: Of the model, as in the configuration.
        folder: Of the model, if it may be a GPTQ checkpoint.
    """
    with collector_paused():
        # It brings torch and the engine.
        import_early(["prefdistill.models.loading"])
        from prefdistill.models.precision import is_gptq

        hide_unused_imports(*unused_packages(precision, folder))
        if folder is not None and is_gptq(folder):
            _import_gptqmodel()
        import_early([MODEL_LIBRARY])
        if precision == "nf4":
            import_early(["bitsandbytes"])


def import_quantiser() -> None:
    """Import GPTQModel, and hide what it imports without need."""
    with collector_paused():
        hide_unused_imports(*UNUSED_BY_GPTQ)
        _import_gptqmodel()


def _import_gptqmodel() -> None:
    """Import GPTQModel without its banner on the terminal."""
    with open(os.devnull, "w") as silence, redirect_stdout(silence):
        import_early(["gptqmodel"])

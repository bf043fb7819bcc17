"""Import the libraries of a model job quickly.

torch, transformers and GPTQModel create about a million objects that live until the job
ends. Python's garbage collector would traverse them again and again during the imports,
which takes two fifths of a model job's start. So imports run without the collector, and
``gc.freeze`` excludes their objects from later collections.
"""

import gc
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

# Every job that loads or makes a model imports this, and most of the rest through it.
MODEL_LIBRARY = "transformers.modeling_utils"
UNUSED_BY_GPTQ = ("bitsandbytes", "sklearn", "torchao")


def unused_packages(precision: str, folder: Path | None = None) -> list[str]:
    """List installed packages that loading a model this way never needs.

    transformers and PEFT would import them, which takes 1 to 4 seconds of a job.

    Args:
        precision: Of the model, as in the configuration.
        folder: Of the model, if it may be a GPTQ checkpoint.
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
    """Make optional packages look absent, so that PEFT does not import them.

    Call this before ``peft`` is imported.

    Args:
        *names: The packages; without any, those that only quantising needs. A job that
            quantises must name its packages.
    """
    for name in names or ("gptqmodel", "optimum", "torchao", "sklearn"):
        sys.modules.setdefault(name, None)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Run the body's imports without the garbage collector.

    Objects that the body creates are never collected, so it may contain only imports.
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
    """Import modules that a job needs later; the job itself reports a missing one."""
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
        # This imports torch and the engine.
        import_early(["prefdistill.models.loading"])
        from prefdistill.models.precision import is_gptq

        hide_unused_imports(*unused_packages(precision, folder))
        if folder is not None and is_gptq(folder):
            _import_gptqmodel()
        import_early([MODEL_LIBRARY])
        if precision == "nf4":
            import_early(["bitsandbytes"])


def import_scoring_libraries(precision: str, weights: Path, base: Path | None) -> None:
    """Import what scoring needs.

    Args:
        precision: Of the weights, or of the base under an adapter.
        weights: A whole model's weights in its folder, or an adapter's.
        base: The adapter's base: its manifest, or a file in its folder.
    """
    from prefdistill.models.manifests import base_folder

    folder = weights.parent if base is None else base_folder(base)
    import_model_libraries(precision, folder)


def import_quantiser() -> None:
    """Import GPTQModel, and hide optional packages that it would import."""
    with collector_paused():
        hide_unused_imports(*UNUSED_BY_GPTQ)
        _import_gptqmodel()


def _import_gptqmodel() -> None:
    """Import GPTQModel without its banner on the terminal."""
    with open(os.devnull, "w") as silence, redirect_stdout(silence):
        import_early(["gptqmodel"])

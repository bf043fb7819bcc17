"""What a finished judge needs besides its weights.

``judge.json`` says how a row is built and read, which rows have a known verdict and
which a second view, ``calibration.json`` how logits are scaled. Both lie beside the
weights, so that the folder can be moved, and be used by other programs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdistill.data.prompts import ELLIPSIS, MIN_ANSWER_TOKENS
from prefdistill.errors import UserError
from prefdistill.models.manifests import WEIGHTS
from prefdistill.scores.known_priors import KINDS
from prefdistill.scores.scaling import Scaling, read_scaling, scaling_of
from prefdistill.storage.tables import VIEWS, read_json, write_json
from prefdistill.storage.whole_files import reading

SETTINGS_FILE = "judge.json"
CALIBRATION_FILE = "calibration.json"
FORMAT = 1
CLASSES = ("first", "second", "tie")
SCALING_KEYS = ("method", "tied", "a", "b")


@dataclass(frozen=True)
class JudgeSettings:
    """How a judge is used.

    Attributes:
        text: The ``text`` settings: template, mark of turns, length, truncation.
        views: Orders that are shown and averaged, of AB and BA.
        scaling: Calibration of its logits.
        known_priors: Fixed probabilities of rows with an empty answer or equal ones,
            see ``known_priors.apply_priors``; None leaves them to the model.
        second_view: ``view``, ``calibration`` and ``threshold`` of
            ``budget.choose_rows``, where only rows that the first view is unsure of
            are shown in the second; None shows all rows in all views.
    """

    text: dict[str, Any]
    views: tuple[str, ...]
    scaling: Scaling
    known_priors: dict[str, list[float]] | None = None
    second_view: dict[str, Any] | None = None


def write_judge_settings(
    folder: Path,
    text: dict[str, Any],
    views: Sequence[str],
    known_priors: Mapping[str, Sequence[float]] | None = None,
    second_view: Mapping[str, Any] | None = None,
) -> None:
    """Write ``judge.json``: all that is needed to build and read rows the same way.

    Args:
        folder: The judge's.
        text: The ``text`` settings.
        views: Orders that are shown.
        known_priors: See ``JudgeSettings``.
        second_view: What ``budget.choose_rows`` returned.
    """
    if second_view is not None:
        fit = {key: second_view["calibration"][key] for key in SCALING_KEYS}
        kept = {key: second_view[key] for key in ("view", "threshold")}
        second_view = kept | {"calibration": fit}
    write_json(
        folder / SETTINGS_FILE,
        {
            "format": FORMAT,
            "classes": CLASSES,
            "views": views,
            "text": text,
            "ellipsis": ELLIPSIS,
            "min_answer_tokens": MIN_ANSWER_TOKENS,
            "known_priors": known_priors,
            "second_view": second_view,
        },
    )


def read_judge_settings(folder: Path) -> JudgeSettings:
    """Read how the judge of a folder is used.

    Raises:
        UserError: If a file is missing or damaged, or is of another format.
    """
    for name in (SETTINGS_FILE, CALIBRATION_FILE, "config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: has no {name}, so it is no finished judge; name a folder "
                "of results/release (`make release`), results/merged or results/gptq"
            )
    settings = read_json(folder / SETTINGS_FILE)
    found = (settings.get("format"), tuple(settings.get("classes", ())))
    if found != (FORMAT, CLASSES) or not set(settings["views"]) <= set(VIEWS):
        raise UserError(
            f"{folder / SETTINGS_FILE}: format {found[0]} is not known to this "
            "version; use the version of prefdistill that wrote it"
        )
    scaling = read_scaling(folder / CALIBRATION_FILE)
    priors, second = settings.get("known_priors"), settings.get("second_view")
    with reading(folder / SETTINGS_FILE, "a judge's settings"):
        if priors is not None and any(len(priors[kind]) != 3 for kind in KINDS):
            raise ValueError("known_priors are not three probabilities each")
        if second is not None:
            scaling_of(second["calibration"])
            float(second["threshold"])
            if settings["views"][:1] != [second["view"]] or len(settings["views"]) < 2:
                raise ValueError("second_view does not fit the views")
    return JudgeSettings(
        settings["text"], tuple(settings["views"]), scaling, priors, second
    )

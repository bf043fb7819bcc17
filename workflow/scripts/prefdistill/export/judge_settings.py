"""Read and write the settings of a finished judge, which lie beside its weights.

``judge.json`` says how a row is built and read, ``calibration.json`` how logits are
scaled. With both, the folder works on its own, wherever it is moved.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prefdistill.classes import CLASSES
from prefdistill.data.prompts import ELLIPSIS, MIN_ANSWER_TOKENS, Template
from prefdistill.errors import DamagedFile, UserError
from prefdistill.models.manifests import TOKENIZER_FILES, WEIGHTS
from prefdistill.scores.scaling import Scaling, read_scaling
from prefdistill.settings import TextSettings, read
from prefdistill.storage.digests import file_digest
from prefdistill.storage.logits import VIEWS
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.whole_files import check_text_size, reading

SETTINGS_FILE = "judge.json"
CALIBRATION_FILE = "calibration.json"
# Small files of a judge, of which judge.json holds the digests.
HASHED = (CALIBRATION_FILE, "config.json", *TOKENIZER_FILES)
FORMAT = 1
MAX_LENGTH = 131072  # as in the schema of the configuration
# Settings of judges from early versions. This version would ignore them, and compute
# other probabilities.
GONE = ("known_priors", "second_view")


@dataclass(frozen=True)
class JudgeSettings:
    """The settings that a judge is used with.

    Attributes:
        text: How a pair becomes tokens.
        views: Orders that are shown and averaged, of AB and BA.
        scaling: Calibration of its logits.
        weights: SHA-256 of its weights; None in a judge of an early version. Hashing
            them takes a while, so loading a judge does not compare it.
    """

    text: TextSettings
    views: tuple[str, ...]
    scaling: Scaling
    weights: str | None = None


def write_judge_settings(
    folder: Path, text: TextSettings, views: Sequence[str], weights: str
) -> None:
    """Write ``judge.json``, which says how to build and read rows.

    It holds the digests of the judge's other files, so that a copy with a file of
    another judge is refused.

    Args:
        folder: The judge's folder.
        text: How a pair becomes tokens.
        views: Orders that are shown, of AB and BA.
        weights: SHA-256 of the weights that the calibration was fitted for.
    """
    files = {n: file_digest(folder / n) for n in HASHED if (folder / n).is_file()}
    write_json(
        folder / SETTINGS_FILE,
        {
            "format": FORMAT,
            "classes": CLASSES,
            "views": views,
            "text": asdict(text),
            "ellipsis": ELLIPSIS,
            "min_answer_tokens": MIN_ANSWER_TOKENS,
            "sha256": {WEIGHTS: weights, **files},
        },
    )


def read_judge_settings(folder: Path) -> JudgeSettings:
    """Read the settings of the judge in a folder.

    Raises:
        UserError: If a file is missing or damaged, or has another version's format.
    """
    for name in (SETTINGS_FILE, CALIBRATION_FILE, "config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: has no {name}, so it is not a finished judge; name a "
                "folder of results/release (`make release`), results/merged or "
                "results/gptq"
            )
    path = folder / SETTINGS_FILE
    settings = read_json(path, ["format", "classes", "views", "text"])
    with reading(path, "the settings of a judge"):
        found = (settings["format"], tuple(settings["classes"]))
        views = tuple(settings["views"])
        known = found == (FORMAT, CLASSES) and len(set(views) & set(VIEWS)) > 0
        known = known and len(views) == len(set(views)) and set(views) <= set(VIEWS)
    if not known:
        raise UserError(
            f"{path}: format {found[0]!r:.40} is not known to this "
            "version; use the version of prefdistill that wrote it"
        )
    for name in GONE:
        if settings.get(name) is not None:
            raise UserError(
                f"{path}: {name} is not known to this version; use "
                "the version of prefdistill that wrote it"
            )
    with reading(path, "the settings of a judge"):
        digests = dict(settings.get("sha256", {}))
        weights = digests.pop(WEIGHTS, None)
        if not digests.keys() <= set(HASHED):
            raise ValueError(f"sha256 of {sorted(digests)[:3]}")
    for name, digest in digests.items():
        if (folder / name).is_file():
            with reading(folder / name, "a file of a judge"):
                check_text_size((folder / name).stat().st_size)
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise DamagedFile(
                folder / name, f"is not the file that {path} was made with"
            )
    scaling = read_scaling(folder / CALIBRATION_FILE)
    with reading(path, "the settings of a judge"):
        text = read(TextSettings, settings["text"])
        Template.from_settings(text)
        if not isinstance(text.turn, str):
            raise ValueError(f"turn {text.turn}")
        if not (0 <= text.prompt_share <= 1 and 0 <= text.head_share <= 1):
            raise ValueError(f"shares {text.prompt_share}, {text.head_share}")
        if not (type(text.max_length) is int and 0 < text.max_length <= MAX_LENGTH):
            raise ValueError(f"max_length {text.max_length}")
    return JudgeSettings(text, views, scaling, weights)

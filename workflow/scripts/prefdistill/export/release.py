"""Write a finished judge as a folder to publish: weights, settings, card and example.

The folder loads in plain transformers, and ``EXAMPLE`` shows how to use it without this
package.
"""

import errno
import os
from pathlib import Path

from prefdistill.errors import UserError
from prefdistill.export.judge_settings import CALIBRATION_FILE, SETTINGS_FILE
from prefdistill.models.manifests import (
    TOKENIZER_FILES,
    WEIGHTS,
    copy_file,
    copy_tokenizer,
)
from prefdistill.storage.whole_files import atomic_path, write_text

CARD_FILE, EXAMPLE_FILE = "README.md", "example.py"
QUANTISED_FILE = "quantize_config.json"
# The files of every release. `judge.json` is written last, so a folder that has it is
# complete.
RELEASE_FILES = (
    WEIGHTS,
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    CALIBRATION_FILE,
    EXAMPLE_FILE,
    CARD_FILE,
    SETTINGS_FILE,
)
OPTIONAL_FILES = (
    QUANTISED_FILE,
    *[name for name in TOKENIZER_FILES if name not in RELEASE_FILES],
)
# The system's errors where hard links are impossible.
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)

EXAMPLE = r'''"""python example.py PROMPT ANSWER_A ANSWER_B: which would a person prefer?"""
import json, pathlib, sys, torch
from transformers import AutoModelForSequenceClassification as Classifier, AutoTokenizer
here, (prompt, a, b) = pathlib.Path(__file__).parent, sys.argv[1:]
judge, scale = (json.loads((here / f"{f}.json").read_text()) for f in ("judge", "calibration"))
tokenizer = AutoTokenizer.from_pretrained(here)
model = Classifier.from_pretrained(here, device_map="auto", dtype="auto" if torch.cuda.is_available() else "float32")
def probabilities(first, second):  # of (first answer, second answer, tie), as shown
    row = judge["text"]["template"].format(prompt=f"\0{prompt}\0", response_a=f"\0{first}\0", response_b=f"\0{second}\0")
    ids = [i for part in row.split("\0") for i in tokenizer(part, add_special_tokens=False).input_ids]
    bos = [] if tokenizer.bos_token_id in (None, ids[0]) else [tokenizer.bos_token_id]
    logits = model(torch.tensor([bos + ids], device=model.device)).logits[0].detach().float().cpu()
    return (logits * torch.tensor(scale["a"]) + torch.tensor(scale["b"])).softmax(0)
views = [probabilities(a, b) if order == "AB" else probabilities(b, a)[[1, 0, 2]] for order in judge["views"]]
print(json.dumps(dict(zip(("a", "b", "tie"), torch.stack(views).mean(0).tolist()))))
'''  # noqa: E501


def link_file(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to a file, or a copy if links are impossible."""
    # Linking is safe, as every writer here replaces files and changes none in place.
    try:
        with atomic_path(target) as temporary:
            os.link(source, temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_file(source, target)


def write_release(source: Path, target: Path, card: str) -> None:
    """Fill a release folder with the files of a finished judge.

    Args:
        source: Folder with the weights, ``calibration.json`` and ``judge.json``.
        target: The release folder.
        card: Text of its README.

    Raises:
        UserError: If the source lacks a file.
    """
    needed = set(RELEASE_FILES) - {CARD_FILE, EXAMPLE_FILE}
    missing = sorted(name for name in needed if not (source / name).is_file())
    if missing:
        raise UserError(f"{source}: has no {missing[0]}; run `make release`")
    link_file(source / WEIGHTS, target / WEIGHTS)
    copy_tokenizer(source, target)
    for name in ("config.json", QUANTISED_FILE, CALIBRATION_FILE):
        if (source / name).is_file():
            copy_file(source / name, target / name)
    write_text(target / EXAMPLE_FILE, EXAMPLE)
    write_text(target / CARD_FILE, card)
    copy_file(source / SETTINGS_FILE, target / SETTINGS_FILE)


def release_files(folder: Path) -> list[Path]:
    """List the files of a release: ``RELEASE_FILES`` in order, then optional files.

    Raises:
        UserError: If one is missing.
    """
    missing = [name for name in RELEASE_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: has no {missing[0]}, so it is not a whole release; run "
            "`make release` with the run's CONFIG (delete its judge.json if need be)"
        )
    found = [folder / name for name in OPTIONAL_FILES if (folder / name).is_file()]
    return [*(folder / name for name in RELEASE_FILES), *found]

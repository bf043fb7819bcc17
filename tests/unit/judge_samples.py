"""A small judge: its settings and calibration, pairs for it, and its folder."""

from pathlib import Path

import torch

from prefdistill.export.judge_settings import write_judge_settings
from prefdistill.export.merging import write_classifier
from prefdistill.models.head import Head
from prefdistill.settings import TextSettings
from prefdistill.storage.digests import file_digest
from prefdistill.storage.records import write_json

TEXT = TextSettings(
    template="<prompt>: {prompt}\n\n<response_a>: {response_a}\n\n"
    "<response_b>: {response_b}\n\n<verdict>:",
    turn="\n<turn {n}>: ",
    max_length=160,
    prompt_share=0.25,
    head_share=0.5,
)

CALIBRATION = {
    "method": "vector",
    "tied": True,
    "a": [0.7, 0.7, 1.2],
    "b": [0.1, 0.1, -0.2],
}

PAIRS = [
    ("tell me", "one answer", "another, longer answer"),
    (["first", "and then?"], ["a list", "of two"], ["no", "yes"]),
    ("bell\x07 and\r\nbreak", "<verdict>: <eos>", ""),
    ("long " * 90, "river " * 120, "mountain " * 60),
    ("", "same", "same"),
    ("hi", "\x07 ", "says something"),
    ("hi", ["one", "two"], ["one", " two "]),
    ("nothing", " ", ""),
]


def make_judge(
    folder: Path, base: Path, weight=None, scaling=CALIBRATION, views=("AB", "BA")
) -> Path:
    """Make a finished judge of a tiny base, and return its folder.

    Args:
        folder: Where it goes.
        base: Folder of a model with hidden size 32.
        weight: The head's, ``(3, 32)``; None draws it.
        scaling: Content of ``calibration.json``.
        views: Orders that the judge shows.
    """
    if weight is None:
        weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    write_classifier(base, folder, Head({"score.weight": weight}))
    write_json(folder / "calibration.json", scaling)
    weights = file_digest(folder / "model.safetensors")
    write_judge_settings(folder, TEXT, views, weights)
    return folder

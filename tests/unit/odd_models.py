"""Pairs to score, and copies of models with other settings."""

import json
import shutil

import pyarrow as pa

from prefdistill.data.prompts import FIELDS, encode_pairs
from prefdistill.models.loading import (
    load_classifier,
    load_tokenizer,
)
from prefdistill.models.scoring import score_pairs
from prefdistill.settings import TextSettings, read

TEXT = {
    "template": "<prompt>: {prompt} <response_a>: {response_a} "
    "<response_b>: {response_b} <verdict>:",
    "turn": " <turn {n}>: ",
    "max_length": 64,
    "prompt_share": 0.25,
    "head_share": 0.5,
}
ROWS = [["what is it", "a river", "a mountain in a list"], ["hi", "", "yes"]]


def pairs():
    columns = zip(FIELDS, zip(*ROWS, strict=True), strict=True)
    table = {name: [[text] for text in texts] for name, texts in columns}
    return pa.table({"id": ["train:1", "train:2"], **table})


def copy_model(folder, target, **settings):
    """A model with other settings; None takes one away."""
    shutil.copytree(folder, target)
    for path in (target / "config.json", target / "generation_config.json"):
        if path.exists():
            content = json.loads(path.read_text()) | settings
            kept = {key: value for key, value in content.items() if value is not None}
            path.write_text(json.dumps(kept))
    return target


def logits_of(folder):
    model = load_classifier(folder, "fp32", head_seed=1)
    return score_pairs(
        model, encode_pairs(pairs(), load_tokenizer(folder), read(TextSettings, TEXT))
    )

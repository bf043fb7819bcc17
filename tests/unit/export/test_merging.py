"""Merged models, scored by plain transformers."""

import json

import numpy as np
import pytest
import torch
import transformers
from odd_models import ROWS, TEXT, logits_of, pairs

from prefdistill.data.prompts import encode_pairs
from prefdistill.export.merging import classifier_config, write_classifier
from prefdistill.models.loading import (
    load_tokenizer,
)
from prefdistill.settings import TextSettings, read
from prefdistill.storage.logits import VIEWS


def test_a_merged_model_without_a_padding_token_is_right_row_by_row(bare, tmp_path):
    """Plain transformers refuses it a padded batch, rather than score a wrong token."""
    _, folder = bare
    head = torch.ones(3, 32)
    assert classifier_config(json.loads((folder / "config.json").read_text()), "x")[
        "pad_token_id"
    ] in (None, 0)
    write_classifier(folder, tmp_path / "merged", head, dtype="bfloat16")
    ours = logits_of(tmp_path / "merged")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    )
    encoded = encode_pairs(pairs(), load_tokenizer(folder), read(TextSettings, TEXT))
    for row in range(len(ROWS)):
        for place, view in enumerate(VIEWS):
            tokens = torch.from_numpy(encoded.tokens(row, view).astype(np.int64))[None]
            with torch.no_grad():
                expected = plain(tokens).logits[0].numpy()
            assert ours[row, place] == pytest.approx(expected, abs=1e-3)

"""Try toy models on a few pairs."""

import csv
from dataclasses import replace

import check_models
import numpy as np
import pytest
from script_samples import MODEL
from two_processes import TEXT

from prefdistill.settings import ModelSettings, TextSettings, read


def test_check_models(world, tmp_path):
    settings = read(ModelSettings, MODEL)
    pair = {"prompt": "Which?", "response_a": "yes", "response_b": "no"}
    check_models.main(
        models=["llama", "student"],
        bases=[world["llama"], world["gemma2"]],
        settings={"llama": settings, "student": replace(settings, precision="fp32")},
        text=read(TextSettings, TEXT),
        pairs=[pair, pair],
        table=tmp_path / "models.csv",
    )
    rows = list(csv.DictReader((tmp_path / "models.csv").read_text().splitlines()))
    assert [row["architecture"] for row in rows] == [
        "LlamaForSequenceClassification",
        "Gemma2ForSequenceClassification",
    ]
    assert rows[0]["head_shape"] == "3x32"
    probs = np.array(rows[1]["pair2_BA"].split(), dtype=float)
    assert probs.sum() == pytest.approx(1, abs=1e-3)

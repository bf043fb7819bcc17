"""Scores of fold files, and the record of what they were made with."""

import numpy as np
import pyarrow as pa
import pytest
from script_samples import table_of
from two_processes import LORA, TEXT

from prefdistill.data.prompts import encode_pairs, text_digest
from prefdistill.errors import UserError
from prefdistill.models.loading import load_classifier, load_tokenizer
from prefdistill.models.lora import add_adapter, save_adapter
from prefdistill.models.score_files import score_files
from prefdistill.models.scoring import score_pairs
from prefdistill.settings import LoraSettings, ScoringSettings, TextSettings, read
from prefdistill.storage.checkpoints import Checkpoints
from prefdistill.storage.digests import file_digest
from prefdistill.storage.tables import FOLD_SCHEMA, write_table

READ_TEXT = read(TextSettings, TEXT)
TABLES = {
    "old": table_of(["train"] * 5 + ["dev", "select", "test"]),
    "new": table_of(["unlabelled"] * 2, "new"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, table in TABLES.items():
        write_table(folder / f"{name}.parquet", table, FOLD_SCHEMA)
    return [folder / f"{name}.parquet" for name in TABLES]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_model_folder):
    """An adapter that changes the scores, in its folder; and the model it is on."""
    folder = tmp_path_factory.mktemp("adapter")
    model = load_classifier(tiny_model_folder("llama"), "fp32", head_seed=3)
    model = add_adapter(model, read(LoraSettings, LORA), seed=1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.1)
    save_adapter(model, folder)
    return folder / "adapter_model.safetensors", model.eval()


@pytest.fixture
def score(files, adapter, tiny_model_folder, tmp_path):
    """Score files with the adapter on its base."""

    def run(pairs=files, scratch=tmp_path / "scratch", **settings):
        return score_files(
            pairs,
            adapter[0],
            tiny_model_folder("llama") / "manifest.json",
            ScoringSettings(**{"precision": "fp32", "token_budget": 300} | settings),
            READ_TEXT,
            Checkpoints(scratch, "code"),
        )

    return run


def expected_scores(model, folder):
    table = pa.concat_tables(TABLES.values())
    encoded = encode_pairs(table, load_tokenizer(folder), READ_TEXT)
    return score_pairs(model, encoded)


@pytest.mark.parametrize("weights", ["adapter", "merged"])
def test_rows_of_all_files_score_in_their_order(
    score, adapter, tiny_model_folder, weights
):
    scores = score(weights=weights)
    expected = expected_scores(adapter[1], tiny_model_folder("llama"))
    np.testing.assert_allclose(scores.logits, expected, atol=1e-5)
    with adapter[1].disable_adapter():
        bare = expected_scores(adapter[1], tiny_model_folder("llama"))
    assert np.abs(bare - expected).max() > 1e-3
    table = pa.concat_tables(TABLES.values())
    assert list(scores.ids) == table.column("id").to_pylist()
    assert list(scores.split) == table.column("split").to_pylist()


def test_only_the_wanted_splits_train_rows_and_views_are_scored(score):
    whole = score()
    some = score(splits=["train", "test"], rows=[1, 3], views=["BA"])
    assert some.ids.tolist() == ["train:1", "train:2", "train:7"]
    assert some.views == ["BA"]
    expected = whole.select(whole.rows_of(some.ids)).logits[:, 1:]
    np.testing.assert_allclose(some.logits, expected, atol=1e-5)


def test_the_record_names_adapter_base_text_and_how(score, adapter, tiny_model_folder):
    meta = score(weights="merged").meta
    named = {
        "adapter": file_digest(adapter[0]),
        "base": file_digest(tiny_model_folder("llama") / "manifest.json"),
        "text": text_digest(READ_TEXT),
        "max_length": READ_TEXT.max_length,
        "weights": "merged",
        "precision": "fp32",
        "n_truncated": 0,
        "n_neutralised": 0,
    }
    assert {name: meta[name] for name in named} == named


def test_a_row_id_in_two_files_is_refused(score, files):
    with pytest.raises(UserError, match=r"old\.parquet.*: a row id occurs twice"):
        score([files[0], files[0]])
    # A row that is not scored does not count.
    assert len(score([files[0], *files], splits=["unlabelled"]).ids) == 2

import pytest
import torch
from odd_models import copy_model, logits_of
from safetensors.torch import load_file, save_file

from prefdistill.errors import UserError
from prefdistill.models.loading import load_classifier, load_language_model


def test_missing_weights_are_an_error(tiny_model_folder, tmp_path):
    folder = tiny_model_folder("llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"1 weights are missing, such as model\.lay"):
        load_classifier(tmp_path, "fp32")


def test_nf4_quantises_all_but_the_head(tiny_model_folder):
    model = load_classifier(tiny_model_folder("llama"), "nf4")
    kinds = {n: type(m).__name__ for n, m in model.named_modules() if "proj" in n}
    assert set(kinds.values()) == {"Linear4bit"}
    assert model.score.weight.dtype == torch.float32


def test_an_unknown_kind_of_model_is_refused_in_one_line(tiny_model_folder, tmp_path):
    folder = copy_model(tiny_model_folder("llama"), tmp_path / "m", model_type="new")
    for load in (load_classifier, load_language_model):
        with pytest.raises(UserError) as caught:
            load(folder, "fp32")
        assert str(caught.value).startswith(
            f"{folder / 'config.json'}: not settings of a model that is known here ("
        )
        assert len(str(caught.value).splitlines()) == 1


def test_a_model_without_padding_and_end_tokens_scores_alike(bare):
    whole, bare = bare
    assert logits_of(bare) == pytest.approx(logits_of(whole), abs=1e-6)
    assert load_classifier(bare, "fp32").config.pad_token_id in (None, 0)

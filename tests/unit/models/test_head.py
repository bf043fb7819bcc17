"""The score head: seeded for a language model, kept from a classifier."""

import torch
from model_samples import scores

from prefdistill.models.head import seeded_head
from prefdistill.models.loading import load_classifier


def test_the_head_is_seeded_and_the_rest_frozen(tiny_model_folder):
    folder = tiny_model_folder("llama")
    model = load_classifier(folder, "fp32", head_seed=5)
    same, other = (seeded_head(32, seed).tensors["score.weight"] for seed in (5, 6))
    assert torch.equal(model.score.weight, same)
    assert not torch.equal(model.score.weight, other)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.config.id2label == {0: "first", 1: "second", 2: "tie"}


def test_a_saved_head_is_kept(tiny_model_folder, tmp_path):
    model = load_classifier(tiny_model_folder("qwen2"), "fp32", head_seed=5)
    model.save_pretrained(tmp_path)
    again = load_classifier(tmp_path, "fp32", head_seed=6)
    assert torch.equal(scores(model), scores(again))

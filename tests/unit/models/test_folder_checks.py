"""Model folders whose parts do not fit each other or this workflow."""

import pytest
import transformers
from odd_models import copy_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from prefdistill.errors import UserError
from prefdistill.models.loading import (
    load_classifier,
    load_tokenizer,
)

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1}
# Of each: its settings, the class that saves it, and what is said of it.
ODD = {
    "no classifier of its kind": (
        transformers.MambaConfig(**SMALL),
        transformers.MambaForCausalLM,
        "transformers has no SequenceClassification class for model_type mamba",
    ),
    "encoder": (
        transformers.BertConfig(**SMALL, num_attention_heads=2, intermediate_size=32),
        transformers.BertForSequenceClassification,
        "BertForSequenceClassification is not built of decoder layers",
    ),
    "layers elsewhere": (
        transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2),
        transformers.GPT2LMHeadModel,
        "GPT2ForSequenceClassification is not built of decoder layers",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_another_architecture_is_refused_in_one_line(kind, tmp_path):
    config, model_class, said = ODD[kind]
    model_class(config).save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        load_classifier(tmp_path, "fp32")
    text = str(caught.value)
    assert text == (
        f"{tmp_path / 'config.json'}: {said}; name a base of another architecture; "
        "docs/models.md lists some"
    )


def test_a_vocabulary_smaller_than_an_id_is_refused(
    tiny_model_folder, tiny_tokenizer, tmp_path
):
    folder = copy_model(tiny_model_folder("llama"), tmp_path / "m")
    tiny_tokenizer.save_pretrained(folder)
    load_tokenizer(folder)
    other = AutoTokenizer.from_pretrained(folder)
    other.add_tokens([f"<new {number}>" for number in range(401 - len(other))])
    other.save_pretrained(folder)
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert str(caught.value) == (
        f"{folder / 'tokenizer.json'}: has token id 400, but config.json a vocab_size "
        "of 400; take the tokenizer that the model was made with"
    )


def test_fewer_embeddings_than_the_settings_say_are_refused(
    tiny_model_folder, tmp_path
):
    folder = copy_model(tiny_model_folder("llama"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    tensors[name] = tensors[name][:300].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"shapes are not those of its config\.json"):
        load_classifier(folder, "fp32")

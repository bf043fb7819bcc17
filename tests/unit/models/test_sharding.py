"""Base models that are loaded layer by layer, whole or as one process's shards.

The tests of ``running.processes`` train and score with the shards of two processes.
"""

import json
import shutil

import pytest
import torch
from engine_samples import ROWS
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import AutoModelForSequenceClassification as Classifier

from prefdistill.engine.packing import collate
from prefdistill.errors import UserError
from prefdistill.models.forward import classify, is_sharded
from prefdistill.models.loading import load_classifier
from prefdistill.models.sharding import empty_model, load_sharded, materialise

CPU, DTYPE = torch.device("cpu"), torch.float32


@pytest.fixture
def one_process():
    """A group of this process alone."""
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def config_of(folder):
    return AutoConfig.from_pretrained(folder, num_labels=3)


def logits_of(model):
    with torch.no_grad():
        return classify(model.eval(), collate(ROWS))


def test_an_empty_model_has_shapes_and_no_values(tiny_model_folder):
    folder = tiny_model_folder("gemma2")
    model = empty_model(Classifier, config_of(folder), torch.bfloat16)
    whole = load_classifier(folder, "fp32")
    shapes = {name: weight.shape for name, weight in whole.named_parameters()}
    assert {name: weight.shape for name, weight in model.named_parameters()} == shapes
    assert all(w.is_meta and w.dtype == torch.bfloat16 for w in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("architecture", ["llama_with_biases", "gemma2"])
def test_a_materialised_model_is_the_loaded_one(tiny_model_folder, architecture, nf4):
    folder = tiny_model_folder(architecture)
    expected = load_classifier(folder, "nf4" if nf4 else "fp32", head_seed=3)
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = expected.score.weight.detach()
    asked = []

    def tensor_of(name, shape):
        asked.append(name)
        assert tensors[name].shape == shape
        return tensors[name]

    model = empty_model(Classifier, config_of(folder), DTYPE)
    materialise(model, tensor_of, DTYPE, CPU, nf4=nf4, sharded=False)
    assert len(asked) == len(set(asked))
    assert set(asked) == tensors.keys() - {"lm_head.weight"}
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.is_loaded_in_4bit is nf4
    assert not is_sharded(model)
    torch.testing.assert_close(logits_of(model), logits_of(expected))


@pytest.mark.parametrize("nf4", [False, True])
def test_shards_compute_as_the_whole_model(tiny_model_folder, one_process, nf4):
    folder = tiny_model_folder("llama")
    model, missing = load_sharded(
        Classifier, folder, config_of(folder), DTYPE, CPU, nf4=nf4
    )
    assert missing == {"score.weight"}
    assert not model.score.weight.any()
    assert is_sharded(model)
    for name, weight in model.model.named_parameters():
        assert isinstance(weight, DTensor), name
    expected = load_classifier(folder, "nf4" if nf4 else "fp32", head_seed=3)
    model.score.load_state_dict(expected.score.state_dict())
    torch.testing.assert_close(
        logits_of(model), logits_of(expected), atol=1e-5, rtol=1e-5
    )


def test_a_head_of_words_that_the_folder_lacks_is_the_embedding(
    tiny_model_folder, one_process, tmp_path
):
    folder = tmp_path / "tied"
    shutil.copytree(tiny_model_folder("llama"), folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight", None)
    lost = "model.layers.1.mlp.down_proj.weight"
    del weights[lost]
    save_file(weights, folder / "model.safetensors")
    model, missing = load_sharded(
        AutoModelForCausalLM, folder, config_of(folder), DTYPE, CPU, nf4=False
    )
    assert missing == {lost}
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])
    assert not model.get_parameter(lost).full_tensor().any()


def test_quantised_weights_are_refused_in_one_line(tiny_model_folder, tmp_path):
    folder = tmp_path / "gptq"
    shutil.copytree(tiny_model_folder("llama"), folder)
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        load_sharded(Classifier, folder, config_of(folder), DTYPE, CPU, nf4=False)
    assert str(caught.value).startswith(f"{folder}: quantised weights cannot be spread")
    assert len(str(caught.value).splitlines()) == 1

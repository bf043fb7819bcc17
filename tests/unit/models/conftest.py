import json

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def model_folder(tmp_path):
    """A folder that has all files of a model, of no use but to be listed."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    save_file({"a": torch.zeros(2, 3)}, folder / "model.safetensors")
    return folder

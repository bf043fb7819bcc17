"""A folder with wrong and right files, and what configurations are refused with."""

import json

import pytest
import yaml
from configurations import SCHEMA, overlaid, shipped

from prefdistill.errors import UserError
from prefdistill.pipeline.config_schema import validate_config

LOCAL = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 3,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 100,
}


def save_model(folder, weights=("model.safetensors",), **changes):
    """Write the files that decide whether a local model's folder is accepted."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LOCAL | changes))
    for name in ("tokenizer.json", "tokenizer_config.json", *weights):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Data files and model folders, most of them wrong in one way."""
    root = tmp_path_factory.mktemp("world")
    (root / "folder").mkdir()
    (root / "rows.xlsx").touch()
    (root / "header.csv").write_text("id,prompt\n")
    (root / "blank.jsonl").write_text("\n  \n")
    (root / "ten.csv").write_text("id,prompt\n" + "1,p\n" * 10)
    save_model(root / "model")
    (save_model(root / "untokenized") / "tokenizer.json").unlink()
    (save_model(root / "damaged") / "config.json").write_text("{")
    save_model(root / "weightless", ())
    save_model(root / "pickled", ("pytorch_model.bin",))
    for name, shard in (
        ("shardless", "a.safetensors"),
        ("climbing", "../model.safetensors"),
    ):
        index = save_model(root / name, ()) / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"w": shard}}))
    (root / "model.safetensors").touch()
    save_model(root / "encoder", architectures=["BertForMaskedLM"])
    save_model(root / "quantised", quantization_config={"quant_method": "gptq"})
    save_model(root / "results/merged")
    return root


@pytest.fixture
def refusal(world, monkeypatch):
    """Return a function from an overlay on the demo, as YAML, to the error's text."""
    monkeypatch.chdir(world)

    def refused(overlay):
        config = overlaid(shipped("demo"), yaml.safe_load(overlay))
        with pytest.raises(UserError) as caught:
            validate_config(config, SCHEMA)
        return str(caught.value).replace(str(world), "WORLD")

    return refused

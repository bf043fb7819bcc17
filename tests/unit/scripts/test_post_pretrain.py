"""Post-pretrain adapters with every objective, on toy files."""

import numpy as np
from safetensors.numpy import load_file
from script_samples import run_post_pretrain


def lora_part(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return {name: value for name, value in tensors.items() if "lora_" in name}


def head(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return tensors["base_model.model.score.weight"]


def test_post_pretraining(world):
    seeded = run_post_pretrain(world, "none", "gemma2", objective="none")
    empty = run_post_pretrain(world, "empty", "gemma2", table="empty.parquet")
    trained = run_post_pretrain(world, "trained", "gemma2")
    fresh_head = run_post_pretrain(world, "fresh", "gemma2", keep_head=False)
    language = run_post_pretrain(world, "lm", "gemma2", objective="causal_lm")
    assert (seeded / "train.jsonl").read_text() == ""
    assert len((trained / "train.jsonl").read_text().splitlines()) == 2
    whole = (seeded / "adapter_model.safetensors").read_bytes()
    assert (empty / "adapter_model.safetensors").read_bytes() == whole
    for folder in (trained, fresh_head, language):
        moved = [
            not np.array_equal(value, lora_part(seeded)[name])
            for name, value in lora_part(folder).items()
        ]
        assert any(moved)
    assert not np.array_equal(head(trained), head(seeded))
    assert np.array_equal(head(fresh_head), head(seeded))
    assert np.array_equal(head(language), head(seeded))
    assert (language / "adapter_config.json").read_text() == (
        seeded / "adapter_config.json"
    ).read_text()

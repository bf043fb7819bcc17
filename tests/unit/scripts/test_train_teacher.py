"""Train a teacher on toy files."""

import json

import numpy as np
from safetensors.numpy import load_file


def test_a_teacher_goes_on_from_its_post_pretrained_adapter(world, teacher):
    before = load_file(world["folder"] / "llama_init/adapter_model.safetensors")
    after = load_file(teacher / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert not all(np.array_equal(after[name], before[name]) for name in before)
    lines = (teacher / "train.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)

"""One real 4-bit and one real 8-bit quantisation of a tiny Gemma-2, shared by all."""

import numpy as np
import pytest
import torch
from gptq_samples import ROWS
from safetensors import safe_open

from prefdistill.errors import UserError
from prefdistill.export.gptq import check_group_size, sample_pairs
from prefdistill.export.gptq_check import (
    dequantise,
    load_plain,
    row_logits,
)
from prefdistill.export.merging import write_classifier
from prefdistill.models.adapter_files import read_adapter, write_adapter
from prefdistill.models.head import Head
from prefdistill.models.manifests import tensor_header
from prefdistill.storage.records import read_json


def test_8_bits_change_logits_little(quantised, merged):
    report = read_json(quantised / "8bit/quantisation.json")
    gap = report["gap_to_16_bit"]
    assert gap["n_rows"] == 20
    assert gap["relative"] < 0.03
    assert gap["mean_kl"] < 1e-3
    assert gap["agreement"] >= 0.9
    assert report["n_calibration_rows"] == 48
    assert 0 < report["kernel_error"] < 1e-3
    expected = row_logits(load_plain(merged), ROWS)
    reloaded = row_logits(load_plain(quantised / "8bit"), ROWS)
    np.testing.assert_allclose(reloaded, expected, atol=0.1 * np.abs(expected).max())


def test_4_bits_cost_more_than_8(quantised):
    eight = read_json(quantised / "8bit/quantisation.json")
    four = read_json(quantised / "base4bit/quantisation.json")
    gaps = [report["gap_to_16_bit"]["relative"] for report in (eight, four)]
    assert gaps[0] < gaps[1] < 0.5
    assert four["n_bytes"] < eight["n_bytes"] < eight["n_bytes_16_bit"]


@pytest.mark.parametrize("name", ["8bit", "base4bit"])
def test_the_folder_is_whole_and_holds_no_calibration_text(quantised, name):
    names = {path.name for path in (quantised / name).iterdir()}
    assert names >= {"model.safetensors", "config.json", "quantize_config.json"}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "quantisation.json"}
    assert sum(file.endswith(".safetensors") for file in names) == 1
    config = (quantised / name / "config.json").read_text()
    assert "river" not in config
    assert "/tmp" not in config
    assert read_json(quantised / name / "config.json")["architectures"] == [
        "Gemma2ForSequenceClassification"
    ]
    assert not list((quantised / "scratch").iterdir())


def test_the_score_head_is_kept_as_it_was(quantised, merged):
    scores = []
    for folder in (merged, quantised / "8bit"):
        with safe_open(folder / "model.safetensors", framework="pt") as archive:
            scores.append(archive.get_tensor("score.weight"))
    assert scores[1].dtype == torch.float32
    assert torch.equal(*scores)


def test_dequantised_weights_are_near_the_original(quantised, merged):
    name = "model.layers.1.mlp.down_proj"
    with safe_open(merged / "model.safetensors", framework="pt") as archive:
        original = archive.get_tensor(f"{name}.weight").float()
    with safe_open(quantised / "8bit/model.safetensors", framework="pt") as archive:
        parts = ("qweight", "qzeros", "scales", "g_idx")
        packed = {part: archive.get_tensor(f"{name}.{part}") for part in parts}
    weight = dequantise(packed, 8)
    assert (weight - original).norm() < 0.02 * original.norm()


def test_an_adapter_on_the_gptq_base_agrees_with_the_16_bit_base(
    quantised, base, tmp_path
):
    """Tolerance: half of what the adapter itself changes, and 0.35 of the spread."""
    from peft import LoraConfig, PeftModel, get_peft_model

    plain = tmp_path / "plain"
    head = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)) / 8
    write_classifier(base, plain, Head({"score.weight": head}))
    model = get_peft_model(
        load_plain(plain),
        LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "up_proj"]),
    )
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.2, generator=generator)
    model.save_pretrained(tmp_path / "adapter")
    write_adapter(read_adapter(tmp_path / "adapter"), tmp_path / "again")

    def logits(folder, adapter=True):
        loaded = load_plain(folder)
        if adapter:
            loaded = PeftModel.from_pretrained(loaded, tmp_path / "again").eval()
        return row_logits(loaded, ROWS)

    exact, on_gptq = logits(plain), logits(quantised / "base4bit")
    error = np.abs(on_gptq - exact).mean()
    effect = np.abs(exact - logits(plain, adapter=False)).mean()
    assert error < 0.5 * effect
    assert error < 0.35 * exact.std()


def test_a_group_that_does_not_divide_names_the_layer(merged):
    with pytest.raises(UserError, match=r"256 does not divide the 128 in-features of"):
        check_group_size(merged, 256)
    check_group_size(merged, 64)


def test_layers_that_cannot_be_packed_are_named(tiny_model_folder, tmp_path):
    write_classifier(
        tiny_model_folder("llama"), tmp_path, Head({"score.weight": torch.zeros(3, 32)})
    )
    assert tensor_header(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"cannot be packed|does not divide"):
        check_group_size(tmp_path, 16)


def test_the_sample_is_seeded_and_of_one_split(fold):
    import pyarrow.parquet as pq

    table = pq.read_table(fold)
    one, same, other = (sample_pairs(table, "train", 8, seed) for seed in (0, 0, 1))
    assert one.equals(same)
    assert not one.equals(other)
    assert set(one["split"].to_pylist()) == {"train"}
    assert sample_pairs(table, "select", 99, 0).num_rows == 10

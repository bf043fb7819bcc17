"""One real 4-bit and one real 8-bit quantisation of a tiny Gemma-2, shared by all."""

import numpy as np
import pyarrow as pa
import pytest
import quantise_base
import quantise_model
import torch
from safetensors import safe_open

from prefdistill.errors import UserError
from prefdistill.export.gptq import check_group_size, sample_pairs
from prefdistill.export.gptq_check import (
    compare,
    dequantise,
    load_plain,
    logit_gap,
    row_logits,
)
from prefdistill.export.merging import write_classifier
from prefdistill.models.adapter_files import read_adapter, write_adapter
from prefdistill.models.manifests import tensor_header, write_manifest
from prefdistill.settings import GptqSettings, TextSettings
from prefdistill.storage.records import read_json
from prefdistill.storage.tables import FOLD_SCHEMA, write_table

SETTINGS = GptqSettings(
    group_size=32, n_calibration_pairs=24, desc_act=False, damp_percent=0.05, seed=0
)
TEXT = TextSettings(
    template="<prompt>: {prompt}\n<response_a>: {response_a}\n"
    "<response_b>: {response_b}\n<verdict>:",
    turn="\n<turn {n}>: ",
    max_length=96,
    prompt_share=0.25,
    head_share=0.5,
)
ROWS = [
    np.random.default_rng(n).integers(3, 400, n).astype(np.int32)
    for n in (9, 20, 33, 47)
]


@pytest.fixture(scope="session")
def base(tmp_path_factory, tiny_tokenizer):
    """A random Gemma-2 whose layers are wide enough to be packed."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    folder = tmp_path_factory.mktemp("base")
    config = Gemma2Config(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    write_manifest(folder)
    return folder


@pytest.fixture(scope="session")
def merged(base, tmp_path_factory):
    """A classifier like the merged judge."""
    folder = tmp_path_factory.mktemp("merged")
    head = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) / 8
    write_classifier(base, folder, head)
    return folder


@pytest.fixture(scope="session")
def fold(tmp_path_factory):
    """A fold file of 40 training and 10 select pairs."""
    rng = np.random.default_rng(0)
    words = ["river", "mountain", "list", "poem", "maybe", "please", "json"]

    def turns():
        return [" ".join(rng.choice(words, rng.integers(3, 12)))]

    n_rows = 50
    columns = {
        "id": [f"train:{row}" for row in range(n_rows)],
        "source": ["train"] * n_rows,
        "split": ["train"] * 40 + ["select"] * 10,
        "group": [str(row) for row in range(n_rows)],
        **{
            field: [turns() for _ in range(n_rows)]
            for field in ("prompt", "response_a", "response_b")
        },
        "winner_model_a": [1] * n_rows,
        "winner_model_b": [0] * n_rows,
        "winner_tie": [0] * n_rows,
    }
    path = tmp_path_factory.mktemp("folds") / "fold0.parquet"
    write_table(path, pa.table(columns), FOLD_SCHEMA)
    return path


@pytest.fixture(scope="session")
def quantised(merged, base, fold, tmp_path_factory):
    """The merged model in 8 bits and the bare base in 4, through the rules' mains."""
    folder = tmp_path_factory.mktemp("gptq")
    quantise_model.main(
        merged=merged / "model.safetensors",
        fold=fold,
        bits=8,
        settings=SETTINGS,
        text=TEXT,
        token_budget=1024,
        model=folder / "8bit/model.safetensors",
    )
    quantise_base.main(
        base=base / "manifest.json",
        fold=fold,
        bits=4,
        settings=SETTINGS,
        text=TEXT,
        token_budget=1024,
        scratch=folder / "scratch",
        model=folder / "base4bit/model.safetensors",
    )
    return folder


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


def test_dequantising_undoes_a_known_packing():
    values = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 15]])  # one out, eight in, 4 bits
    word = sum(int(value) << (4 * place) for place, value in enumerate(values[0]))
    packed = {
        "qweight": torch.tensor([[word]]).to(torch.int32).expand(1, 8),
        "qzeros": torch.full((2, 1), 0x77777777, dtype=torch.int32),  # 8, less one
        "scales": torch.tensor([[0.5], [2.0]]).expand(2, 8),
        "g_idx": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.int32),
    }
    expected = (values - 8) * torch.tensor([0.5] * 4 + [2.0] * 4)
    assert dequantise(packed, 4).shape == (8, 8)
    torch.testing.assert_close(dequantise(packed, 4)[:1], expected)


def test_misread_zero_points_are_noticed(quantised, merged, monkeypatch):
    """The known fault of a GPTQ checkpoint loaded and saved again."""
    damaged = load_plain(quantised / "8bit")
    for module in damaged.modules():
        if hasattr(module, "qzeros"):
            module.qzeros += 0x01010101
    monkeypatch.setattr("prefdistill.export.gptq_check.load_plain", lambda _: damaged)
    with pytest.raises(UserError, match="dequantised weights"):
        compare(merged, quantised / "8bit", ROWS, 8)


def test_one_misread_layer_is_named(quantised, merged, monkeypatch):
    damaged = load_plain(quantised / "8bit")
    damaged.model.layers[1].mlp.up_proj.qzeros += 0x01010101
    monkeypatch.setattr("prefdistill.export.gptq_check.load_plain", lambda _: damaged)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj of the reloaded"):
        compare(merged, quantised / "8bit", ROWS, 8)


def test_a_lost_head_is_noticed(quantised, merged, monkeypatch):
    damaged = load_plain(quantised / "8bit")
    damaged.score.weight.data.zero_()
    loaders = {merged: load_plain, quantised / "8bit": lambda _: damaged}
    monkeypatch.setattr(
        "prefdistill.export.gptq_check.load_plain",
        lambda folder: loaders[folder](folder),
    )
    with pytest.raises(UserError, match=r"score\.weight of the reloaded model is not"):
        compare(merged, quantised / "8bit", ROWS, 8)


def test_a_layer_that_gives_no_numbers_is_named(quantised, merged, monkeypatch):
    damaged = load_plain(quantised / "8bit")
    damaged.model.layers[0].mlp.down_proj.scales[:] = torch.nan
    monkeypatch.setattr("prefdistill.export.gptq_check.load_plain", lambda _: damaged)
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.down_proj of .* is nan off"):
        compare(merged, quantised / "8bit", ROWS, 8)


def test_a_lost_setting_is_noticed(quantised, merged, monkeypatch):
    changed = load_plain(quantised / "8bit")
    changed.config.attn_logit_softcapping = 7.0
    loaders = {merged: load_plain, quantised / "8bit": lambda _: changed}
    monkeypatch.setattr(
        "prefdistill.export.gptq_check.load_plain",
        lambda folder: loaders[folder](folder),
    )
    with pytest.raises(UserError, match="attn_logit_softcapping in config"):
        compare(merged, quantised / "8bit", ROWS, 8)


def test_a_model_without_gptq_layers_is_refused(quantised, merged, monkeypatch):
    monkeypatch.setattr("prefdistill.export.gptq_check.kernel_errors", lambda *_: {})
    with pytest.raises(UserError, match="no layer of the reloaded model is a GPTQ one"):
        compare(merged, quantised / "8bit", ROWS, 8)


def test_an_adapter_on_the_gptq_base_agrees_with_the_16_bit_base(
    quantised, base, tmp_path
):
    """Tolerance: half of what the adapter itself changes, and 0.35 of the spread."""
    from peft import LoraConfig, PeftModel, get_peft_model

    plain = tmp_path / "plain"
    head = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)) / 8
    write_classifier(base, plain, head)
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
    write_classifier(tiny_model_folder("llama"), tmp_path, torch.zeros(3, 32))
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


def test_the_gap_of_equal_logits_is_zero():
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    gap = logit_gap(logits, logits)
    assert (gap.mean_abs, gap.max_abs, gap.mean_kl, gap.agreement) == (0, 0, 0, 1)
    shifted = logit_gap(logits, logits + 1)
    assert shifted.mean_abs == pytest.approx(1)
    assert shifted.mean_kl == pytest.approx(0, abs=1e-6)

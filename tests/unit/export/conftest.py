import numpy as np
import pyarrow as pa
import pytest
import quantise_base
import quantise_model
import torch
from adapter_samples import TARGETS
from gptq_samples import SETTINGS, TEXT

from prefdistill.export.merging import write_classifier
from prefdistill.models.head import Head
from prefdistill.models.manifests import write_manifest
from prefdistill.storage.tables import FOLD_SCHEMA, write_table


@pytest.fixture(scope="module")
def make_adapter(tiny_model_folder):
    """Function that writes a random adapter of a real PEFT model."""

    def make(folder, architecture="llama", seed=0, rank=2, alpha=4, **options):
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForSequenceClassification

        settings = {"target_modules": TARGETS, "task_type": "SEQ_CLS", **options}
        config = LoraConfig(r=rank, lora_alpha=alpha, **settings)
        model = get_peft_model(
            AutoModelForSequenceClassification.from_pretrained(
                tiny_model_folder(architecture), num_labels=3
            ),
            config,
        )
        generator = torch.Generator().manual_seed(seed)
        for name, weight in model.named_parameters():
            if weight.requires_grad or "score" in name:
                weight.data.normal_(0, 0.1, generator=generator)
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def pair(make_adapter, tmp_path_factory):
    """Two Llama adapters of one rank."""
    folder = tmp_path_factory.mktemp("pair")
    make_adapter(folder / "0", seed=0)
    return [make_adapter(folder / "0"), make_adapter(folder / "1", seed=1)]


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
    write_classifier(base, folder, Head({"score.weight": head}))
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

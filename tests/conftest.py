"""Tiny models of the three real architectures, and a tokenizer for them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# A first example may load a tokenizer, and the machine may be busy.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SPECIAL = ["<pad>", "<eos>", "<bos>", "<|end|>"]
CORPUS = [
    "question answer tell me about the river in a list please thank you",
    "maybe the mountain is tall, I think; here is a short poem: rivers run",
    "<prompt>: <response_a>: <response_b>: <verdict>: <turn 2>: ...",
    '{"format": "json", "items": ["one", "two", "three"]}',
]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE of 400 tokens with a BOS, as a transformers tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=["<|end|>"],
    )


# What a tiny model needs for its architecture's own settings to change its logits.
OWN_SETTINGS = {
    "llama_with_biases": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
    },
    "mistral": {"sliding_window": 7},
    # A sliding window in the upper layer only, as Qwen2 places it.
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    # Queries and keys of which only half rotates.
    "phi3": {"partial_rotary_factor": 0.5, "sliding_window": 7},
    "smollm3": {"no_rope_layers": [1, 0]},
    "qwen3": {"head_dim": 16},
    "olmo3": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 7,
    },
    "ministral": {"head_dim": 8, "sliding_window": 7},
    "gemma3_text": {
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 7,
    },
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 7,
        "attn_logit_softcapping": 5.0,
    },
}


def _config(architecture: str):
    from transformers import AutoConfig

    settings = {
        "model_type": architecture,
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    settings |= OWN_SETTINGS.get(architecture, {})
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory, tiny_tokenizer) -> Callable[[str], Path]:
    """Function from architecture, or ``llama_with_biases``, to a model folder.

    The folder has a manifest, a random causal language model of two layers and hidden
    size 32 with large weights, so that errors show, and the tokenizer.
    """
    folders: dict[str, Path] = {}

    def folder_of(architecture: str) -> Path:
        if architecture not in folders:
            folders[architecture] = _make_folder(architecture)
        return folders[architecture]

    def _make_folder(architecture: str) -> Path:
        import torch
        from transformers import AutoModelForCausalLM

        folder = tmp_path_factory.mktemp(architecture)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(_config(architecture))
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.data.normal_(0, 0.2)
                else:  # a bias or a norm
                    weight.data += 0.2 * torch.randn_like(weight)
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        manifest = {
            "path": ".",
            "architecture": type(model).__name__,
            "model_type": model.config.model_type,
            "revision": None,
            "files": {},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return folder_of

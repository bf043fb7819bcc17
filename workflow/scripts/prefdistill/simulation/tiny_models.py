"""Make tiny language models of real architectures, and tokenizers for them.

LoRA on a base with random weights learns nothing. So a tiny base is first trained on
the observable qualities of answers: see ``dense_labels`` and ``dense_training``. The
settings and a seed determine everything.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from prefdistill.data.prompts import encode_pairs
from prefdistill.engine.architectures import ARCHITECTURES
from prefdistill.models.manifests import copy_file, write_manifest
from prefdistill.settings import BaseModelSettings, TextSettings
from prefdistill.simulation.dense_labels import make_dense_labels
from prefdistill.simulation.dense_training import BATCH_PAIRS, pretrain
from prefdistill.simulation.simulated_pairs import (
    N_PROMPTS,
    Answers,
    answer_texts,
    draw_answers,
    prompt_texts,
)
from prefdistill.storage.whole_files import temporary_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TinyModel:
    """Hold what a tiny model takes from its real tokenizer, and its learning rate.

    Attributes:
        bos: Token that begins a text, or None.
        eos: Token that ends a text.
        pad: Padding token.
        markers: Two chat markers.
        learning_rate: Peak learning rate of pre-training.
        pieces: Pattern that splits text before BPE, applied after NFC; None for
            ``PIECE_PATTERN`` without NFC.
    """

    bos: str | None
    eos: str
    pad: str
    markers: tuple[str, str]
    learning_rate: float
    pieces: str | None = None


# Special tokens are spelt as in the real tokenizers.
TINY_MODELS = {
    "llama": TinyModel(
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        pad="<|finetune_right_pad_id|>",
        markers=("<|start_header_id|>", "<|eot_id|>"),
        learning_rate=4e-3,
    ),
    "qwen2": TinyModel(
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        markers=("<|im_start|>", "<|fim_pad|>"),
        learning_rate=4e-3,
        # For a Qwen2 model, transformers replaces the saved normaliser and splitting by
        # the real ones when it loads the folder, so training must use them too.
        pieces=PRETOKENIZE_REGEX,
    ),
    "gemma2": TinyModel(
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        markers=("<start_of_turn>", "<end_of_turn>"),
        learning_rate=6e-3,
    ),
}
VOCABULARY_SIZE = 1024
# How text is split before BPE: a marker of the template is one piece; words, digits,
# signs and blanks are split as in GPT-2.
PIECE_PATTERN = (
    r"\s*<[a-z_]+>:\s?| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}<]+| ?<|\s+(?!\S)|\s+"
)
N_TOKENIZER_PAIRS = 3_000
MAX_PRETRAIN_PAIRS = 8_000  # longer pre-training repeats these pairs
WEIGHT_FILES = ("model.safetensors", "config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def train_tokenizer(texts: Iterator[str], architecture: str) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which can encode and decode any Unicode text.

    Args:
        texts: The texts to train on.
        architecture: One of ``TINY_MODELS``.
    """
    tiny = TINY_MODELS[architecture]
    special = (tiny.pad, tiny.eos, tiny.bos, *tiny.markers)
    tokenizer = Tokenizer(models.BPE())
    if tiny.pieces:
        tokenizer.normalizer = normalizers.NFC()
    pieces = Regex(tiny.pieces or PIECE_PATTERN)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        # They get the first ids, so the id of padding is 0.
        special_tokens=[token for token in special if token],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tiny.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tiny.bos} $A",
            special_tokens=[(tiny.bos, tokenizer.token_to_id(tiny.bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tiny.bos,
        eos_token=tiny.eos,
        pad_token=tiny.pad,
        extra_special_tokens=list(tiny.markers),
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


def tokenizer_corpus(table: pa.Table, text: TextSettings) -> Iterator[str]:
    """Yield every pair in the template, every turn on its own, and turn markers."""
    for row in table.to_pylist():
        fields = {name: "\n".join(row[name]) for name in row if name != "id"}
        yield text.template.format(**fields)
        for turns in (row[name] for name in fields):
            yield from turns
    yield from (text.turn.format(n=number) for number in range(2, 10))


def build_model(
    settings: BaseModelSettings, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedModel:
    """Build a causal model of a real architecture with random float32 weights.

    Two query heads share a key head, and embeddings are tied. Gemma-2 keeps its soft
    caps, scaled embeddings and alternating sliding window.

    Args:
        settings: The entry of ``base_models``.
        tokenizer: Gives the size of the vocabulary and the ids of special tokens.
    """
    hidden_size, n_heads = settings.hidden_size, settings.n_heads
    architecture = ARCHITECTURES[settings.architecture]
    shape = {
        # Rounded up to a multiple of 64, as in real models.
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": settings.n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": max(n_heads // 2, 1),
        "head_dim": hidden_size // n_heads,
        "max_position_embeddings": 8192,
        "initializer_range": hidden_size**-0.5,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if architecture.score_scale:
        shape[architecture.score_scale] = hidden_size // n_heads
    torch.manual_seed(settings.seed)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(settings.architecture, **shape),
        # Only transformers' eager attention applies a soft cap.
        attn_implementation="eager" if architecture.softcap else "sdpa",
    )


def draw_pairs(seed: int, n_pairs: int) -> tuple[Answers, pa.Table]:
    """Draw simulated pairs, without labels.

    Returns:
        The pairs as indices, and as a table with columns ``id``, ``prompt``,
        ``response_a`` and ``response_b``.
    """
    rng = np.random.default_rng([seed, 7])
    answers = draw_answers(rng, rng.integers(N_PROMPTS, size=n_pairs))
    columns = {
        "id": [str(row) for row in range(n_pairs)],
        "prompt": prompt_texts(answers),
        "response_a": answer_texts(answers, 0),
        "response_b": answer_texts(answers, 1),
    }
    return answers, pa.table(columns)


def save_base(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write bfloat16 weights, configuration and tokenizer, then the manifest."""
    # Through a temporary folder: save_pretrained does not write atomically.
    with temporary_folder(folder) as scratch:
        model.to(torch.bfloat16).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        for file_name in WEIGHT_FILES + TOKENIZER_FILES:
            copy_file(scratch / file_name, folder / file_name)
    write_manifest(folder)


def make_tiny_base(
    folder: Path, settings: BaseModelSettings, text: TextSettings
) -> list[float]:
    """Make, pre-train and save one tiny base model.

    Args:
        folder: Receives ``WEIGHT_FILES``, ``TOKENIZER_FILES`` and the manifest.
        settings: The entry of ``base_models``.
        text: The ``text`` section, so that the base is trained on rows in the form
            that later stages use.

    Returns:
        The loss of every pre-training step.
    """
    n_steps = settings.pretrain_steps
    n_pairs = min(max(n_steps * BATCH_PAIRS, N_TOKENIZER_PAIRS), MAX_PRETRAIN_PAIRS)
    answers, table = draw_pairs(settings.seed, n_pairs)
    architecture = settings.architecture
    corpus = tokenizer_corpus(table.slice(0, N_TOKENIZER_PAIRS), text)
    tokenizer = train_tokenizer(corpus, architecture)
    logger.info("tokenizer of %d entries", len(tokenizer))
    model = build_model(settings, tokenizer)
    logger.info("%s, %d parameters", architecture, model.num_parameters())
    encoded = encode_pairs(table, tokenizer, text)
    losses = pretrain(
        model,
        encoded,
        make_dense_labels(answers, encoded, tokenizer),
        n_steps=n_steps,
        learning_rate=TINY_MODELS[architecture].learning_rate,
        seed=settings.seed,
    )
    save_base(folder, model, tokenizer)
    return losses

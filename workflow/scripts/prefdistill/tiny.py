"""Tiny language models of real architectures, taught to see what the judge looks at.

LoRA on a frozen base of random weights learns nothing, so every weight of a tiny base
is first trained on simulated text with dense labels: a tag for every token (on topic,
hedge, misspelt, ...) and ratings of the six observable qualities of each answer. No
verdict is shown. What is left for LoRA to learn is how the judge weighs the qualities
and when it calls a tie. The heads of the dense labels are thrown away.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers import Gemma2Config, LlamaConfig, Qwen2Config

from prefdistill.job import Progress
from prefdistill.prompts import EncodedPairs, encode_pairs
from prefdistill.simulate import (
    CLOSINGS,
    HEDGES,
    MISSPELT,
    N_BLUNT,
    N_NOUNS,
    N_PROMPTS,
    NOUNS,
    OPENINGS,
    PROMPT_SHAPE,
    QUALITIES,
    Answers,
    answer_qualities,
    answer_texts,
    draw_answers,
    prompt_texts,
)

logger = logging.getLogger(__name__)

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "gemma2": Gemma2Config}
# bos (Qwen2 has none), eos, pad and two markers of chat, as the real tokenizers spell
# them.
SPECIAL_TOKENS = {
    "llama": (
        "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>",
        "<|start_header_id|>", "<|eot_id|>",
    ),
    "qwen2": (None, "<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|tool_call|>"),
    "gemma2": ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"),
}  # fmt: skip
VOCABULARY_SIZE = 1024
# A marker of the template is one piece; words, digits, signs and blanks as in GPT-2.
PIECES = r"\s*<[a-z_]+>:\s?| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}<]+| ?<|\s+(?!\S)|\s+"
N_TOKENIZER_PAIRS = 4_000

TAGS = ("other", "on_topic", "off_topic", "hedge", "misspelt", "polite", "blunt")
BATCH_PAIRS = 32
WINDOW_BATCHES = 16
LEARNING_RATE = {"llama": 3e-3, "qwen2": 3e-3, "gemma2": 4e-3}
WARMUP_SHARE = 0.1


def train_tokenizer(texts: Iterator[str], architecture: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every Unicode text has tokens, and decoding gives it back."""
    bos, eos, pad, *others = SPECIAL_TOKENS[architecture]
    special = [token for token in (pad, eos, bos, *others) if token]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=others,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


def build_model(
    settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> PreTrainedModel:
    """A causal model of the real architecture with random weights, in float32.

    Grouped-query attention with two query heads to a key head throughout; Gemma-2
    keeps its soft caps, its scaled embeddings and its alternating sliding window.
    """
    architecture, hidden_size = settings["architecture"], settings["hidden_size"]
    n_heads = settings["n_heads"]
    shape = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": settings["n_layers"],
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
    if architecture == "gemma2":
        shape["query_pre_attn_scalar"] = hidden_size // n_heads
    torch.manual_seed(settings["seed"])
    attention = "eager" if architecture == "gemma2" else "sdpa"
    return AutoModelForCausalLM.from_config(
        CONFIGS[architecture](**shape), attn_implementation=attention
    )


def draw_pairs(seed: int, n_pairs: int) -> tuple[Answers, pa.Table]:
    """Simulated pairs as indices, and as a table of texts; nobody judges them."""
    rng = np.random.default_rng([seed, 7])
    answers = draw_answers(rng, rng.integers(N_PROMPTS, size=n_pairs))
    columns = {
        "id": [str(row) for row in range(n_pairs)],
        "prompt": prompt_texts(answers),
        "response_a": answer_texts(answers, 0),
        "response_b": answer_texts(answers, 1),
    }
    return answers, pa.table(columns)


def tokenizer_corpus(table: pa.Table, text: dict[str, Any]) -> Iterator[str]:
    """The template filled with every pair, and every turn on its own."""
    for row in table.to_pylist():
        fields = {name: "\n".join(row[name]) for name in row if name != "id"}
        yield text["template"].format(**fields)
        for field in fields.values():
            yield from field.split("\n")
    yield from (text["turn"].format(n=number) for number in range(2, 10))


@dataclass(frozen=True)
class DenseLabels:
    """What the base is taught about encoded pairs.

    Attributes:
        tags: One ``(length,)`` int64 array a row of indices into ``TAGS``.
        ratings: ``(n, 2, 6)`` float32, the qualities of both answers, standardised.
        first_end: ``(n,)`` int64 position of the first token after answer A.
    """

    tags: list[np.ndarray]
    ratings: np.ndarray
    first_end: np.ndarray


def _word_tags() -> dict[str, int]:
    """Tags of words that do not depend on the prompt."""
    tags = {}
    for words, tag in (
        (HEDGES, "hedge"),
        (MISSPELT, "misspelt"),
        (OPENINGS[:N_BLUNT] + CLOSINGS[:N_BLUNT], "blunt"),
        (OPENINGS[N_BLUNT:] + CLOSINGS[N_BLUNT:], "polite"),
    ):
        for word in re.findall("[a-z]+", " ".join(words).lower()):
            tags.setdefault(word, TAGS.index(tag))
    return tags


def token_tags(tokenizer: PreTrainedTokenizerFast) -> tuple[np.ndarray, np.ndarray]:
    """Tag and topic of every entry of the vocabulary.

    Returns:
        ``(vocabulary,)`` int64 tags without on_topic and off_topic, and ``(vocabulary,)``
        int64 topic of a noun, -1 for any other token.
    """
    tags = np.zeros(len(tokenizer), dtype=np.int64)
    topics = np.full(len(tokenizer), -1)
    words = _word_tags()
    for token, number in tokenizer.get_vocab().items():
        word = token.removeprefix("Ġ").lower()
        tags[number] = words.get(word, 0)
        if word in NOUNS:
            topics[number] = NOUNS.index(word) // N_NOUNS
    return tags, topics


def dense_labels(
    answers: Answers, encoded: EncodedPairs, tokenizer: PreTrainedTokenizerFast
) -> DenseLabels:
    """Tags of all tokens and ratings of both answers, for view AB."""
    vocabulary_tags, vocabulary_topics = token_tags(tokenizer)
    asked = np.unravel_index(answers.prompt, PROMPT_SHAPE)[3]
    tags, first_end = [], []
    for row, topic in enumerate(asked):
        tokens = encoded.tokens(row, "AB")
        noun_topic = vocabulary_topics[tokens]
        tag = np.where(noun_topic == topic, TAGS.index("on_topic"), vocabulary_tags[tokens])
        off_topic = (noun_topic >= 0) & (noun_topic != topic)
        tags.append(np.where(off_topic, TAGS.index("off_topic"), tag))
        after = encoded.fields.index("response_a") + 1
        first_end.append(
            sum(len(literal) for literal in encoded.literals[:after])
            + sum(len(encoded.segments[name][row]) for name in encoded.fields[:after])
        )
    ratings = answer_qualities(answers)
    ratings = (ratings - ratings.mean((0, 1))) / ratings.std((0, 1))
    return DenseLabels(tags, ratings.astype(np.float32), np.array(first_end))


class DenseHeads(torch.nn.Module):
    """Linear heads of the dense labels, thrown away after pre-training."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.tags = torch.nn.Linear(hidden_size, len(TAGS))
        self.first = torch.nn.Linear(hidden_size, len(QUALITIES))
        self.both = torch.nn.Linear(hidden_size, 2 * len(QUALITIES))

    def loss(
        self, hidden: torch.Tensor, tags: torch.Tensor, ratings: torch.Tensor,
        first_end: torch.Tensor, last: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Cross-entropy of the tags plus squared errors of the standardised ratings.

        Args:
            hidden: ``(rows, length, hidden_size)`` float.
            tags: ``(rows, length)`` int64, -100 at padding.
            ratings: ``(rows, 2, 6)`` float.
            first_end: ``(rows,)`` int64, where answer A alone is rated.
            last: ``(rows,)`` int64 last tokens, where both answers are rated.
        """
        rows = torch.arange(len(hidden))
        tag_loss = torch.nn.functional.cross_entropy(
            self.tags(hidden).flatten(0, 1), tags.flatten(), ignore_index=-100
        )
        first = (self.first(hidden[rows, first_end]) - ratings[:, 0]).square().mean()
        both = self.both(hidden[rows, last]) - ratings.flatten(1)
        return tag_loss + first + 2 * both.square().mean()


def batches(
    encoded: EncodedPairs, rng: np.random.Generator, n_steps: int
) -> Iterator[np.ndarray]:
    """Row indices of ``n_steps`` batches; a batch's rows have about the same length."""
    n_done, window = 0, BATCH_PAIRS * WINDOW_BATCHES
    while True:
        order = rng.permutation(len(encoded.ids))
        for start in range(0, len(order), window):
            rows = order[start : start + window]
            rows = rows[np.argsort(encoded.lengths[rows], kind="stable")]
            parts = np.array_split(rows, -(-len(rows) // BATCH_PAIRS))
            for part in rng.permutation(len(parts)):
                if n_done == n_steps:
                    return
                n_done += 1
                yield parts[part]


def padded(arrays: list[np.ndarray], fill: int) -> torch.Tensor:
    """Right-padded ``(rows, longest)`` int64."""
    result = np.full((len(arrays), max(map(len, arrays))), fill, dtype=np.int64)
    for row, array in enumerate(arrays):
        result[row, : len(array)] = array
    return torch.from_numpy(result)


def pretrain(
    model: PreTrainedModel,
    encoded: EncodedPairs,
    labels: DenseLabels,
    *,
    n_steps: int,
    learning_rate: float,
    seed: int,
) -> list[float]:
    """Train all weights on dense labels; returns the loss of every step.

    Rows are padded on the right, where causal attention does not look.
    """
    torch.manual_seed(seed)
    heads = DenseHeads(model.config.hidden_size)
    parameters = [*model.model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, (0.9, 0.98), weight_decay=0)
    n_warmup = max(1, round(WARMUP_SHARE * n_steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / n_warmup, 1)
        * (0.5 + 0.5 * np.cos(np.pi * step / n_steps)),
    )
    progress, losses = Progress(n_steps, "steps"), []
    model.train()
    for rows in batches(encoded, np.random.default_rng([seed, 8]), n_steps):
        tokens = [encoded.tokens(row, "AB") for row in rows]
        hidden = model.model(padded(tokens, 0), use_cache=False).last_hidden_state
        loss = heads.loss(
            hidden,
            padded([labels.tags[row] for row in rows], -100),
            torch.from_numpy(labels.ratings[rows]),
            torch.from_numpy(labels.first_end[rows]),
            torch.from_numpy(encoded.lengths[rows].astype(np.int64) - 1),
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.update(1, int(encoded.lengths[rows].sum()), f"loss {losses[-1]:.3f}")
    return losses

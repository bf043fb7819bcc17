"""Make the benchmarks' work: shapes of models, lengths of rows, useful operations."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# A `training` block without warm-up, decay or checkpoints: every step costs the same.
STEADY: dict[str, Any] = {
    "max_steps": None,
    "warmup_steps": 0,
    "warmup_fraction": 0.0,
    "schedule": "constant",
    "min_lr_ratio": 1.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 0,
    "checkpoint_steps": 10**9,
    "recompute": "auto",
    "compile": "auto",
}

# Shapes from the models' config.json; the weights of a benchmark are random.
SHAPES: dict[str, dict[str, Any]] = {
    "gemma-2-9b": {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "gemma-3-12b": {
        "model_type": "gemma3_text",
        "vocab_size": 262208,
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 1024,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
}
# The shapes of config/demo.yaml.
for _architecture, _hidden, _heads in (
    ("llama", 96, 6),
    ("qwen2", 96, 6),
    ("gemma2", 64, 4),
):
    SHAPES[f"tiny-{_architecture}"] = {
        "model_type": _architecture,
        "vocab_size": 832,
        "hidden_size": _hidden,
        "intermediate_size": 3 * _hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": _heads,
        "num_key_value_heads": _heads // 2,
        "head_dim": 16,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
PUBLISHED = ("gemma-2-9b", "llama-3.1-8b", "qwen2.5-7b")
TINY = ("tiny-gemma2", "tiny-llama", "tiny-qwen2")

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
PROJECTIONS = (*ATTENTION_PROJECTIONS, "o_proj", "gate_proj", "up_proj", "down_proj")
# The widely copied notebooks adapt Gemma-2's layers from the 17th of 42 on.
UPPER_FROM = 16 / 42

# An approximation of the LMSYS competition's rows: median tokens, standard deviation of
# their logarithm, shortest row, and the share of a row before its first answer.
MEDIAN, SIGMA, SHORTEST, PREFIX_SHARE = 650, 0.75, 48, 0.13
CHARACTERS_PER_TOKEN, TEMPLATE_TOKENS, PREFIX_TEMPLATE_TOKENS = 4, 24, 12
TEXT_COLUMNS = ("prompt", "response_a", "response_b")


def lora_settings(variant: str, mode: str, n_layers: int) -> dict[str, Any] | None:
    """Return a variant's adapter, for ``add_adapter``; None for a bare base.

    ======== ========= ==========================================================
    mode     ends in   adapter
    ======== ========= ==========================================================
    train    (nothing) rank 64 on all linear layers
    train    dropout   the same, with dropout
    train    upper     rank 16 on query, key and value of the upper layers
    infer    (nothing) none, as after a merge
    infer    adapter   rank 64 on all linear layers
    ======== ========= ==========================================================

    Raises:
        ValueError: If there is no such variant in the mode.
    """
    kind = variant.partition("_")[2]
    kinds = {"train": ("", "upper", "dropout"), "infer": ("", "adapter")}
    if kind not in kinds[mode]:
        raise ValueError(f"no variant {variant} in mode {mode}")
    if kind == "" and mode == "infer":
        return None
    upper = kind == "upper"
    rank = 16 if upper else 64
    return {
        "r": rank,
        "alpha": 2 * rank,
        "dropout": 0.05 if kind == "dropout" else 0.0,
        "targets": list(ATTENTION_PROJECTIONS if upper else PROJECTIONS),
        "lowest_layer": round(UPPER_FROM * n_layers) if upper else 0,
    }


def linear_parameters(shape: dict[str, Any]) -> int:
    """Count the weights of the decoder's linear layers, without embedding and head."""
    heads = shape["num_attention_heads"] + shape["num_key_value_heads"]
    attention = 2 * shape["hidden_size"] * shape["head_dim"] * heads
    mlp = 3 * shape["hidden_size"] * shape["intermediate_size"]
    return shape["num_hidden_layers"] * (attention + mlp)


def useful_flops(
    shape: dict[str, Any], lengths: np.ndarray, *, train: bool, lowest_layer: int = 0
) -> float:
    """Count the floating-point operations that the work needs.

    The forward pass has two per weight and token, and the causal half of the attention
    products. The backward pass, from the lowest adapted layer up, has two per weight
    and token again, because a frozen weight has no gradient, and twice the attention.
    Padding, recomputation and the adapter's own products do not count.

    Args:
        shape: The model, as in ``SHAPES``.
        lengths: ``(n_rows,)`` tokens of each row.
        train: Whether there is a backward pass.
        lowest_layer: The lowest adapted layer.
    """
    lengths = np.asarray(lengths, dtype=np.float64)
    n_layers = shape["num_hidden_layers"]
    width = shape["num_attention_heads"] * shape["head_dim"]
    linear = 2 * linear_parameters(shape) * lengths.sum()
    attention = 4 * n_layers * width * (lengths**2).sum() / 2
    forward = float(linear + attention)
    if not train:
        return forward
    return forward + (1 - lowest_layer / n_layers) * float(linear + 2 * attention)


def csv_lengths(path: Path, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimate a file's tokens per pair, and those before an answer, from characters.

    Args:
        path: A CSV file in the competition's columns, each text a JSON list of turns.
        max_length: Longest row after trimming, which shortens all parts alike.

    Returns:
        Two ``(n,)`` int64 arrays.
    """
    csv.field_size_limit(2**30)
    with open(path, encoding="utf-8", errors="replace", newline="") as handle:
        sizes = [
            [_characters(row[column]) for column in TEXT_COLUMNS]
            for row in csv.DictReader(handle)
        ]
    characters = np.array(sizes, dtype=np.int64)
    lengths = characters.sum(axis=1) // CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS
    prefixes = characters[:, 0] // CHARACTERS_PER_TOKEN + PREFIX_TEMPLATE_TOKENS
    kept = np.minimum(lengths, max_length)
    return kept, prefixes * kept // lengths


def _characters(cell: str) -> int:
    try:
        turns = json.loads(cell)
    except ValueError:
        return len(cell)
    if not isinstance(turns, list):
        return len(cell)
    return sum(len(turn) for turn in turns if isinstance(turn, str))


def lognormal_lengths(n: int, max_length: int, seed: int = 0) -> np.ndarray:
    """Draw lengths of pairs, ``(n,)`` int64, distributed about as LMSYS's."""
    draw = np.random.default_rng(seed).lognormal(np.log(MEDIAN), SIGMA, n)
    return np.clip(draw, SHORTEST, max_length).astype(np.int64)


def draw_lengths(
    n: int, max_length: int, path: Path | None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, str]:
    """Draw lengths of ``n`` pairs, from a file if given, else log-normal.

    Returns:
        ``(n,)`` int64 tokens of a row; ``(n,)`` int64 tokens before its first answer,
        which both orders share; a description of the source.
    """
    if path is None:
        lengths = lognormal_lengths(n, max_length, seed)
        said = f"log-normal, median {MEDIAN}, sigma {SIGMA}, {SHORTEST} to {max_length}"
        prefixes = (PREFIX_SHARE * lengths).astype(np.int64)
        return lengths, prefixes, f"{said}, {PREFIX_SHARE:.0%} before the answers"
    lengths, prefixes = csv_lengths(path, max_length)
    rng, n_found = np.random.default_rng(seed), len(lengths)
    drawn = rng.choice(n_found, n, replace=n > n_found)
    per_token = f"characters / {CHARACTERS_PER_TOKEN} + {TEMPLATE_TOKENS}"
    said = f"{Path(path).name}, {per_token}, at most {max_length}"
    return lengths[drawn], prefixes[drawn], said


def random_pairs(
    lengths: np.ndarray, prefixes: np.ndarray, vocabulary: int, seed: int = 0
) -> Any:
    """Make pairs of random tokens as ``EncodedPairs``.

    Args:
        lengths: ``(n,)`` tokens of each pair, equal in both orders; at least 2.
        prefixes: ``(n,)`` tokens before the first answer; at least 1 is used.
        vocabulary: Tokens are drawn from 5 up to this.
        seed: Seed of the draw.
    """
    from prefdistill.data.prompts import FIELDS, EncodedPairs

    draw = np.random.default_rng(seed)
    segments: dict[str, list[np.ndarray]] = {field: [] for field in FIELDS}
    prefixes = np.clip(prefixes, 1, lengths - 1)
    for length, prefix in zip(lengths.tolist(), prefixes.tolist(), strict=True):
        half, odd = divmod(length - prefix - 1, 2)
        parts = prefix - 1, half + odd, half
        for field, size in zip(FIELDS, parts, strict=True):
            segments[field].append(draw.integers(5, vocabulary, size, dtype=np.int32))
    edge, none = np.array([4], dtype=np.int32), np.array([], dtype=np.int32)
    return EncodedPairs(
        ids=np.array([f"row:{n}" for n in range(len(lengths))]),
        lengths=lengths.astype(np.int32),
        n_truncated=0,
        literals=(edge, none, none, edge),
        fields=tuple(FIELDS),
        segments=segments,
    )


def padded_batches(
    lengths: np.ndarray, batch_rows: int, *, by_length: bool
) -> list[np.ndarray]:
    """Split rows into batches, in the given order or longest first."""
    order = np.arange(len(lengths))
    if by_length:
        order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[i : i + batch_rows] for i in range(0, len(order), batch_rows)]


def pad_rows(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows on the right: tokens and mask, ``(n_rows, longest)`` int64."""
    longest = max(map(len, rows))
    tokens = np.zeros((len(rows), longest), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return tokens, mask

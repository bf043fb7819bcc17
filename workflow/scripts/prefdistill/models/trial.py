"""Try a configured model on a few pairs before any training, and report the result."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from scipy.special import softmax

from prefdistill.data.prompts import encode_pairs
from prefdistill.engine.engine import RECOMPUTE
from prefdistill.models.forward import core_model
from prefdistill.models.head import head_of
from prefdistill.models.loading import load_classifier, load_tokenizer
from prefdistill.models.lora import add_adapter
from prefdistill.models.memory import count_parameters, estimate_memory
from prefdistill.models.precision import base_precision
from prefdistill.models.scoring import score_pairs
from prefdistill.settings import ModelSettings, TextSettings
from prefdistill.storage.logits import VIEWS


def pairs_to_try(pairs: list[dict[str, str]]) -> pa.Table:
    """Make a table of pairs with one turn each.

    Args:
        pairs: ``prompt``, ``response_a`` and ``response_b`` of each pair.
    """
    columns = {"id": [f"check:{number}" for number in range(1, len(pairs) + 1)]}
    for field in ("prompt", "response_a", "response_b"):
        columns[field] = [[pair[field]] for pair in pairs]
    return pa.table(columns)


def try_model(
    folder: Path, settings: ModelSettings, text: TextSettings, pairs: pa.Table
) -> dict[str, Any]:
    """Load a model, score pairs in both orders, and describe model and scores.

    Head and adapter have the seeded values that training starts from.

    Args:
        folder: The base model.
        settings: The model's settings.
        text: How pairs become tokens.
        pairs: See ``pairs_to_try``.

    Returns:
        Cells of one CSV row: architecture, sizes, memory of training in GiB, and for
        each pair and order the probabilities of first, second and tie, as shown.
    """
    precision, seed = settings.precision, settings.post_pretrain.seed
    model = load_classifier(folder, precision, head_seed=seed)
    model = add_adapter(model, settings.lora, seed)
    core, counts = core_model(model), count_parameters(model)
    budget = settings.training.token_budget
    n_base = counts["embedding"] + counts["linear"] + counts["other"]
    row = {
        "architecture": type(core).__name__,
        "precision": precision,
        "n_base_parameters": n_base,
        "n_linear_parameters": counts["linear"],
        "n_lora_parameters": counts["lora"],
        "lora_share": f"{counts['lora'] / n_base:.6f}",
        "head_shape": " ".join("x".join(map(str, s)) for s in head_of(core).shapes),
    }
    for how in RECOMPUTE:
        gib = estimate_memory(
            core.config,
            counts,
            base_precision(core),
            budget,
            recompute=how,
            dropout=settings.lora.dropout,
        )
        row[f"training_gib_recompute_{how}"] = f"{gib:.3f}"
    encoded = encode_pairs(pairs, load_tokenizer(folder), text)
    probs = softmax(score_pairs(model, encoded, token_budget=budget), axis=-1)
    for number, by_view in enumerate(probs, start=1):
        for view, (first, second, tie) in zip(VIEWS, by_view, strict=True):
            row[f"pair{number}_{view}"] = f"{first:.4f} {second:.4f} {tie:.4f}"
    return row

"""Find out by trial how an architecture can be computed, before anything trains.

The trial runs the architecture at its own shape, cut to a layer of each kind, with
random weights, in float32 on the CPU. Its reference is transformers' own attention on
each row alone. No list of names decides.
"""

import copy
import logging
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from prefdistill.engine.architectures import architecture_of
from prefdistill.engine.attention import ATTENTION, NotPackable, register
from prefdistill.engine.engine import Engine
from prefdistill.engine.packing import collate
from prefdistill.engine.rope import BY_LENGTH
from prefdistill.errors import UserError, one_line
from prefdistill.models.forward import core_model
from prefdistill.models.head import classifier_class
from prefdistill.models.lora import add_adapter
from prefdistill.settings import LoraSettings

logger = logging.getLogger(__name__)

# Largest relative error. Sums in another order differ by 1e-6; attention that sees
# another row's tokens, or lacks its sinks, by more than 0.1.
TOLERANCE = 1e-3
# Packed, else transformers' own attention on a row at a time, the faster first. Some
# architectures have only eager attention.
EAGER = "eager"
WAYS = (ATTENTION, "sdpa", EAGER)
VOCABULARY = 512
# Windows, and lengths from which a rope changes, that the rows exceed.
WINDOW, TRAINED = 16, 24
# Pairs in both orders: the second shares its first tokens with the row before it.
LENGTHS, SHARED = (37, 37, 9, 9, 21, 30), (0, 14, 0, 4, 0, 0)
# Keys and the most that they may be: neither the width of an MLP nor the number of
# experts changes what a token sees.
AT_MOST = {
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
}
# What is compared, by name.
Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Finding:
    """The way to compute a model, and how far it is from transformers.

    Attributes:
        attention: ``packed``; or transformers' ``sdpa`` or ``eager``, a row at a time.
        by_engine: Whether the engine computes the layers, and not transformers.
        error: The largest relative error of what was compared.
    """

    attention: str
    by_engine: bool
    error: float


def probe(config: Any, name: str, lora: LoraSettings | None = None) -> Finding:
    """Find the fastest way to compute a model that gives transformers' results.

    Args:
        config: The model's transformers configuration.
        name: The model, for messages.
        lora: The adapter to be trained; its logits and gradients are compared too.

    Raises:
        UserError: If no way gives them, or if LoRA does not reach what it means.
    """
    cut, differences = cut_config(config), []
    register()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            expected = _alone(_model(cut, EAGER), lora)
            for way in WAYS:
                error = _tried(cut, way, lora, expected, differences)
                if error <= TOLERANCE:
                    by_engine = way == ATTENTION and architecture_of(config) is not None
                    logger.info(
                        "%s: %s rows, computed by %s; largest relative error %.1e%s",
                        name, "packed" if way == ATTENTION else "single",
                        "the engine" if by_engine else "transformers", error,
                        "".join(f"; not {each}" for each in differences[:-1]),
                    )  # fmt: skip
                    return Finding(way, by_engine, error)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:
        raise UserError(
            f"{name}: a {config.model_type} model cannot be tried "
            f"({type(error).__name__}: {one_line(error):.300}); name a base of another "
            "architecture"
        ) from error
    raise UserError(
        f"{name}: a {config.model_type} model cannot be computed as transformers does "
        f"({'; '.join(differences)}); name a base of another architecture"
    )


def attention_of(config: Any, name: str) -> str:
    """Return the name of the attention to load a model with.

    An architecture that the engine knows is packed. Another is tried, in seconds, once
    in a process.

    Args:
        config: The model's transformers configuration.
        name: The model, for messages.

    Raises:
        UserError: If no attention gives transformers' results.
    """
    if architecture_of(config) is not None:
        return ATTENTION
    return _attention_of(_Named(config, name))


class _Named:
    """A configuration that equals another of the same content, whatever its name."""

    def __init__(self, config: Any, name: str) -> None:
        self.config, self.name = config, name
        self.content = config.to_json_string()

    def __hash__(self) -> int:
        return hash(self.content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self.content == other.content


@cache
def _attention_of(named: _Named) -> str:
    return probe(named.config, named.name).attention


def _tried(
    cut: Any,
    way: str,
    lora: LoraSettings | None,
    expected: Values,
    differences: list[str],
) -> float:
    """Return a way's largest relative error; note why it cannot be taken."""
    try:
        found = _together(_model(cut, way), lora)
    except NotPackable as error:
        differences.append(f"{way}: {error}")
        return math.inf
    except (ImportError, ValueError, TypeError, RuntimeError, LookupError) as error:
        differences.append(f"{way}: {one_line(error):.100}")
        return math.inf
    errors = {
        name: float((found[name] - value).norm() / value.norm())
        for name, value in expected.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    differences.append(f"{way}: {worst} differ by {errors[worst]:.2g}")
    # A NaN is no small error.
    return errors[worst] if math.isfinite(sum(errors.values())) else math.inf


def cut_config(config: Any) -> Any:
    """Cut a configuration to a layer of each kind, and at least two.

    Args:
        config: The model's transformers configuration; it stays as it is.
    """
    cut = copy.deepcopy(config)
    settings, n_layers = cut.to_dict(), cut.num_hidden_layers
    by_layer = {
        key: value
        for key, value in settings.items()
        if isinstance(value, list) and len(value) == n_layers > 1
    }
    kinds: dict[Any, int] = {}
    for layer in range(n_layers):
        kind = repr([values[layer] for values in by_layer.values()])
        kinds.setdefault(kind, layer)
    kept = sorted({*kinds.values(), *range(min(2, n_layers))})
    for key, values in by_layer.items():
        setattr(cut, key, [values[layer] for layer in kept])
    cut.num_hidden_layers, cut.vocab_size = len(kept), VOCABULARY
    cut.pad_token_id, cut.bos_token_id, cut.eos_token_id = 0, 1, 2
    cut.use_cache = False
    for key, most in AT_MOST.items():
        size = getattr(cut, key, None)
        if isinstance(size, int) and size > most:
            setattr(cut, key, most)
    _shorten_ropes(cut)
    if hasattr(cut, "quantization_config"):
        del cut.quantization_config
    return cut


def _shorten_ropes(cut: Any) -> None:
    """Lower the lengths from which ropes change, so that rows lie on both sides."""
    ropes = getattr(cut, "rope_parameters", None) or {}
    for rope in (ropes, *(each for each in ropes.values() if isinstance(each, dict))):
        if rope.get("rope_type") in BY_LENGTH:
            cut.max_position_embeddings = TRAINED
            if "original_max_position_embeddings" in rope:
                rope["original_max_position_embeddings"] = TRAINED
                cut.max_position_embeddings = 2 * TRAINED


def _model(cut: Any, attention: str) -> torch.nn.Module:
    """Make a classifier with seeded weights that let every part of it count."""
    torch.manual_seed(0)
    config = copy.deepcopy(cut)
    model = classifier_class().from_config(config, attn_implementation=attention)
    for name, weight in model.float().named_parameters():
        noise = torch.randn_like(weight)
        if weight.dim() < 2:  # a norm or a bias, kept near its neutral value
            weight.data += 0.2 * noise
        else:
            scale = 1.0 if "embed" in name else weight.shape[-1] ** -0.5
            weight.data = scale * noise
    return model.requires_grad_(False).eval()


def _rows() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    rows: list[np.ndarray] = []
    for length, shared in zip(LENGTHS, SHARED, strict=True):
        row = generator.integers(3, VOCABULARY, length)
        rows.append(
            np.concatenate([rows[-1][:shared], row[shared:]]) if shared else row
        )
    return rows


def _alone(model: torch.nn.Module, lora: LoraSettings | None) -> Values:
    """Compute last states of each row by transformers, and an adapter's gradients."""
    rows = _rows()
    # Ascending, as a dynamic rope remembers the longest row so far.
    order = np.argsort(LENGTHS, kind="stable")

    def states() -> torch.Tensor:
        last = [torch.empty(0)] * len(rows)
        for n in order:
            row = torch.from_numpy(rows[n])[None]
            output = core_model(model).base_model(input_ids=row, use_cache=False)
            last[n] = output.last_hidden_state[0, -1]
        return torch.stack(last)

    with torch.no_grad():
        values = {"states": states()}
    if lora is not None:
        model = _adapted(model, lora)
        values |= _with_gradients(model, states())
    return values


def _together(model: torch.nn.Module, lora: LoraSettings | None) -> Values:
    """Compute the same from one batch, where prompts are shared if they can be."""
    rows = _rows()
    is_packed = model.config._attn_implementation == ATTENTION
    shared = np.array(SHARED) if is_packed else None
    batches = [collate(rows, 1, shared), collate(rows, 1)]

    def states(batch: Any) -> torch.Tensor:
        return engine.forward(batch, torch.from_numpy(batch.last))

    engine = Engine(core_model(model))
    with torch.no_grad():
        both = [states(batch) for batch in batches]
    worst = max(both, key=lambda found: float((found - both[-1]).abs().max()))
    values = {"states": worst}
    if lora is not None:
        model = _adapted(model, lora)
        values |= _with_gradients(model, states(batches[0]))
    return values


def _adapted(model: torch.nn.Module, lora: LoraSettings) -> torch.nn.Module:
    small = replace(lora, r=4, alpha=4.0, dropout=0.0, lowest_layer=0)
    model = add_adapter(model, small, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def _with_gradients(model: torch.nn.Module, states: torch.Tensor) -> Values:
    generator = torch.Generator().manual_seed(3)
    (states * torch.randn(states.shape, generator=generator)).sum().backward()
    gradients = [
        weight.grad.flatten()
        for name, weight in model.named_parameters()
        if "lora_" in name and weight.grad is not None
    ]
    adapted = {"adapted states": states.detach()}
    return adapted | {"gradients of LoRA": torch.cat(gradients)}

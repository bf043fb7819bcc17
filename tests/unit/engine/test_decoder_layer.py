"""Halves of decoder layers against transformers' own modules."""

from importlib import import_module

import pytest
import torch
from engine_samples import TWINS, is_fast
from packed_samples import CPU, LENGTHS

from prefdistill.engine import decoder_layer
from prefdistill.engine.decoder_layer import (
    after_attention,
    attend,
    attention_half,
    attention_of_kept,
    heads_of,
    mlp_half,
    normalised,
    rotated,
)
from prefdistill.engine.layout import PackedLayout
from prefdistill.models.forward import core_model, engine_of

N_TOKENS = sum(LENGTHS)


@pytest.fixture
def parts(judge):
    """Function from architecture to transformers' layer, the engine's, and rope.

    The layer is the last; its adapter's B is not zero.
    """

    def make(architecture="gemma2"):
        model = judge(architecture).eval()
        assert is_fast(model)
        core = core_model(model)
        positions = torch.arange(N_TOKENS)[None] % 30
        layer, rope = engine_of(model).layers[-1], None
        if layer.rope is not None:
            kind = [layer.rope] if layer.rope else []
            cos, sin = core.model.rotary_emb(torch.zeros(1), positions, *kind)
            rope = cos[0][:, None], sin[0][:, None]
        return core.model.layers[-1], layer, rope

    return make


def states(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", TWINS)
def test_heads_are_rotated_projections_of_normalised_states(parts, architecture):
    module, layer, rope = parts(architecture)
    rotate = import_module(type(module).__module__).apply_rotary_pos_emb
    x = states(N_TOKENS, 32)
    shape, attention = layer.weights.shape, module.self_attn
    given = module.input_layernorm(x) if hasattr(module, "input_layernorm") else x
    if architecture == "phi3":
        sizes = [n * shape.head_dim for n in (shape.n_heads, *[shape.n_key_heads] * 2)]
        query, key, value = attention.qkv_proj(given).split(sizes, dim=-1)
    else:
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (project(given) for project in projections)
    if architecture.startswith("olmo"):  # all heads as one
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key, value = (
        part.unflatten(1, (-1, shape.head_dim)).transpose(0, 1)[None]
        for part in (query, key, value)
    )
    if architecture in ("qwen3", "gemma3_text"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    if architecture == "smollm3":  # whose last layer rotates nothing
        assert rope is None
    else:
        cos, sin = (part[:, 0][None] for part in rope)
        query, key = rotate(query, key, cos, sin)
    expected = query, key, value
    heads = heads_of(x, rope, layer.weights, training=False)
    for one, other in zip(heads, expected, strict=True):
        torch.testing.assert_close(one, other[0].transpose(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", TWINS)
def test_the_mlp_half_adds_the_mlp_of_normalised_states(parts, architecture):
    module, layer, _ = parts(architecture)
    x = states(N_TOKENS, 32)
    if architecture.startswith("gemma"):
        change = module.mlp(module.pre_feedforward_layernorm(x))
        change = module.post_feedforward_layernorm(change)
    elif architecture.startswith("olmo"):
        change = module.post_feedforward_layernorm(module.mlp(x))
    else:
        change = module.mlp(module.post_attention_layernorm(x))
    result = mlp_half(x, layer.weights, training=False, selective=False)
    torch.testing.assert_close(result, x + change, atol=1e-5, rtol=1e-5)


def test_the_attention_half_is_its_steps(parts):
    module, layer, rope = parts()
    layout, scores = PackedLayout(LENGTHS, CPU), layer.weights.shape.scores
    x, common = states(N_TOKENS, 32), (layer.weights, False)
    attention = layout.attention(layer.window)
    seen = attend(heads_of(x, rope, *common), attention, scores)
    projected = module.self_attn.o_proj(seen.flatten(1))
    expected = x + module.post_attention_layernorm(projected)
    for result in (
        attention_half(x, rope, attention, *common),
        after_attention(x, seen, *common),
    ):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_a_recomputed_mlp_has_the_same_output_and_gradients(parts):
    _, layer, _ = parts()
    group = layer.weights.groups["gate_up"]
    results = []
    for selective in (False, True):
        x = states(N_TOKENS, 32).requires_grad_()
        output = mlp_half(x, layer.weights, True, selective)
        leaves = [x, *group.a, *group.b]
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("at_once", [False, True])
def test_kept_tokens_attend_as_all_tokens_do(parts, monkeypatch, at_once, window):
    monkeypatch.setattr(decoder_layer, "all_scores_at_once", lambda _: at_once)
    _, layer, rope = parts()
    scores = layer.weights.shape.scores
    keep = torch.tensor([4, 34, 35, N_TOKENS - 1, 4])
    layout = PackedLayout(LENGTHS, CPU, keep=keep)
    heads = heads_of(states(N_TOKENS, 32), rope, layer.weights, False)
    expected = attend(heads, layout.attention(window), scores)[keep]
    result = attention_of_kept(heads, layout, window, scores)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_few_tokens_attend_to_all_at_once_on_a_gpu():
    meta = torch.device("meta")
    few, many = (torch.empty(n, dtype=torch.int64, device=meta) for n in (128, 192))
    assert decoder_layer.all_scores_at_once(few)
    assert not decoder_layer.all_scores_at_once(many)
    assert not decoder_layer.all_scores_at_once(torch.zeros(64, dtype=torch.int64))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_norm_is_computed_in_float32_and_may_be_missing(parts, architecture):
    module, layer, _ = parts(architecture)
    x = (300 * states(5, 32)).half()  # whose squares are beyond float16
    result = normalised(x, "before_attention", layer.weights)
    wide = x.float()
    wide = (
        wide / (wide.square().mean(-1, keepdim=True) + layer.weights.shape.eps).sqrt()
    )
    weight = module.input_layernorm.weight + (architecture == "gemma2")
    torch.testing.assert_close(result.float(), wide * weight, atol=2e-3, rtol=2e-3)
    has_norm = architecture == "gemma2"
    after = normalised(x, "after_mlp", layer.weights)
    assert (after is not x) is has_norm


def test_rotation_turns_pairs_of_values_by_their_angle():
    x, angle = states(6, 2, 8), states(6, 4)
    both = torch.cat([angle, angle], 1)[:, None]
    result = rotated(x, (both.cos(), both.sin()))
    pairs = torch.complex(x[..., :4], x[..., 4:])
    expected = pairs * torch.polar(torch.ones_like(angle), angle)[:, None]
    torch.testing.assert_close(result, torch.cat([expected.real, expected.imag], 2))

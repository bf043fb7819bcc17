"""Compare the engine with transformers and PEFT, on tiny models.

"Relative" errors are norms of differences over norms of what is expected.
"""

import gc
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from engine_samples import (
    ADAPTERS,
    BASES,
    LENGTHS,
    LORA,
    ROWS,
    TARGETS,
    TWINS,
    adapt,
    adapter,
    gradients,
    groups_of,
    is_fast,
    loss_of,
    plain,
    relative,
    step,
)
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from prefdistill.engine import decoder_layer, engine
from prefdistill.engine.architectures import LLAMA, architecture_of
from prefdistill.engine.device import SHARDED
from prefdistill.engine.engine import Engine
from prefdistill.engine.packing import collate
from prefdistill.models.forward import classify, core_model, engine_of
from prefdistill.models.loading import load_classifier
from prefdistill.training.ema import WeightAverage

# Some rows with the row before: its first tokens, and how many.
SHARED = np.array([0, 0, 6, 0, 16, 0, 0])
SHARED_ROWS = [
    np.concatenate([ROWS[n - 1][:common], row[common:]])
    for n, (row, common) in enumerate(zip(ROWS, SHARED, strict=True))
]


def set_recompute(model, how):
    engine_of(model).set_recompute(how)


def assert_same(one, other, tolerance=1e-5):
    (logits, grads), (expected, expected_grads) = one, other
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)
    assert grads.keys() == expected_grads.keys()
    scale = max(grad.abs().max() for grad in expected_grads.values())
    for name, grad in grads.items():
        torch.testing.assert_close(
            grad, expected_grads[name], atol=tolerance * scale, rtol=0
        )


def assert_equal(one, other):
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(grad, other[1][name]) for name, grad in one[1].items())


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("base", ["fp32", "nf4"])
@pytest.mark.parametrize("architecture", TWINS)
def test_equals_transformers_and_peft(judge, architecture, base, name):
    """Within 1e-5 of logits, and of the largest gradient; packed and single rows."""
    lora = adapter(architecture, name)
    model, reference = (judge(architecture, base, lora) for _ in range(2))
    assert is_fast(model)
    single = [[row] for row in ROWS]
    with plain(reference):
        expected = step(reference, single)
    n_layers = 2 - (lora["lowest_layer"] if lora else 2)
    paths = architecture_of(core_model(model).config).linear_modules
    n_targets = {"qv": len(lora["targets"]) if lora else 0}.get(name, len(paths))
    n_adapted = n_layers * n_targets
    assert sum("lora_" in name for name in expected[1]) == 2 * n_adapted
    assert all(grad.abs().max() > 0 for grad in expected[1].values())
    assert_same(step(model), expected)
    assert_same(step(model, single), expected)
    with plain(model):  # its weights have become views of gathered ones
        assert_same(step(model, single), expected)


@pytest.mark.parametrize("base", ["fp32", "nf4"])
@pytest.mark.parametrize("architecture", TWINS)
def test_tokens_that_rows_share_are_computed_once_to_the_same(
    judge, architecture, base
):
    """Windows of 7 reach from a row's own tokens into the common ones, not to their
    beginning.
    """
    model, reference = (judge(architecture, base) for _ in range(2))
    with plain(reference):
        expected = step(reference, [[row] for row in SHARED_ROWS])
    assert collate(SHARED_ROWS, 1, SHARED).input_ids.size == sum(LENGTHS) - 22
    assert is_fast(model)
    assert_same(step(model, [SHARED_ROWS], shared=SHARED), expected)
    for how in ("selective", "full"):
        set_recompute(model, how)
        assert_same(step(model, [SHARED_ROWS], shared=SHARED), expected)
    set_recompute(model, "none")
    with plain(model):
        assert_same(step(model, [SHARED_ROWS], shared=SHARED), expected)


def test_the_biases_and_windows_of_tiny_models_count(judge):
    """Else the test above would not see them."""
    for architecture in ("qwen2", "llama_with_biases"):
        base = core_model(judge(architecture))
        assert base.model.layers[0].self_attn.q_proj.base_layer.bias.abs().min() > 0
    for architecture, windows in (
        ("qwen2", {None, 7}),
        ("gemma2", {None, 7}),
        ("mistral", {7}),
    ):
        model = judge(architecture)
        assert is_fast(model)
        assert {layer.window for layer in engine_of(model).layers} == windows


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("targets", [TARGETS, ["down_proj"], ["v_proj"]])
def test_an_adapter_may_come_after_the_first_use(judge, base, targets):
    lora = LORA | {"targets": targets}
    late, early = judge("gemma2", base, None), judge("gemma2", base, lora)
    with torch.inference_mode():
        bare = classify(late, collate(ROWS))
    late.score.requires_grad_(False)
    late = adapt(late, lora)
    one, other = step(late), step(early)
    assert_equal(one, other)
    assert (one[0] - bare).abs().max() > 1e-3


def test_an_adapter_may_be_disabled_or_merged(judge):
    model, bare = judge("qwen2"), judge("qwen2", lora=None)
    core_model(bare).score.requires_grad_(False)
    adapted = step(model)[0]
    with torch.no_grad():
        with model.disable_adapter():
            assert not is_fast(model)
            # The head is an adapter's too, and as drawn.
            other = classify(model, collate(ROWS))
            torch.testing.assert_close(other, classify(bare, collate(ROWS)))
        assert is_fast(model)
        again = classify(model.eval(), collate(ROWS))
        torch.testing.assert_close(again, adapted, atol=1e-5, rtol=1e-5)
        merged = model.merge_and_unload()
        assert is_fast(merged)
        after = classify(merged, collate(ROWS))
    torch.testing.assert_close(after, adapted, atol=1e-5, rtol=1e-5)


def test_a_model_may_move(judge):
    """Through bfloat16, which rounds the base and the adapter."""
    models = [judge("gemma2") for _ in range(2)]
    for model in models:
        step(model)
        model.to(torch.bfloat16).to(torch.float32)
    with plain(models[1]):
        expected = step(models[1])
    assert_same(step(models[0]), expected)


@pytest.mark.parametrize("base", BASES)
def test_training_may_follow_inference_mode(judge, base):
    model = judge("llama", base)
    with torch.inference_mode():
        before = classify(model, collate(ROWS))
    one = step(model)
    assert torch.equal(before, one[0])
    assert_equal(one, step(judge("llama", base)))


@pytest.mark.parametrize("base", BASES)
def test_changed_adapters_count_at_once(judge, base):
    model, reference = judge("gemma2", base), judge("gemma2", base)
    first = step(model)
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=1e-2
    )
    optimizer.step()
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if weight.requires_grad:
                weight.copy_(weights[name])
    second = step(model)
    assert_equal(second, step(reference))
    assert (second[0] - first[0]).abs().max() > 1e-3
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.1)
                weights[name].copy_(weight)
    third = step(model)
    assert_equal(third, step(reference))
    assert (third[0] - second[0]).abs().max() > 1e-3


def test_loaded_and_averaged_adapters_count_at_once(judge):
    model, batch = judge("llama"), collate(ROWS)

    def logits():
        values = classify(model, batch).detach()
        with plain(model):
            torch.testing.assert_close(values, classify(model, batch).detach())
        assert is_fast(model)
        return classify(model, batch).detach()

    named = model.named_parameters()
    average = WeightAverage({n: w for n, w in named if w.requires_grad}, 0.5)
    before = logits()
    state = get_peft_model_state_dict(model)
    set_peft_model_state_dict(model, {name: 2 * w for name, w in state.items()})
    loaded = classify(model, batch).detach()
    assert torch.equal(loaded, logits())
    average.update()
    with average.in_place():
        mean = classify(model, batch).detach()
        assert torch.equal(mean, logits())
    assert torch.equal(loaded, classify(model, batch).detach())
    assert min((mean - other).abs().max() for other in (before, loaded)) > 1e-3


@pytest.mark.parametrize("how", engine.RECOMPUTE)
@pytest.mark.parametrize("base", BASES)
def test_two_forwards_before_one_backward(judge, base, how):
    model = judge("gemma2", base)
    set_recompute(model, how)
    halves = ROWS[:3], ROWS[3:]
    model.train().zero_grad()
    losses = [loss_of(model, [half])[1] for half in halves]
    sum(losses).backward()
    both = gradients(model)
    parts = [step(model, [half])[1] for half in halves]
    assert relative(both, {n: parts[0][n] + parts[1][n] for n in both}) < 1e-6


def test_a_backward_after_a_change_is_an_error(judge):
    """Not a gradient at other weights than the loss's."""
    model = judge("llama")
    _, loss = loss_of(model.train(), [ROWS])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(1)
    is_fast(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


MANY_ROWS = [np.random.default_rng(n).integers(4, 400, 2 + n % 5) for n in range(70)]
BATCHES = {
    "one row": (ROWS[:1], None),
    "rows": (ROWS, None),
    "shared": (SHARED_ROWS, SHARED),
    "many rows": (MANY_ROWS, None),
}


def classify_from_all(model, batch):
    """Logits from the states of all tokens."""
    states = engine_of(model).forward(batch)
    return core_model(model).score(states[batch.last].float())


@pytest.mark.parametrize("at_once", [False, True], ids=["by rows", "at once"])
@pytest.mark.parametrize("how", engine.RECOMPUTE)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("architecture", TWINS)
def test_the_last_layer_of_last_tokens_alone_changes_nothing(
    judge, architecture, base, how, at_once, monkeypatch
):
    """With attention as on the CPU, and as on a GPU."""
    monkeypatch.setattr(decoder_layer, "all_scores_at_once", lambda _: at_once)
    model = judge(architecture, base)
    set_recompute(model, how)
    for rows, shared in BATCHES.values():
        expected = step(model, [rows], shared=shared, judge=classify_from_all)
        result = step(model, [rows], shared=shared)
        if base == "fp8":  # where a sum's rounding may move a value to the next
            assert relative(result[0], expected[0]) < 0.01
            assert relative(result[1], expected[1]) < 0.02
        else:
            assert_same(result, expected)
        with torch.inference_mode():
            scored = classify(model, collate(rows, 1, shared))
        assert torch.equal(scored, result[0])


@pytest.mark.parametrize("how", engine.RECOMPUTE)
@pytest.mark.parametrize("batch", BATCHES)
def test_the_last_mlp_is_of_last_tokens_alone(judge, batch, how):
    """Up to a multiple of 64; of all tokens where all states are asked for."""
    rows, shared = BATCHES[batch]
    model = judge("gemma2")
    set_recompute(model, how)
    n_tokens = collate(rows, 1, shared).input_ids.size
    n_last = {"many rows": 128}.get(batch, 64)
    real, seen = engine.mlp_half, []

    def watched(x, *rest):
        seen.append(len(x))
        return real(x, *rest)

    with mock.patch.object(engine, "mlp_half", watched):
        step(model, [rows], shared=shared)
        again = [n_last, n_tokens] if how == "full" else []
        assert seen == [n_tokens, n_last, *again]
        seen.clear()
        engine_of(model).forward(collate(rows, 1, shared))
        assert seen == [n_tokens, n_tokens]


@pytest.mark.parametrize("is_known", [True, False])
def test_states_of_some_tokens(judge, is_known):
    model, batch = judge("qwen2", lora=None).eval(), collate(ROWS)
    keep = torch.tensor([3, 99, 0, 3, 41])
    if not is_known:
        make_odd(core_model(model))
    assert is_fast(model) is is_known
    with torch.no_grad():
        states = engine_of(model).forward(batch)
        kept = engine_of(model).forward(batch, keep)
    assert states.shape == (sum(LENGTHS), 32)
    torch.testing.assert_close(kept, states[keep])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("architecture", TWINS)
def test_recomputation_changes_nothing(judge, architecture, base, dropout):
    model = judge(architecture, base, LORA | {"dropout": dropout})
    results = []
    for how in engine.RECOMPUTE:
        set_recompute(model, how)
        results.append(step(model, seed=5))
    assert_equal(results[1], results[0])
    assert_equal(results[2], results[0])
    if dropout:
        assert not torch.equal(step(model, seed=6)[0], results[0][0])


class Counted(TorchDispatchMode):
    """Counts the operations that are computed."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func] += 1
        return func(*args, **(kwargs or {}))


PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.prefdistill.fp8_product.default,
    torch.ops.prefdistill.nf4_product.default,
    torch.ops.prefdistill.gated_down.default,
)


def counted_step(model):
    with Counted() as counter:
        step(model)
    products = sum(counter.counts[op] for op in PRODUCTS)
    return products, counter.counts[torch.ops.aten.rsqrt.default]


@pytest.mark.parametrize("base", BASES)
def test_selective_recomputation_is_of_gate_and_up(judge, base):
    """A norm and two products (frozen, low-rank) a layer; ``full`` does all twice."""
    model = judge("llama", base)
    counts = {}
    for how in engine.RECOMPUTE:
        set_recompute(model, how)
        counts[how] = counted_step(model)
    n_products, n_norms = counts["none"]
    assert n_norms == 5
    assert counts["selective"] == (n_products + 2 * 2, n_norms + 2)
    # Both low-rank and frozen products of three groups in two layers, and down's own.
    assert counts["full"] == (n_products + 2 * (3 * 2 + 1), n_norms + 4)


def bytes_kept(model):
    """What a forward pass leaves allocated for the backward pass."""
    from torch.profiler import ProfilerActivity, profile

    model.train()
    step(model)
    batch = collate([np.arange(300) % 300 + 4] * 4)
    gc.collect()  # else what earlier tests left may be freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        logits = classify(model, batch)
    assert logits.requires_grad
    return sum(event.self_cpu_memory_usage for event in record.key_averages())


@pytest.mark.parametrize("base", BASES)
def test_recomputation_saves_memory(judge, base):
    """Of 1200 tokens: a layer's input, 32 float32 values a token, is the least."""
    kept = {}
    model = judge("llama", base)
    for how in engine.RECOMPUTE:
        set_recompute(model, how)
        kept[how] = bytes_kept(model)
    assert kept["none"] > kept["selective"] > 2 * kept["full"]
    assert kept["full"] > 2 * 4 * 32 * 1200


def test_saved_tensors_shrink(judge):
    """Outside the recomputed regions, which keep theirs to themselves."""
    saved = {}
    model = judge("gemma2")
    model.train()
    for how in engine.RECOMPUTE:
        set_recompute(model, how)
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            classify(model, collate(ROWS))
        saved[how] = sum(sizes.values())
    assert saved["none"] > saved["selective"] > saved["full"]


@pytest.mark.parametrize("base", BASES)
def test_no_gradient_below_the_lowest_adapter(judge, base):
    model = judge("gemma2", base, LORA | {"lowest_layer": 1})
    seen = []
    real = engine.Layer.forward

    def watched(*arguments):
        states = real(*arguments)
        seen.append(states.requires_grad)
        return states

    with mock.patch.object(engine.Layer, "forward", watched):
        step(model)
    assert seen == [False, True]
    if base == "fp8":  # nor the weights that it would take
        held = ["weight_t" in groups["qkv"].frozen for groups in groups_of(model)]
        assert held == [False, True]
    with Counted() as whole:
        step(judge("gemma2", base))
    with Counted() as upper:
        step(judge("gemma2", base, LORA | {"lowest_layer": 1}))
    n_whole, n_upper = (
        sum(counter.counts[op] for op in PRODUCTS) for counter in (whole, upper)
    )
    # Below there are but the four products of a forward pass; three are the head's.
    assert n_upper == (n_whole - 3) / 2 + 4 + 3


class Odd(nn.Linear):
    """A layer of a kind that the engine does not know."""


def make_odd(core):
    for layer in core.model.layers:
        linear = layer.mlp.up_proj
        odd = Odd(linear.in_features, linear.out_features, bias=False)
        odd.weight = linear.weight
        layer.mlp.up_proj = odd


def peft_with(**settings):
    def change(model):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LoraConfig(
            task_type="SEQ_CLS", r=4, lora_alpha=6, target_modules=TARGETS, **settings
        )
        model = get_peft_model(model, config)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.05)
        return model

    return change


def with_config(**settings):
    def change(model):
        for name, value in settings.items():
            setattr(model.config, name, value)
        return model

    return change


def with_odd(model):
    make_odd(model)
    return model


def trainable(name):
    def change(model):
        model.get_parameter(name).requires_grad_(True)
        return model

    return change


def sharded(model):
    setattr(model, SHARDED, True)
    return model


LAYER = "model.layers.1."
FALLS_BACK = {
    "unknown module": with_odd,
    "dora": peft_with(use_dora=True),
    "ranks differ": peft_with(rank_pattern={"k_proj": 2}),
    "scales differ": peft_with(alpha_pattern={"gate_proj": 3}),
    "activation": with_config(hidden_act="gelu"),
    "sharded": sharded,
    "weight trains": trainable(f"{LAYER}mlp.down_proj.weight"),
    "bias trains": trainable(f"{LAYER}self_attn.q_proj.bias"),
}


@pytest.mark.parametrize("what", FALLS_BACK)
def test_what_is_not_known_goes_the_plain_way(judge, what):
    change = FALLS_BACK[what]
    model, reference = (change(judge("llama_with_biases", lora=None)) for _ in "ab")
    assert not is_fast(model)
    assert not engine_of(model).layers
    with plain(reference):
        expected = step(reference)
    assert_equal(step(model), expected)


@pytest.mark.parametrize(
    "settings",
    [{"use_rslora": True}, {"init_lora_weights": "gaussian"}, {"lora_dropout": 0.0}],
)
def test_lora_of_other_scales_and_beginnings_is_known(judge, settings):
    change = peft_with(**settings)
    model, reference = (change(judge("gemma2", lora=None)) for _ in range(2))
    assert is_fast(model)
    with plain(reference):
        expected = step(reference)
    assert_same(step(model), expected)


def test_layers_of_other_settings_are_not_known():
    def config(**changes):
        known = {
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_size": 32,
            "rms_norm_eps": 1e-6,
        }
        return SimpleNamespace(**{**known, **changes})

    assert architecture_of(config()) is LLAMA
    assert architecture_of(config(attention_dropout=0.1)) is None
    assert architecture_of(config(model_type="olmo")) is None
    assert architecture_of(config(hidden_act="relu")) is None
    assert architecture_of(SimpleNamespace(model_type="gpt2")) is None


def test_other_models_are_left_alone():
    """They may lack what the engine looks for."""
    config = SimpleNamespace(model_type="gpt2")
    core = SimpleNamespace(config=config, base_model=None)
    assert not Engine(core).refresh()


def test_layers_are_compiled_where_the_work_makes_up_for_it(tiny_model_folder):
    model = load_classifier(tiny_model_folder("llama"), "fp32")
    for n_operations, how, compiled in (
        (1e14, "auto", False),
        (1e17, "auto", True),
        (1e14, "always", True),
        (1e17, "never", False),
    ):
        engine_of(model).set_compiled(n_operations, how)
        assert engine_of(model).compiled is compiled

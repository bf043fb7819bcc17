"""Products of frozen weights and LoRA against plain layers."""

import pytest
import torch
from engine_samples import BASES, LORA, groups_of, is_fast, linear_modules, relative
from torch import nn
from torch.nn.functional import linear

from prefdistill.engine import fp8, frozen, nf4
from prefdistill.models.forward import core_model


def storages(tensors):
    """Bytes of distinct storages by address."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return found


@pytest.mark.parametrize("has_gradient", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_gathered_weights_take_no_more_memory(judge, base, has_gradient):
    """But for LoRA's columns, and fp8's second copy where a gradient passes through."""
    lora = LORA if has_gradient else None
    model = judge("llama_with_biases", base, lora)
    core = core_model(model)

    def held():
        tensors = [*core.parameters(), *core.buffers()]
        for groups in groups_of(model):
            for group in groups.values():
                tensors += group.frozen.values()
        for module in core.modules():
            state = nf4.quant_state(module)
            if state is not None:
                tensors += [state.absmax, state.offset]
                tensors += [state.state2.absmax, state.state2.code]
        return sum(storages(tensors).values())

    before = held()
    assert is_fast(model)
    modules = linear_modules(core).values()
    biases = sum(4 * module.out_features for module in modules)
    # q, k and v share columns of zeros beside each other's B; so do gate and up. In fp8
    # they are a byte each, but rounded up to 16.
    wide = sum(4 * LORA["r"] * module.out_features for module in modules)
    expected = biases + (3 * wide if has_gradient else 0)
    if base == "fp8":
        expected += biases  # as many scales
    if base == "fp8" and has_gradient:
        expected += wide  # 16 for 4 columns
        for groups in groups_of(model):
            for group in groups.values():
                expected += group.frozen["weight"].numel() + 4
                expected += 4 * group.frozen["weight"].shape[1]
    assert before < held() <= before + expected


def make_group(kind="plain", adapted=(0, 2), *, rank=3, dropout=0.0, same=False):
    """Three random layers, two of them with LoRA; and what makes them up."""
    torch.manual_seed(0)
    sizes, n_inputs = (8, 16, 8), 64
    layers = [nn.Linear(n_inputs, size) for size in sizes]
    for layer in layers:
        layer.requires_grad_(False)
        if kind == "fp8":
            fp8.to_fp8(layer)
    a = [torch.randn(rank, n_inputs) for _ in adapted]
    b = [torch.randn(sizes[index], rank) for index in adapted]
    if same:
        a, b = [a[0]] * len(a), [b[0]] * len(b)
    a, b = ([nn.Parameter(each.clone()) for each in every] for every in (a, b))
    weights = frozen.gather(kind, layers, rank * len(adapted), True)
    group = frozen.Group(
        kind, weights, sizes, adapted, tuple(a), tuple(b), 1.5, dropout
    )
    group.refresh()
    return group, layers


def project(x, group, training):
    """Outputs of a group's layers."""
    return frozen.product(x, group, training).split(group.sizes, dim=1)


def plain_project(x, group, layers, inputs=None):
    """By definition, LoRA's input apart if it is dropped out."""
    inputs = x if inputs is None else inputs
    outputs = []
    for index, layer in enumerate(layers):
        weight = layer.weight
        if group.kind == "fp8":
            weight = layer.fp8_weight.float() * layer.fp8_scale
        output = linear(x, weight, layer.bias)
        if index in group.adapted:
            place = group.adapted.index(index)
            low = linear(inputs, group.a[place])
            output = output + linear(low, group.b[place]) * group.scaling
        outputs.append(output)
    return outputs


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("adapted", [(), (1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("kind", ["plain", "fp8"])
def test_products_and_gradients(kind, adapted, dropout):
    """fp8's own, whose rows are rounded anew in each pass, within 4 %."""
    group, layers = make_group(kind, adapted, dropout=dropout)
    x = torch.randn(50, 64, requires_grad=True)
    leaves = [x, *group.a, *group.b]
    direction = [torch.randn(50, size) for size in group.sizes]

    def differentiate(outputs):
        loss = sum((y * d).sum() for y, d in zip(outputs, direction, strict=True))
        return torch.autograd.grad(loss, leaves)

    torch.manual_seed(1)
    outputs = project(x, group, training=True)
    torch.manual_seed(1)
    inputs = nn.functional.dropout(x, dropout) if dropout else x
    expected = plain_project(x, group, layers, inputs)
    tolerance = 0.04 if kind == "fp8" else 1e-6
    for one, other in zip(outputs, expected, strict=True):
        assert relative(one, other) < tolerance
    own, others = differentiate(outputs), differentiate(expected)
    for one, other in zip(own, others, strict=True):
        assert one.dtype == other.dtype
        assert relative(one, other) < tolerance
    with torch.no_grad():
        torch.manual_seed(1)
        again = project(x, group, training=True)
    assert all(map(torch.equal, again, outputs))


def test_layers_that_read_the_same_input_share_a_mask():
    group, layers = make_group(dropout=0.5, same=True)
    for layer in layers:  # whose weights have become views, but for the bias
        layer.weight.zero_()
    group.frozen["bias"].zero_()
    x = torch.randn(200, 64)
    first, none, second = project(x, group, training=True)
    torch.testing.assert_close(first, second)
    assert not none.any()
    again = project(x, group, training=True)[0]
    assert (first - again).abs().max() > 1


def test_dropout_keeps_the_expected_value_and_ends_with_training():
    group, _ = make_group(dropout=0.3)
    x = torch.randn(1, 64)
    exact = torch.cat(project(x, group, training=False), 1)
    many = x.expand(40_000, 64)
    outputs = torch.cat(project(many, group, training=True), 1).detach()
    error = outputs.std(0) / 200
    assert ((outputs.mean(0) - exact[0]).abs() < 5 * error + 1e-5).all()
    assert error[:8].min() > 0
    again = torch.cat(project(x, group, training=False), 1)
    assert torch.equal(exact, again)

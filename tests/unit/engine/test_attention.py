"""Packed attention against one row at a time, and whole models against plain ones."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from packed_samples import CPU, LENGTHS, places_of
from torch.nn.attention.flex_attention import (
    flex_attention,
)

from prefdistill.engine import attention
from prefdistill.engine.architectures import ARCHITECTURES
from prefdistill.engine.attention import Scores, attention_of_some, packed_attention
from prefdistill.engine.block_masks import BLOCK, block_mask
from prefdistill.engine.layout import PackedLayout
from prefdistill.engine.packing import collate
from prefdistill.models.forward import classify
from prefdistill.models.loading import load_classifier
from prefdistill.models.lora import add_adapter
from prefdistill.settings import LoraSettings, read

# Laid-out tokens of rows, and how many of the row before some of them begin with.
SHARED_LENGTHS = (5, 30, 11, 17, 29, 1, 30, 9)
SHARED = (0, 0, 6, 0, 0, 28, 0, 29)
LORA = {
    "r": 4,
    "alpha": 8,
    "dropout": 0.0,
    "targets": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "lowest_layer": 0,
}


def plain_attention(query, key, value, scaling, softcap, window):
    """Attention of one row, ``(heads, length, dim)``, as the definition says."""
    n_repeats = query.shape[0] // key.shape[0]
    key, value = (x.repeat_interleave(n_repeats, dim=0) for x in (key, value))
    output = torch.zeros_like(query)
    for head in range(query.shape[0]):
        for i in range(query.shape[1]):
            first = 0 if window is None else max(0, i - window + 1)
            scores = key[head, first : i + 1] @ query[head, i] * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = scores.softmax(dim=0)
            output[head, i] = weights @ value[head, first : i + 1]
    return output.transpose(0, 1)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 4, 8])
@pytest.mark.parametrize(
    ("path", "lengths", "shared"),
    [
        ("cpu", LENGTHS, None),
        ("flex", LENGTHS, None),
        ("cpu", SHARED_LENGTHS, SHARED),
        ("flex", SHARED_LENGTHS, SHARED),
    ],
)
def test_packed_equals_the_definition(
    path, lengths, shared, softcap, window, monkeypatch
):
    """FlexAttention, the GPU's path, runs here uncompiled on the CPU."""
    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: flex_attention)
    generator = torch.Generator().manual_seed(0)
    n_tokens = sum(lengths)
    query = torch.randn(1, 4, n_tokens, 8, generator=generator)
    key, value = torch.randn(2, 1, 2, n_tokens, 8, generator=generator)
    layout = PackedLayout(np.array(lengths), CPU, shared and np.array(shared))
    if path == "flex":
        made = block_mask(layout.lengths, layout.shared, window, BLOCK, CPU)
    else:
        made = layout.attention(window)
    output = packed_attention(query, key, value, made, Scores(0.7, softcap))
    assert output.shape == (n_tokens, 4, 8)
    # The second of two rows computes their common tokens again, to the same.
    for places in places_of(lengths, shared or [0] * len(lengths)):
        expected = plain_attention(
            *(x[0, :, places] for x in (query, key, value)), 0.7, softcap, window
        )
        torch.testing.assert_close(output[places], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 4, 8, 99])
@pytest.mark.parametrize(
    ("lengths", "shared"), [(LENGTHS, None), (SHARED_LENGTHS, SHARED)]
)
def test_attention_of_some_is_that_of_all(lengths, shared, window, softcap):
    """With gradients; some of the tokens lie backwards, one is kept twice."""
    generator = torch.Generator().manual_seed(0)
    n_tokens = sum(lengths)
    states = [
        torch.randn(n, n_tokens, 8, generator=generator).requires_grad_()
        for n in (4, 2, 2)
    ]
    keep = torch.tensor([0, 7, 35, 36, 44, 45, 90, n_tokens - 1, 44])
    layout = PackedLayout(np.array(lengths), CPU, shared and np.array(shared), keep)
    made = layout.attention(window)
    scores = Scores(0.7, softcap)
    whole = packed_attention(*(x[None] for x in states), made, scores)[keep]
    query, key, value = (x.transpose(0, 1) for x in states)
    seen = layout.seen_by_kept(window)
    some = attention_of_some(query[keep], key, value, seen, scores)
    assert some.shape == (len(keep), 4, 8)
    torch.testing.assert_close(some, whole, atol=1e-5, rtol=1e-5)
    gradient = torch.randn(some.shape, generator=generator)
    expected = torch.autograd.grad(whole, states, gradient)
    for one, other in zip(
        torch.autograd.grad(some, states, gradient), expected, strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_refuses_a_call_without_layout():
    with pytest.raises(ValueError, match="packed="):
        attention._layer_attention(
            None, *[torch.zeros(1, 1, 1, 1)] * 3, None, scaling=1.0
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"s_aux": torch.zeros(4)}, "its attention takes s_aux"),
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, "takes attention_mask"),
        ({"is_causal": True}, "takes is_causal"),
    ],
)
def test_refuses_arguments_that_it_does_not_compute(arguments, said):
    """Sinks, or a mask, that are swallowed would give wrong logits without a word."""
    arguments = {"attention_mask": None, "scaling": 1.0} | arguments
    layout = PackedLayout(np.array([3]), CPU)
    with pytest.raises(attention.NotPackable, match=said):
        attention._layer_attention(
            None, *[torch.zeros(1, 4, 3, 8)] * 3, packed=layout, **arguments
        )


def test_refuses_attention_that_is_not_causal():
    module, layout = SimpleNamespace(is_causal=False), PackedLayout(np.array([3]), CPU)
    with pytest.raises(attention.NotPackable, match="not causal"):
        attention._layer_attention(
            module, *[torch.zeros(1, 4, 3, 8)] * 3, None, scaling=1.0, packed=layout
        )


@pytest.fixture(params=[(a, p) for a in ARCHITECTURES for p in ("fp32", "nf4")])
def judge(request, tiny_model_folder):
    """A classifier whose adapter changes its logits, as B is not zero."""
    architecture, precision = request.param
    model = load_classifier(tiny_model_folder(architecture), precision)
    fused = {"targets": ["o_proj", "gate_up_proj"]} if architecture == "phi3" else {}
    model = add_adapter(model, read(LoraSettings, LORA | fused), seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    return model


def test_packed_logits_and_gradients_equal_single_rows(judge, rows):
    """Within 1e-5 of the largest logit, and 1e-4 of the largest gradient."""
    judge.train()

    def logits_and_gradients(batches):
        judge.zero_grad()
        logits = torch.cat([classify(judge, collate(batch)) for batch in batches])
        weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
        (logits * weights).sum().backward()
        grads = {n: w.grad for n, w in judge.named_parameters() if w.grad is not None}
        return logits.detach(), grads

    packed, packed_grads = logits_and_gradients([rows])
    single, single_grads = logits_and_gradients([[row] for row in rows])
    torch.testing.assert_close(packed, single, atol=1e-5, rtol=1e-5)
    assert packed_grads.keys() == single_grads.keys()
    targets = judge.peft_config["default"].target_modules
    assert sum("lora_" in name for name in packed_grads) == 2 * 2 * len(targets)
    scale = max(grad.abs().max() for grad in single_grads.values())
    for name, grad in packed_grads.items():
        torch.testing.assert_close(grad, single_grads[name], atol=1e-4 * scale, rtol=0)
        assert grad.abs().max() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_equals_the_padded_model_of_transformers(
    architecture, tiny_model_folder, rows
):
    from transformers import AutoModelForSequenceClassification

    folder = tiny_model_folder(architecture)
    model = load_classifier(folder, "fp32", head_seed=3)
    plain = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, attn_implementation="eager", dtype=torch.float32
    ).eval()
    plain.score.load_state_dict(model.score.state_dict())
    longest = max(map(len, rows))
    padded = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
    mask = np.stack([np.arange(longest) < len(row) for row in rows])
    with torch.no_grad():
        expected = plain(
            input_ids=torch.from_numpy(padded), attention_mask=torch.from_numpy(mask)
        ).logits
        logits = classify(model, collate(rows))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert logits.std() > 0.01

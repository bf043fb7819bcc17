"""A row's rotary embedding is that of its own length, whatever rows are beside it."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from prefdistill.engine.attention import ATTENTION, register
from prefdistill.engine.packing import collate
from prefdistill.engine.rope import RowRope, follow_rows, tell_lengths
from prefdistill.models.forward import classify

TRAINED = 24
ROPES = {
    "dynamic": {"factor": 2.0},
    "longrope": {
        "factor": 4.0,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
        "original_max_position_embeddings": TRAINED,
    },
}
# Both orders of a pair, in which 9 tokens are shared; rows on both sides of 24 tokens.
LENGTHS, SHARED = (40, 40, 11, 60, 24, 25), (0, 9, 0, 0, 0, 0)


def model_with(kind, attention):
    """The same tiny classifier for the same kind of rope, never used before."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TRAINED,
        rope_parameters={"rope_type": kind, "rope_theta": 1e4, **ROPES[kind]},
        num_labels=3,
        pad_token_id=0,
    )
    register()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(
        config, attn_implementation=attention
    )
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.2)
    return model.eval()


def rows():
    rng, made = np.random.default_rng(0), []
    for length, shared in zip(LENGTHS, SHARED, strict=True):
        row = rng.integers(3, 100, length)
        row[:shared] = made[-1][:shared] if shared else row[:shared]
        made.append(row)
    return made


@pytest.mark.parametrize("shared", [None, np.array(SHARED)], ids=["whole", "shared"])
@pytest.mark.parametrize("kind", ROPES)
def test_packed_rows_have_the_logits_of_rows_alone(kind, shared):
    with torch.no_grad():
        # A new model for each row, as a dynamic rope remembers the longest.
        expected = torch.cat(
            [
                model_with(kind, "eager")(torch.from_numpy(row)[None]).logits
                for row in rows()
            ]
        )
        model = model_with(kind, ATTENTION)
        logits = classify(model, collate(rows(), 1, shared))
        again = classify(model, collate(rows(), 1, shared))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits, again)


@pytest.mark.parametrize("kind", ROPES)
def test_these_ropes_do_choose_by_length(kind):
    """Else the test above would see nothing."""
    short, long = (torch.arange(length)[None] for length in (20, 60))
    decoder = model_with(kind, "eager").model
    alone = decoder.rotary_emb(torch.zeros(1), short)[0]
    with_longer = decoder.rotary_emb(torch.zeros(1), long)[0][:, :20]
    assert (alone - with_longer).abs().max() > 0.01


def test_only_ropes_that_choose_by_length_are_wrapped():
    decoder = model_with("dynamic", "eager").model
    follow_rows(decoder)
    assert isinstance(decoder.rotary_emb, RowRope)
    follow_rows(decoder)
    assert not isinstance(decoder.rotary_emb.rotary, RowRope)
    config = AutoConfig.for_model("llama", num_hidden_layers=1, hidden_size=32)
    plain = type(decoder)(config)
    follow_rows(plain)
    assert not isinstance(plain.rotary_emb, RowRope)
    tell_lengths(plain, collate(rows(), 1))  # which it does not need


def test_a_tokens_length_is_that_of_its_row():
    decoder = model_with("dynamic", "eager").model
    follow_rows(decoder)
    tell_lengths(decoder, collate(rows()[:3], 1, np.array(SHARED[:3])))
    assert decoder.rotary_emb.lengths.tolist() == [40] * (40 + 31) + [11] * 11
    tell_lengths(decoder, None)
    assert decoder.rotary_emb.lengths is None

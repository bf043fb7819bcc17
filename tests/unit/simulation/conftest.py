"""Simulated pairs, and the settings and labels of tiny bases."""

import numpy as np
import pytest
from prompt_samples import TEXT

from prefdistill.data.prompts import encode_pairs
from prefdistill.settings import BaseModelSettings, TextSettings, read
from prefdistill.simulation.dense_labels import make_dense_labels
from prefdistill.simulation.simulated_pairs import N_PROMPTS, draw_answers
from prefdistill.simulation.tiny_models import (
    TINY_MODELS,
    draw_pairs,
    tokenizer_corpus,
    train_tokenizer,
)


@pytest.fixture(scope="session")
def answers():
    """20,000 pairs of answers as indices."""
    rng = np.random.default_rng(0)
    return draw_answers(rng, rng.integers(N_PROMPTS, size=20_000))


@pytest.fixture(scope="session")
def text():
    """The ``text`` settings of a tiny base."""
    return read(TextSettings, TEXT | {"max_length": 256})


@pytest.fixture(scope="session")
def base_settings():
    """Function from an architecture to the settings of a tiny base."""

    def settings(architecture, n_steps=3):
        return BaseModelSettings(
            source="tiny",
            architecture=architecture,
            hidden_size=32,
            n_layers=2,
            n_heads=4,
            pretrain_steps=n_steps,
            seed=0,
            revision=None,
        )

    return settings


@pytest.fixture(scope="session", params=TINY_MODELS)
def architecture(request):
    return request.param


@pytest.fixture(scope="session")
def pairs():
    """400 pairs, as indices and as a table of texts."""
    return draw_pairs(0, 400)


@pytest.fixture(scope="session")
def dense(pairs, text):
    """A tokenizer, the pairs that it encoded, and their labels."""
    answers, table = pairs
    tokenizer = train_tokenizer(tokenizer_corpus(table, text), "gemma2")
    encoded = encode_pairs(table, tokenizer, text)
    return tokenizer, encoded, make_dense_labels(answers, encoded, tokenizer)

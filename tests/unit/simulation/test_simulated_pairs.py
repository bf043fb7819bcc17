import numpy as np
import pytest

from prefdistill.simulation.simulated_pairs import (
    FORMAT_NAMES,
    LENGTHS,
    N_PROMPTS,
    NOUNS,
    QUALITY_WEIGHTS,
    TIE_WEIGHT,
    TOPIC_NAMES,
    Answers,
    answer_qualities,
    answer_texts,
    bayes_log_loss,
    decode_requests,
    draw_answers,
    draw_labels,
    judge_probs,
    prompt_texts,
)


@pytest.fixture(scope="module")
def drawn(answers):
    return answers, answer_qualities(answers)


def swap_answers(answers):
    pairs = ("model", "format", "n_items", "opening", "closing", "items", "empty")
    flipped = {name: getattr(answers, name)[:, ::-1] for name in pairs}
    return Answers(**(vars(answers) | flipped))


def test_probabilities_sum_to_one(drawn):
    probs = judge_probs(drawn[1])
    assert probs.shape == (20_000, 3)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert probs.min() > 0


def test_swapping_the_answers_swaps_the_probabilities(drawn):
    answers, qualities = drawn
    swapped = judge_probs(answer_qualities(swap_answers(answers)))
    np.testing.assert_allclose(swapped, judge_probs(qualities)[:, [1, 0, 2]])


def test_judge_follows_davidson(drawn):
    qualities = drawn[1][:50]
    for (first, second), probs in zip(qualities, judge_probs(qualities), strict=True):
        a, b = np.exp(first @ QUALITY_WEIGHTS), np.exp(second @ QUALITY_WEIGHTS)
        weights = np.array([a, b, TIE_WEIGHT * np.sqrt(a * b)])
        np.testing.assert_allclose(probs, weights / weights.sum())


def test_no_ties_and_noisy_labels(drawn):
    qualities = drawn[1][:50]
    without = judge_probs(qualities, ties=False)
    assert (without[:, 2] == 0).all()
    noisy = judge_probs(qualities, noise=0.3)
    np.testing.assert_allclose(noisy, 0.7 * judge_probs(qualities) + 0.1)


def test_labels_follow_the_probabilities(drawn):
    probs = judge_probs(drawn[1])
    labels = draw_labels(np.random.default_rng(1), probs)
    for class_index in range(3):
        share = (labels == class_index).mean()
        assert share == pytest.approx(probs[:, class_index].mean(), abs=0.012)
    sure = probs[:, 0] > 0.7
    assert (labels[sure] == 0).mean() == pytest.approx(probs[sure, 0].mean(), abs=0.02)


def test_bayes_loss_is_the_entropy_and_well_below_the_prior(drawn):
    probs = judge_probs(drawn[1])
    labels = draw_labels(np.random.default_rng(1), probs)
    entropy = -(probs * np.log(probs)).sum(axis=1).mean()
    assert bayes_log_loss(probs, labels) == pytest.approx(entropy, abs=0.015)
    prior = probs.mean(axis=0)
    assert entropy < -(prior * np.log(prior)).sum() - 0.2


def test_qualities_agree_with_the_text(drawn):
    answers, qualities = drawn
    topics, _, _ = decode_requests(answers.prompt)
    texts = answer_texts(answers, 0)
    for row, prompt in enumerate(prompt_texts(answers)[:300]):
        assert TOPIC_NAMES[topics[row]] in prompt[0]
        text = " ".join(texts[row])
        words = text.lower().replace(".", " ").replace('"', " ").split()
        nouns = [NOUNS.index(word) for word in words if word in NOUNS]
        n_nouns = len(NOUNS) // len(TOPIC_NAMES)
        on_topic = np.mean([noun // n_nouns == topics[row] for noun in nouns])
        assert qualities[row, 0, 0] == pytest.approx(on_topic)
        if len(texts[row]) == 1:
            is_polite = text.endswith(("asking!", "helps!"))
            assert (qualities[row, 0, 1] > 0.5) <= is_polite
        is_json = texts[row][0].find('{"steps": [') >= 0
        assert is_json == (answers.format[row, 0] == 2)


def test_requests_agree_with_the_text(answers):
    words = {
        "list": ("bullet list", "checklist", " list "),
        "prose": ("paragraph", "plain text", "note"),
        "json": ("JSON",),
    }
    topics, formats, asks_long = (
        each[:300] for each in decode_requests(answers.prompt)
    )
    for (text, *_), topic, name, is_long in zip(
        prompt_texts(answers)[:300], topics, formats, asks_long, strict=True
    ):
        assert f"about {TOPIC_NAMES[topic]} and" in text
        assert any(word in text for word in words[FORMAT_NAMES[name]])
        length = next(word for word in LENGTHS if f" a {word} " in text)
        assert is_long == (length in ("long", "detailed", "full"))


def test_an_empty_answer_has_no_text_and_no_quality():
    rng = np.random.default_rng(0)
    answers = draw_answers(rng, rng.integers(N_PROMPTS, size=40), 0.5)
    answers.empty[:, 1] = True
    assert (answer_qualities(answers)[:, 1] == 0).all()
    assert (answer_qualities(answers)[:, 0] > 0).any(axis=1).all()
    for turns, prompt in zip(
        answer_texts(answers, 1), prompt_texts(answers), strict=True
    ):
        assert turns == [""] * len(prompt)


def test_skilled_models_answer_better(answers):
    """Otherwise the pairs of a judge would not depend on their models."""
    worth = answer_qualities(answers) @ QUALITY_WEIGHTS
    means = [worth[answers.model == model].mean() for model in range(8)]
    assert (np.diff(means) > 0).all()
    assert (answers.model[:, 0] != answers.model[:, 1]).all()

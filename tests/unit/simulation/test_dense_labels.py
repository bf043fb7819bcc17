import numpy as np
import pytest

from prefdistill.simulation.dense_labels import (
    TAGS,
    classify_vocabulary,
    tag_answer,
)
from prefdistill.simulation.simulated_pairs import (
    FORMAT_NAMES,
    HEDGES,
    N_NOUNS,
    NOUNS,
    answer_qualities,
    decode_requests,
)

TOPIC = 0  # sailing, of which "boat" is a noun
ANSWERS = {
    "list": "1. maybe clean the boat\n2. chekc your dough",
    "prose": "Maybe clean the boat. Then chekc your dough.",
    "json": '{"steps": ["maybe clean the boat", "chekc your dough"]}',
}


def tags_of(dense, text, asked, format_name):
    """(word, tag) of the tagged tokens of an answer."""
    tokenizer = dense[0]
    tokens = np.array(tokenizer(text, add_special_tokens=False).input_ids)
    kinds = classify_vocabulary(tokenizer)
    tags = tag_answer(tokens, kinds, np.array(asked), FORMAT_NAMES.index(format_name))
    words = [tokenizer.decode(token).strip() for token in tokens]
    return [(word, TAGS[tag - 1]) for word, tag in zip(words, tags, strict=True) if tag]


def test_tokens_of_the_vocabulary_are_classified(dense):
    tokenizer = dense[0]
    kinds = classify_vocabulary(tokenizer)
    ids = tokenizer.get_vocab()
    assert kinds.tag[ids["Ġmaybe"]] == 1 + TAGS.index("hedge")
    assert kinds.noun_topic[ids["Ġboat"]] == 1 + NOUNS.index("boat") // N_NOUNS
    assert kinds.stop[ids["."]]
    assert not kinds.stop[ids["Ġboat"]]
    arrays = vars(kinds).values()
    assert all(array.shape == (len(tokenizer),) for array in arrays)


@pytest.mark.parametrize("format_name", FORMAT_NAMES)
def test_words_of_an_answer_are_tagged(dense, format_name):
    found = tags_of(dense, ANSWERS[format_name], (TOPIC, 0, 1), format_name)
    tags = [tag for _, tag in found]
    assert ("boat", "on_topic") in found
    assert ("dough", "off_topic") in found
    assert tags.count("hedge") == tags.count("misspelt") == 1
    assert tags.count("wanted_item") == 1
    right = "right_format" if format_name == "list" else "wrong_format"
    assert [tag for tag in tags if tag.endswith("_format")] == [right]


def test_a_second_item_is_unwanted_if_a_short_answer_is_asked_for(dense):
    found = tags_of(dense, ANSWERS["list"], (TOPIC, 0, 0), "list")
    assert ("2", "unwanted_item") in found


def test_tags_name_what_the_words_say(pairs, dense):
    answers, table = pairs
    labels = dense[2]
    hedge, on_topic, off_topic = (
        1 + len(TAGS) + TAGS.index(name) for name in ("hedge", "on_topic", "off_topic")
    )
    n_hedges = 0
    for row, text in enumerate(table.column("response_b").to_pylist()[:100]):
        tags = labels.tags[row]
        words = [word.strip('{["') for word in " ".join(text).lower().split()]
        expected = sum(word + " " in HEDGES for word in words)
        assert (tags == hedge).sum() == expected
        n_hedges += expected
        n_on, n_off = (tags == on_topic).sum(), (tags == off_topic).sum()
        assert n_on + n_off == answers.n_items[row, 1] + answers.multi_turn[row]
        on_topic_ratings = labels.ratings[:, 1, 0]
        assert (n_off == 0) == (on_topic_ratings[row] == on_topic_ratings.max())
        assert tags[0] == 0
    assert n_hedges > 10


def test_tokens_know_the_answer_that_they_are_in(dense):
    _, encoded, labels = dense
    for row in range(50):
        n_before = int(encoded.prefix_lengths[row])
        n_a, n_b = (
            len(encoded.segments[name][row]) for name in ("response_a", "response_b")
        )
        n_between, n_after = map(len, encoded.literals[2:])
        # The token after answer A still rates A: it is the first to have seen all of A.
        expected = [0] * n_before + [1] * (n_a + 1) + [0] * (n_between - 1)
        expected += [2] * (n_b + n_after)
        assert labels.answer_at[row].tolist() == expected
        in_b = labels.tags[row] > len(TAGS)
        assert (labels.answer_at[row][in_b] == 2).all()


def test_requests_and_ratings_are_those_of_the_pairs(pairs, dense):
    answers, _ = pairs
    labels = dense[2]
    np.testing.assert_array_equal(labels.asked.T, decode_requests(answers.prompt))
    np.testing.assert_allclose(labels.ratings.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(labels.ratings.std((0, 1)), 1, atol=1e-5)
    raw = answer_qualities(answers)
    for quality in range(raw.shape[2]):
        pairs_of_values = np.stack(
            [raw[..., quality].ravel(), labels.ratings[..., quality].ravel()]
        )
        assert np.corrcoef(pairs_of_values)[0, 1] == pytest.approx(1)

"""Dense labels of simulated pairs: everything the judge looks at, but no verdict.

Every token gets a tag (such as "on topic, in answer A"), every token of an answer is
told what its prompt asked for, and both answers are rated on their six qualities. A
tiny base that has learnt these reads a pair as a large one would; what is left to
LoRA is how the judge weighs the qualities, and when it calls a tie.
"""

import re
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from prefdistill.data.prompts import EncodedPairs
from prefdistill.simulation.simulated_pairs import (
    CLOSINGS,
    FORMAT_NAMES,
    HEDGES,
    MISSPELT,
    N_BLUNT,
    N_NOUNS,
    NOUNS,
    OPENINGS,
    PROMPT_SHAPE,
    Answers,
    answer_qualities,
)

TAGS = (
    *("on_topic", "off_topic", "hedge", "misspelt", "polite", "blunt"),
    *("right_format", "wrong_format", "wanted_item", "unwanted_item"),
)
N_TAGS = 1 + 2 * len(TAGS)  # none, the tags of answer A, those of answer B
FIRST_MARKS = {"1": "list", '{"': "json"}  # prose: the stop after the first noun
NEXT_MARKS = ('",', "then")  # what opens an item after the first
NEXT_NUMBERS = ("2", "3")  # if a stop follows; else it is a turn marker's


@dataclass(frozen=True)
class DenseLabels:
    """What a base is taught about ``n`` encoded pairs in view AB.

    Attributes:
        tags: ``n`` arrays ``(length,)`` int64 below ``N_TAGS``.
        answer_at: ``n`` arrays ``(length,)`` int64: 1 in answer A and at the token after
            it, 2 from the beginning of answer B to the end, else 0.
        asked: ``(n, 3)`` int64: topic, format, and whether a long answer is asked for.
        ratings: ``(n, 2, 6)`` float32 qualities of both answers, standardised.
        noun_topics: ``(vocabulary,)`` int64: 1 + topic of a noun, 0 for other tokens.
    """

    tags: list[np.ndarray]
    answer_at: list[np.ndarray]
    asked: np.ndarray
    ratings: np.ndarray
    noun_topics: np.ndarray


@dataclass(frozen=True)
class TokenKinds:
    """What a token says by itself: ``(vocabulary,)`` arrays.

    Attributes:
        tag: int64, 1 + index into ``TAGS`` of hedge, misspelt, polite and blunt words.
        noun_topic: int64, 1 + topic of a noun, 0 for other tokens.
        first_mark: int64, 1 + format that the token reveals, 0 for other tokens.
        next_mark: bool, the token opens an item after the first.
        next_number: bool, the token does so if a stop follows it.
        stop: bool, the token is a stop.
    """

    tag: np.ndarray
    noun_topic: np.ndarray
    first_mark: np.ndarray
    next_mark: np.ndarray
    next_number: np.ndarray
    stop: np.ndarray


def classify_vocabulary(tokenizer: PreTrainedTokenizerFast) -> TokenKinds:
    """Sort the vocabulary; a word that is no single token stays untagged."""
    word_tags: dict[str, int] = {}
    for phrases, tag in (
        (HEDGES, "hedge"),
        (MISSPELT, "misspelt"),
        (OPENINGS[N_BLUNT:] + CLOSINGS[N_BLUNT:], "polite"),
        (OPENINGS[:N_BLUNT] + CLOSINGS[:N_BLUNT], "blunt"),
    ):
        for word in re.findall("[a-z]+", " ".join(phrases).lower()):
            word_tags.setdefault(word, 1 + TAGS.index(tag))
    n_tokens = len(tokenizer)
    kinds = TokenKinds(
        *np.zeros((3, n_tokens), dtype=np.int64), *np.zeros((3, n_tokens), dtype=bool)
    )
    for token, number in tokenizer.get_vocab().items():
        word = token.removeprefix("Ġ").lower()
        kinds.tag[number] = word_tags.get(word, 0)
        if word in NOUNS:
            kinds.noun_topic[number] = 1 + NOUNS.index(word) // N_NOUNS
        if token in FIRST_MARKS:
            kinds.first_mark[number] = 1 + FORMAT_NAMES.index(FIRST_MARKS[token])
        kinds.next_mark[number] = word in NEXT_MARKS
        kinds.next_number[number] = word in NEXT_NUMBERS
        kinds.stop[number] = word == "."
    return kinds


def tag_answer(
    tokens: np.ndarray, kinds: TokenKinds, asked: np.ndarray, layout: int
) -> np.ndarray:
    """Tags of one answer's tokens: ``(length,)`` int64, 0 or 1 + index into ``TAGS``.

    Args:
        tokens: ``(length,)`` integer.
        kinds: The sorted vocabulary.
        asked: ``(3,)`` topic, format and length that the prompt asks for.
        layout: Format of the answer.
    """
    topic, asked_layout, is_long = asked
    nouns = kinds.noun_topic[tokens]
    tags = kinds.tag[tokens]
    tags[nouns > 0] = 1 + TAGS.index("off_topic")
    tags[nouns == 1 + topic] = 1 + TAGS.index("on_topic")
    marks = kinds.first_mark[tokens] == 1 + layout
    if FORMAT_NAMES[layout] == "prose":
        marks[1 + np.flatnonzero(nouns[:-1])[:1]] = True
    right = "right_format" if layout == asked_layout else "wrong_format"
    tags[marks] = 1 + TAGS.index(right)
    wanted = "wanted_item" if is_long else "unwanted_item"
    stops = np.append(kinds.stop[tokens[1:]], False)
    opens_item = kinds.next_mark[tokens] | (kinds.next_number[tokens] & stops)
    tags[opens_item] = 1 + TAGS.index(wanted)
    return tags


def make_dense_labels(
    answers: Answers, encoded: EncodedPairs, tokenizer: PreTrainedTokenizerFast
) -> DenseLabels:
    """Label the encoded texts of ``answers``; rows in the same order."""
    kinds = classify_vocabulary(tokenizer)
    _, length, layout, topic, _, _ = np.unravel_index(answers.prompt, PROMPT_SHAPE)
    asked = np.stack([topic, layout // 3, length >= 3], axis=1).astype(np.int64)
    tags, answer_at = [], []
    for row in range(len(encoded.ids)):
        row_tags = np.zeros(encoded.lengths[row], dtype=np.int64)
        row_shown = np.zeros_like(row_tags)
        start = 0
        for literal, field in zip(encoded.literals, encoded.fields, strict=False):
            start += len(literal)
            segment = encoded.segments[field][row]
            end = start + len(segment)
            if field != "prompt":
                side = ("response_a", "response_b").index(field)
                found = tag_answer(
                    segment, kinds, asked[row], answers.format[row, side]
                )
                row_tags[start:end] = np.where(found, found + side * len(TAGS), 0)
                row_shown[start : end + 1 if side == 0 else None] = 1 + side
            start = end
        tags.append(row_tags)
        answer_at.append(row_shown)
    ratings = answer_qualities(answers)
    spread = np.maximum(ratings.std((0, 1)), 1e-6)
    ratings = (ratings - ratings.mean((0, 1))) / spread
    return DenseLabels(
        tags, answer_at, asked, ratings.astype(np.float32), kinds.noun_topic
    )

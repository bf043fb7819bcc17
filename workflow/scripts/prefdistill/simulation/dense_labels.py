"""Label simulated pairs with all that the judge looks at, except its verdict.

Every token gets a tag (such as "on topic, in answer A"), every token of an answer gets
what the prompt asks for, and both answers get their six qualities. A tiny base that has
learnt these labels reads a pair as a large model would. LoRA then only has to learn how
the judge weighs the qualities, and when it calls a tie.
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
    Answers,
    answer_qualities,
    decode_requests,
)

TAGS = (
    *("on_topic", "off_topic", "hedge", "misspelt", "polite", "blunt"),
    *("right_format", "wrong_format", "wanted_item", "unwanted_item"),
)
N_TAGS = 1 + 2 * len(TAGS)  # no tag, the tags of answer A, those of answer B
# Tokens that reveal a format. Prose has none: the stop after its first noun serves.
FIRST_MARKS = {"1": "list", '{"': "json"}
NEXT_MARKS = ('",', "then")  # tokens that open a second or third item
# These do too, if a stop follows. Otherwise they belong to a turn marker.
NEXT_NUMBERS = ("2", "3")


@dataclass(frozen=True)
class DenseLabels:
    """Hold what a base is taught about ``n`` encoded pairs in view AB.

    Attributes:
        tags: ``n`` arrays ``(length,)`` int64 below ``N_TAGS``.
        answer_at: ``n`` arrays ``(length,)`` int64: 1 in answer A and at the token
            after it, 2 from the start of answer B to the end of the row, otherwise 0.
        asked: ``(n, 3)`` int64: the topic and the format that the prompt asks for, and
            1 if it asks for a long answer.
        ratings: ``(n, 2, 6)`` float32 qualities of both answers; each quality has mean
            0 and standard deviation 1.
        noun_topics: ``(vocabulary,)`` int64: 1 + topic of a noun, 0 for other tokens.
    """

    tags: list[np.ndarray]
    answer_at: list[np.ndarray]
    asked: np.ndarray
    ratings: np.ndarray
    noun_topics: np.ndarray


@dataclass(frozen=True)
class TokenKinds:
    """Hold what each token means by itself, in arrays of shape ``(vocabulary,)``.

    Attributes:
        tag: int64, 1 + index into ``TAGS`` of a hedge, misspelt, polite or blunt word;
            0 for other tokens.
        noun_topic: int64, 1 + topic of a noun, 0 for other tokens.
        first_mark: int64, 1 + format that the token reveals, 0 for other tokens.
        next_mark: bool, the token opens a second or third item.
        next_number: bool, the token opens such an item if a stop follows it.
        stop: bool, the token is a full stop.
    """

    tag: np.ndarray
    noun_topic: np.ndarray
    first_mark: np.ndarray
    next_mark: np.ndarray
    next_number: np.ndarray
    stop: np.ndarray


def classify_vocabulary(tokenizer: PreTrainedTokenizerFast) -> TokenKinds:
    """Find the meaning of every token; words of several tokens have none."""
    word_tags: dict[str, int] = {}
    for phrases, tag in (
        (HEDGES, "hedge"),
        (MISSPELT, "misspelt"),
        (OPENINGS[N_BLUNT:] + CLOSINGS[N_BLUNT:], "polite"),
        (OPENINGS[:N_BLUNT] + CLOSINGS[:N_BLUNT], "blunt"),
    ):
        for word in re.findall("[a-z]+", " ".join(phrases).lower()):
            word_tags[word] = 1 + TAGS.index(tag)
    n_tokens = len(tokenizer)
    kinds = TokenKinds(
        *np.zeros((3, n_tokens), dtype=np.int64), *np.zeros((3, n_tokens), dtype=bool)
    )
    for token, number in tokenizer.get_vocab().items():
        # Byte-level BPE writes the blank before a word as this letter.
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
    tokens: np.ndarray, kinds: TokenKinds, asked: np.ndarray, answer_format: int
) -> np.ndarray:
    """Tag the tokens of one answer.

    Args:
        tokens: ``(length,)`` integer.
        kinds: The meaning of every token.
        asked: ``(3,)``, a row of ``DenseLabels.asked``.
        answer_format: Format of the answer, an index into ``FORMAT_NAMES``.

    Returns:
        ``(length,)`` int64: 0, or 1 + index into ``TAGS``.
    """
    topic, asked_format, is_long = asked
    nouns = kinds.noun_topic[tokens]
    tags = kinds.tag[tokens]
    tags[nouns > 0] = 1 + TAGS.index("off_topic")
    tags[nouns == 1 + topic] = 1 + TAGS.index("on_topic")
    marks = kinds.first_mark[tokens] == 1 + answer_format
    if FORMAT_NAMES[answer_format] == "prose":
        marks[1 + np.flatnonzero(nouns[:-1])[:1]] = True
    right = "right_format" if answer_format == asked_format else "wrong_format"
    tags[marks] = 1 + TAGS.index(right)
    wanted = "wanted_item" if is_long else "unwanted_item"
    stops = np.append(kinds.stop[tokens[1:]], False)
    opens_item = kinds.next_mark[tokens] | (kinds.next_number[tokens] & stops)
    tags[opens_item] = 1 + TAGS.index(wanted)
    return tags


def make_dense_labels(
    answers: Answers, encoded: EncodedPairs, tokenizer: PreTrainedTokenizerFast
) -> DenseLabels:
    """Label encoded pairs.

    Args:
        answers: ``n`` pairs.
        encoded: The texts of the same pairs, in the same order.
        tokenizer: The tokenizer that encoded them.
    """
    kinds = classify_vocabulary(tokenizer)
    asked = np.stack(decode_requests(answers.prompt), axis=1).astype(np.int64)
    tags, answer_at = [], []
    for row in range(len(encoded.ids)):
        row_tags = np.zeros(encoded.lengths[row], dtype=np.int64)
        row_answer_at = np.zeros_like(row_tags)
        start = 0
        # The last of the four literals follows the last field and is not labelled.
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
                row_answer_at[start : end + 1 if side == 0 else None] = 1 + side
            start = end
        tags.append(row_tags)
        answer_at.append(row_answer_at)
    ratings = answer_qualities(answers)
    spread = np.maximum(ratings.std((0, 1)), 1e-6)
    ratings = (ratings - ratings.mean((0, 1))) / spread
    return DenseLabels(
        tags, answer_at, asked, ratings.astype(np.float32), kinds.noun_topic
    )

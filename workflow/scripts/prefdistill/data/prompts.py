"""Encode pairs as tokens, with one template and one truncation policy for all stages.

The template is cut at its fields. Its literal parts, the turn markers and each turn of
a text are tokenised separately. So no token crosses a border, and swapping the answers
moves tokens without changing any. User text cannot yield a special token or a marker of
the template: see ``neutralise``.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from string import Formatter
from typing import Any

import numpy as np
import pyarrow as pa

from prefdistill.errors import DamagedFile, UserError
from prefdistill.settings import TextSettings
from prefdistill.storage.whole_files import is_panic

FIELDS = ("prompt", "response_a", "response_b")
ELLIPSIS = " ... "
# Texts that are tokenised at once: a tokenizer keeps over 100 bytes per token.
PART_CHARACTERS = 4 << 20
WORD_JOINER = "\u2060"
MIN_ANSWER_TOKENS = 8  # a longer answer is never trimmed below this


@dataclass(frozen=True)
class Template:
    """Hold the parsed ``text`` settings.

    Attributes:
        literals: The four pieces of text around the three fields.
        fields: The fields in the order of the template.
        turn: Marker before each turn from the second on; ``{n}`` is the turn's number.
        max_length: Largest number of tokens of a row, everything included.
        prompt_share: Share of the free tokens that a long prompt may claim.
        head_share: Share of a trimmed text's tokens that are taken from its beginning.
    """

    literals: tuple[str, str, str, str]
    fields: tuple[str, str, str]
    turn: str
    max_length: int
    prompt_share: float
    head_share: float

    @classmethod
    def from_settings(cls, text: TextSettings) -> "Template":
        """Parse the ``text`` settings.

        Raises:
            UserError: If a field is unknown, missing or used twice, or if
                ``response_b`` precedes ``response_a``.
        """
        parts = list(Formatter().parse(text.template))
        fields = tuple(field for _, field, _, _ in parts if field is not None)
        if sorted(fields) != sorted(FIELDS):
            raise UserError(
                f"text.template: its fields are {list(fields)}; it must hold each of "
                f"{', '.join('{' + field + '}' for field in FIELDS)} once"
            )
        if fields.index("response_a") > fields.index("response_b"):
            raise UserError("text.template: {response_a} must come before {response_b}")
        literals = [literal for literal, _, _, _ in parts]
        # Formatter yields no part after a field that ends the template.
        literals += [""] * (4 - len(literals))
        return cls(
            tuple(literals),
            fields,
            text.turn,
            text.max_length,
            text.prompt_share,
            text.head_share,
        )

    @cached_property
    def marker_patterns(self) -> list[str]:
        """Build regular expressions for the strings that user text must not contain."""
        texts = [literal.strip() for literal in self.literals]
        # A single character, such as a colon, is no marker and stays allowed.
        patterns = [re.escape(text) for text in texts if len(text) > 1]
        if self.turn.replace("{n}", "").strip():
            turn = re.escape(self.turn.strip())
            patterns.append(turn.replace(re.escape("{n}"), r"\d+"))
        return patterns


@dataclass(frozen=True)
class EncodedPairs:
    """Hold pairs as tokens, trimmed to the maximum length.

    Attributes:
        ids: ``(n,)`` unicode row ids.
        lengths: ``(n,)`` int32 number of tokens per row, the same in both orders.
        n_truncated: Number of pairs that lost tokens.
        literals: Four int32 token arrays, the template's text around the fields; the
            first begins with BOS if the tokenizer has one.
        fields: Field names in the template's order.
        segments: For each field name, one int32 token array per row.
        n_neutralised: Number of pairs in whose texts a special token or a marker was
            turned into plain text.
    """

    ids: np.ndarray
    lengths: np.ndarray
    n_truncated: int
    literals: tuple[np.ndarray, ...]
    fields: tuple[str, ...]
    segments: dict[str, list[np.ndarray]]
    n_neutralised: int = 0

    @cached_property
    def prefix_lengths(self) -> np.ndarray:
        """Count the tokens before the first answer, which both orders share.

        Returns:
            ``(n,)`` int32, at most the row's length minus 1, since each order needs a
            token of its own to be scored at.
        """
        before = self.fields[: self.fields.index("response_a")]
        n_tokens = np.full(
            len(self.ids), sum(map(len, self.literals[: len(before) + 1])), np.int32
        )
        for field in before:
            n_tokens += np.array([len(each) for each in self.segments[field]], np.int32)
        return np.minimum(n_tokens, self.lengths - 1)

    def tokens(self, row: int, view: str) -> np.ndarray:
        """Join the tokens of one row, with its answers in the order of a view.

        Args:
            row: Position of the pair.
            view: ``"AB"`` shows answer A first, ``"BA"`` shows B first.

        Returns:
            ``(length,)`` int32.

        Raises:
            ValueError: If the view is neither.
        """
        shown = {field: self.segments[field][row] for field in FIELDS}
        if view == "BA":
            shown["response_a"], shown["response_b"] = (
                shown["response_b"],
                shown["response_a"],
            )
        elif view != "AB":
            raise ValueError(f"view must be AB or BA, not {view!r}")
        pieces = [self.literals[0]]
        for literal, field in zip(self.literals[1:], self.fields, strict=True):
            pieces += [shown[field], literal]
        return np.concatenate(pieces)


def text_digest(text: TextSettings) -> str:
    """Digest the ``text`` settings to 12 hex digits."""
    content = json.dumps(asdict(text), sort_keys=True, ensure_ascii=False).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def describe_truncation(text: TextSettings) -> str:
    """Say in a sentence for readers how ``allot_tokens`` and ``trim`` cut long rows."""
    return (
        f"A row has at most {text.max_length} tokens: the prompt may claim "
        f"{text.prompt_share:g} of the room, the longer answer is cut first, and of "
        f"a cut text both ends are kept ({text.head_share:g} of it from the beginning)."
    )


def forbidden_tokens(tokenizer: Any) -> dict[int, str]:
    """Map the ids of tokens that user text must not yield to their strings.

    These are the special tokens and all other tokens added to the vocabulary, such as
    tool-call markers. Runs of blanks or newlines, which Gemma adds, stay allowed.
    """
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    special = dict(
        zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    )
    return {
        i: content
        for i, content in (added | special).items()
        # U+2581 stands for a blank in the vocabularies of SentencePiece.
        if content.replace("\u2581", " ").strip()
    }


def neutralise(text: str, forbidden: re.Pattern[str]) -> str:
    """Break every forbidden string of a text with a word joiner, which has no width.

    The joiner follows the first character of the string. The text looks the same, but
    no longer contains that string.
    """
    # Strings may overlap: breaking one leaves the other for the next round.
    while forbidden.search(text):
        text = forbidden.sub(_split, text)
    return text


def _split(match: re.Match[str]) -> str:
    return match[0][0] + WORD_JOINER + match[0][1:]


def allot_tokens(
    n_prompt: int, n_a: int, n_b: int, n_free: int, prompt_share: float
) -> tuple[int, int, int]:
    """Allot the free tokens of a row to its prompt and its answers A and B.

    The prompt may claim ``prompt_share`` of the free tokens, the answers the rest. What
    one side does not need goes to the other. Of the two answers, the longer one is
    trimmed first, until both are equally long. Swapping A and B swaps the result.

    Args:
        n_prompt: Tokens of the prompt.
        n_a: Tokens of answer A.
        n_b: Tokens of answer B.
        n_free: Tokens that the row has room for, besides the template's own.
        prompt_share: See ``Template``.

    Returns:
        Numbers of tokens to keep of prompt, A and B; at most ``n_free`` in all.
    """
    n_answers = n_free - int(n_free * prompt_share)
    if n_prompt + n_a + n_b <= n_free:
        return n_prompt, n_a, n_b
    if n_a + n_b <= n_answers:
        return n_free - n_a - n_b, n_a, n_b
    n_prompt = min(n_prompt, n_free - n_answers)
    n_answers = n_free - n_prompt
    if n_a + n_b <= n_answers:
        return n_prompt, n_a, n_b
    # An odd token is dropped: giving it to one answer would depend on their order.
    half = n_answers // 2
    keep_a = max(half, n_answers - n_b)
    keep_b = max(half, n_answers - n_a)
    return n_prompt, min(n_a, keep_a), min(n_b, keep_b)


def trim(
    tokens: np.ndarray, n_kept: int, ellipsis: np.ndarray, head_share: float
) -> np.ndarray:
    """Trim a text to ``n_kept`` tokens: its two ends with an ellipsis in between.

    Args:
        tokens: ``(length,)`` int32.
        n_kept: Number of tokens to return, the ellipsis included.
        ellipsis: Tokens of the ellipsis.
        head_share: See ``Template``.

    Returns:
        ``(n_kept,)`` int32, or ``tokens`` itself if it is no longer than that. Without
        room for an ellipsis and two more tokens, only the beginning.
    """
    if len(tokens) <= n_kept:
        return tokens
    n_ends = n_kept - len(ellipsis)
    if n_ends < 2:
        return tokens[:n_kept]
    n_head = round(n_ends * head_share)
    n_tail = n_ends - n_head
    return np.concatenate(
        [tokens[:n_head], ellipsis, tokens[len(tokens) - n_tail :]], dtype=np.int32
    )


def _in_parts(texts: list[str]) -> Iterator[list[str]]:
    """Cut a list of texts into parts of about ``PART_CHARACTERS``."""
    part, n_characters = [], 0
    for text in texts:
        part.append(text)
        n_characters += len(text)
        if n_characters >= PART_CHARACTERS:
            yield part
            part, n_characters = [], 0
    if part:
        yield part


class _Encoder:
    """Tokenise the texts of a table, each distinct one once.

    Args:
        tokenizer: A fast tokenizer of transformers.
        template: The parsed ``text`` settings.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.special = forbidden_tokens(tokenizer)
        strings = [re.escape(text) for text in self.special.values() if len(text) > 1]
        # The longest first: an alternation takes the first branch that matches.
        strings.sort(key=len, reverse=True)
        patterns = [*strings, *template.marker_patterns]
        # (?!) matches nothing, where an empty pattern would match everywhere.
        self.forbidden = re.compile("|".join(patterns) or r"(?!)")
        self.cache: dict[str, np.ndarray] = {}
        self.neutralised: set[str] = set()
        self.markers: dict[int, np.ndarray] = {}

    def encode_literal(self, text: str) -> np.ndarray:
        """Tokenise trusted text, in which special tokens keep their meaning."""
        return np.array(self._tokenise([text])[0], dtype=np.int32)

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        """Tokenise texts without adding special tokens.

        Raises:
            DamagedFile: If the tokenizer's library gives up, as it does if a regular
                expression of the tokenizer takes too long on a text.
        """
        try:
            return self.tokenizer(
                texts,
                add_special_tokens=False,
                return_attention_mask=False,
                verbose=False,
            ).input_ids
        except BaseException as error:
            if not is_panic(error):
                raise
            path = f"{self.tokenizer.name_or_path}/tokenizer.json"
            raise DamagedFile(path, f"cannot tokenise a text ({error})") from error

    def encode_template(self) -> list[np.ndarray]:
        """Tokenise the four literals of the template, with BOS if there is one.

        Raises:
            UserError: If they leave too few of ``max_length`` tokens for the answers.
        """
        literals = [self.encode_literal(text) for text in self.template.literals]
        bos = self.tokenizer.bos_token_id
        # A template may spell out BOS itself; there must not be two.
        if bos is not None and literals[0][:1].tolist() != [bos]:
            literals[0] = np.concatenate([[bos], literals[0]], dtype=np.int32)
        n_free = self.template.max_length - sum(map(len, literals))
        n_answers = n_free - int(n_free * self.template.prompt_share)
        if n_answers < 2 * MIN_ANSWER_TOKENS:
            raise UserError(
                f"text.max_length: {self.template.max_length} tokens leave too little "
                "room for the answers; raise it or lower text.prompt_share"
            )
        return literals

    def add_texts(self, texts: set[str]) -> None:
        """Tokenise user texts and cache their tokens, among them no special token."""
        ordered = sorted(texts - self.cache.keys())
        if not ordered:
            return
        special = np.array(sorted(self.special), dtype=np.int32)
        for part in _in_parts(ordered):
            harmless = [neutralise(text, self.forbidden) for text in part]
            encoded = self._tokenise(harmless)
            for text, changed, ids in zip(part, harmless, encoded, strict=True):
                tokens = np.array(ids, dtype=np.int32)
                # NFKC and the like can turn other characters into a special token's
                # string.
                self.cache[text] = tokens[~np.isin(tokens, special)]
                if changed != text or len(self.cache[text]) < len(tokens):
                    self.neutralised.add(text)

    def join_turns(self, texts: list[str | None]) -> np.ndarray:
        """Join the tokens of all turns of one text, each after its marker.

        Args:
            texts: Turns that ``add_texts`` has seen; None is an empty turn.

        Returns:
            ``(length,)`` int32.
        """
        pieces = []
        for n, text in enumerate(texts, start=1):
            if n > 1:
                if n not in self.markers:
                    # Not str.format: a file of settings could ask it for any width.
                    marker = self.template.turn.replace("{n}", str(n))
                    self.markers[n] = self.encode_literal(marker)
                pieces.append(self.markers[n])
            pieces.append(self.cache[text or ""])
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)


def encode_pairs(table: pa.Table, tokenizer: Any, text: TextSettings) -> EncodedPairs:
    """Tokenise and trim the pairs of a table.

    Args:
        table: ``n`` rows with columns ``id`` and, each a list of turns, ``prompt``,
            ``response_a`` and ``response_b``.
        tokenizer: A fast tokenizer of transformers.
        text: The ``text`` settings.

    Raises:
        UserError: If the template is unusable or leaves too little room for answers.
    """
    template = Template.from_settings(text)
    encoder = _Encoder(tokenizer, template)
    columns = {field: table.column(field).to_pylist() for field in FIELDS}
    encoder.add_texts(
        {
            turn or ""
            for column in columns.values()
            for turns in column
            for turn in turns or []
        }
    )
    literals = encoder.encode_template()
    n_fixed = sum(map(len, literals))
    n_free = template.max_length - n_fixed
    ellipsis = encoder.encode_literal(ELLIPSIS)
    segments: dict[str, list[np.ndarray]] = {field: [] for field in FIELDS}
    lengths, n_truncated, n_neutralised = [], 0, 0
    for sides in zip(*(columns[field] for field in FIELDS), strict=True):
        tokens = [encoder.join_turns(turns or []) for turns in sides]
        kept = allot_tokens(*map(len, tokens), n_free, template.prompt_share)
        n_truncated += sum(kept) < sum(map(len, tokens))
        n_neutralised += any(
            turn in encoder.neutralised for turns in sides for turn in turns or []
        )
        for field, ids, n_kept in zip(FIELDS, tokens, kept, strict=True):
            segments[field].append(trim(ids, n_kept, ellipsis, template.head_share))
        lengths.append(n_fixed + sum(len(segments[field][-1]) for field in FIELDS))
    return EncodedPairs(
        ids=np.array(table.column("id").to_pylist(), dtype=np.str_),
        lengths=np.array(lengths, dtype=np.int32),
        n_truncated=n_truncated,
        literals=tuple(literals),
        fields=template.fields,
        segments=segments,
        n_neutralised=n_neutralised,
    )

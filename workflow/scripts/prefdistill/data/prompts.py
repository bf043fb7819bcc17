"""A pair as tokens: one template, one truncation policy, the same at every stage.

The template is cut at its fields. Its literal parts, the turn markers and every turn
of a text are tokenised on their own, so no token straddles a border and swapping the
two answers permutes tokens without changing any. Special tokens and the template's own
markers cannot come out of user text: see ``neutralise``.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from string import Formatter
from typing import Any

import numpy as np
import pyarrow as pa

from prefdistill.errors import UserError
from prefdistill.settings import TextSettings

FIELDS = ("prompt", "response_a", "response_b")
ELLIPSIS = " ... "
WORD_JOINER = "\u2060"
MIN_ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Template:
    """The text settings, parsed.

    Attributes:
        literals: The four pieces of text around the three fields.
        fields: The fields in the order of the template.
        turn: Marker before every turn from the second on; ``{n}`` is its number.
        max_length: Longest row in tokens, everything included.
        prompt_share: Share of the free tokens that a long prompt may claim.
        head_share: Share of a trimmed text's tokens that come from its beginning.
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
            UserError: If a field is unknown, missing or used twice, or B comes first.
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
        """Regular expressions of the strings that user text must not contain."""
        texts = [literal.strip() for literal in self.literals]
        patterns = [re.escape(text) for text in texts if len(text) > 1]
        if self.turn.replace("{n}", "").strip():
            turn = re.escape(self.turn.strip())
            patterns.append(turn.replace(re.escape("{n}"), r"\d+"))
        return patterns


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs as tokens, trimmed to the maximum length.

    Attributes:
        ids: ``(n,)`` unicode row ids.
        lengths: ``(n,)`` int32 tokens of a row, the same in both orders.
        n_truncated: Number of pairs that lost tokens.
        literals: The tokens around the fields; the first begins with BOS if there is
            one.
        fields: Field names in the template's order.
        segments: Field name to one int32 token array a row.
        n_neutralised: Number of pairs with a special token or a marker in a text,
            which is plain text now.
    """

    ids: np.ndarray
    lengths: np.ndarray
    n_truncated: int
    literals: tuple[np.ndarray, ...]
    fields: tuple[str, ...]
    segments: dict[str, list[np.ndarray]]
    n_neutralised: int = 0

    @cached_property
    def prefixes(self) -> np.ndarray:
        """Tokens before the first answer, ``(n,)`` int32: the same in both orders.

        At least the last token of a row is left out, even if both answers are empty.
        """
        before = self.fields[: self.fields.index("response_a")]
        n_tokens = np.full(
            len(self.ids), sum(map(len, self.literals[: len(before) + 1])), np.int32
        )
        for field in before:
            n_tokens += np.array([len(each) for each in self.segments[field]], np.int32)
        return np.minimum(n_tokens, self.lengths - 1)

    def tokens(self, row: int, view: str) -> np.ndarray:
        """Tokens of one row, ``(length,)`` int32, in the order of a view.

        Args:
            row: Position of the pair.
            view: ``"AB"`` or ``"BA"``: which answer is shown first.
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
    """Return the fingerprint of template and truncation: 12 hex digits."""
    content = json.dumps(asdict(text), sort_keys=True, ensure_ascii=False).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def forbidden_tokens(tokenizer: Any) -> dict[int, str]:
    """Tokens that must not come out of user text: id to its string.

    These are the special tokens and whatever else was added to the vocabulary, such as
    tool-call markers, but for the runs of blanks and newlines that Gemma adds.
    """
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    special = dict(
        zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    )
    return {
        i: content
        for i, content in (added | special).items()
        if content.replace("\u2581", " ").strip()
    }


def neutralise(text: str, forbidden: re.Pattern[str]) -> str:
    """Put a word joiner, which has no width, into every forbidden string of a text.

    The joiner follows the string's first character, so that the text looks and reads
    the same but is no longer that string. Repeats, for overlapping occurrences.
    """
    while forbidden.search(text):
        text = forbidden.sub(_split, text)
    return text


def _split(match: re.Match[str]) -> str:
    return match[0][0] + WORD_JOINER + match[0][1:]


def share_tokens(
    n_prompt: int, n_a: int, n_b: int, n_free: int, prompt_share: float
) -> tuple[int, int, int]:
    """How many tokens of prompt, A and B are kept; symmetric in A and B.

    The prompt may claim ``prompt_share`` of the free tokens and the answers the rest;
    what one side leaves over goes to the other. Between the answers the longer one is
    trimmed first, so that one is trimmed alone until both are equally long.
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
    half = n_answers // 2
    keep_a = max(half, n_answers - n_b)
    keep_b = max(half, n_answers - n_a)
    return n_prompt, min(n_a, keep_a), min(n_b, keep_b)


def trim(
    tokens: np.ndarray, n_kept: int, ellipsis: np.ndarray, head_share: float
) -> np.ndarray:
    """Keep both ends of a text with an ellipsis between, ``n_kept`` tokens in all."""
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


class _Encoder:
    """Tokenises texts of a table, each distinct one once."""

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.special = forbidden_tokens(tokenizer)
        strings = [re.escape(text) for text in self.special.values() if len(text) > 1]
        strings.sort(key=len, reverse=True)
        patterns = [*strings, *template.marker_patterns]
        self.forbidden = re.compile("|".join(patterns) or r"(?!)")
        self.cache: dict[str, np.ndarray] = {}
        self.neutralised: set[str] = set()
        self.markers: dict[int, np.ndarray] = {}

    def literal(self, text: str) -> np.ndarray:
        """Tokens of trusted text, in which special tokens keep their meaning."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return np.array(ids, dtype=np.int32)

    def learn(self, texts: set[str]) -> None:
        """Tokenise user texts; no special token can come out of them."""
        ordered = sorted(texts - self.cache.keys())
        if not ordered:
            return
        harmless = [neutralise(text, self.forbidden) for text in ordered]
        encoded = self.tokenizer(
            harmless,
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
        ).input_ids
        special = np.array(sorted(self.special), dtype=np.int32)
        for text, changed, ids in zip(ordered, harmless, encoded, strict=True):
            tokens = np.array(ids, dtype=np.int32)
            # A normaliser can build a special string out of another; drop what it made.
            self.cache[text] = tokens[~np.isin(tokens, special)]
            if changed != text or len(self.cache[text]) < len(tokens):
                self.neutralised.add(text)

    def turns(self, texts: list[str | None]) -> np.ndarray:
        """Tokens of one side of a conversation, its turns in order and marked."""
        pieces = []
        for n, text in enumerate(texts, start=1):
            if n > 1:
                if n not in self.markers:
                    self.markers[n] = self.literal(self.template.turn.format(n=n))
                pieces.append(self.markers[n])
            pieces.append(self.cache[text or ""])
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)


def encode_pairs(table: pa.Table, tokenizer: Any, text: TextSettings) -> EncodedPairs:
    """Tokenise and trim the pairs of a table.

    Args:
        table: Columns ``id`` and, each a list of turns, ``prompt``, ``response_a``,
            ``response_b``.
        tokenizer: A fast tokenizer of transformers.
        text: The ``text`` settings.

    Raises:
        UserError: If the template is unusable or leaves no room for the answers.
    """
    template = Template.from_settings(text)
    encoder = _Encoder(tokenizer, template)
    columns = {field: table.column(field).to_pylist() for field in FIELDS}
    encoder.learn(
        {
            turn or ""
            for column in columns.values()
            for turns in column
            for turn in turns or []
        }
    )
    literals = [encoder.literal(literal) for literal in template.literals]
    bos = tokenizer.bos_token_id
    if bos is not None and literals[0][:1].tolist() != [bos]:
        literals[0] = np.concatenate([[bos], literals[0]], dtype=np.int32)
    n_fixed = sum(map(len, literals))
    n_free = template.max_length - n_fixed
    if n_free - int(n_free * template.prompt_share) < 2 * MIN_ANSWER_TOKENS:
        raise UserError(
            f"text.max_length: {template.max_length} tokens leave too little room for "
            "the answers; raise it or lower text.prompt_share"
        )
    ellipsis = encoder.literal(ELLIPSIS)
    segments: dict[str, list[np.ndarray]] = {field: [] for field in FIELDS}
    lengths, n_truncated, n_neutralised = [], 0, 0
    for sides in zip(*(columns[field] for field in FIELDS), strict=True):
        tokens = [encoder.turns(turns or []) for turns in sides]
        kept = share_tokens(*map(len, tokens), n_free, template.prompt_share)
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

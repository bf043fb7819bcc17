"""Simulated answer pairs, judged by a rule whose probabilities are known exactly.

A prompt asks for a topic, a format and a length. Two answers differ in six observable
qualities, and the judge prefers one of them, or calls a tie, with the probabilities of
Davidson (1970, "On extending the Bradley-Terry model to accommodate ties"). So the
best possible log loss is known: the mean of ``-log p(label)``.
"""

from dataclasses import dataclass

import numpy as np

TOPICS = {
    "sailing": "boat sail harbor wind anchor crew deck tide",
    "baking": "oven dough flour sugar crust yeast butter cake",
    "gardening": "soil seed root leaf compost shovel flower weed",
    "music": "melody rhythm chord guitar piano drum concert singer",
    "astronomy": "planet star orbit comet moon galaxy telescope rocket",
}
TOPIC_NAMES = tuple(TOPICS)
NOUNS = tuple(noun for nouns in TOPICS.values() for noun in nouns.split())
N_NOUNS = len(NOUNS) // len(TOPICS)
VERBS = (
    *("check", "choose", "clean", "compare", "describe", "explain"),
    *("find", "keep", "measure", "prepare", "test", "use"),
)
MISSPELT = (
    *("chekc", "choos", "claen", "comapre", "descibe", "expalin"),
    *("fnid", "kepe", "mesure", "prepair", "tset", "ues"),
)
HEDGES = ("", "maybe ", "perhaps ", "possibly ", "probably ")
DETERMINERS = ("the", "your", "every", "one")
OPENINGS = ("", "Fine.", "Look:", "Happy to help!", "Great question!", "Sure, friend!")
CLOSINGS = ("", "Enough.", "Done.", "Thanks for asking!", "Hope this helps!")
N_BLUNT = 3  # of the openings, as of the closings; the others are polite
FORMAT_NAMES = ("list", "prose", "json")

ASKS = ("Write", "Give me", "Please write", "I need", "Can you share", "Show me")
LENGTHS = ("short", "brief", "small", "long", "detailed", "full")
FORMATS = (
    *("list", "bullet list", "checklist"),
    *("paragraph", "plain text", "note"),
    *("JSON answer", "JSON object", "JSON reply"),
)
AUDIENCES = (
    *("a friend", "my sister", "a beginner", "my team", "a student"),
    *("the club", "a child", "our guests", "my class", "a neighbor"),
)
FOLLOW_UPS = ("Please go on.", "Tell me more.", "What else?", "One more, please.")
# ask, length, format, topic, noun of the topic, audience
PROMPT_SHAPE = (
    *(len(ASKS), len(LENGTHS), len(FORMATS)),
    *(len(TOPICS), N_NOUNS, len(AUDIENCES)),
)
N_PROMPTS = int(np.prod(PROMPT_SHAPE))

MAX_ITEMS = 3
ITEM_SHAPE = (len(HEDGES), 2, len(VERBS), len(DETERMINERS), len(NOUNS))
ITEMS = tuple(
    f"{hedge}{verb} {determiner} {noun}"
    for hedge in HEDGES
    for verbs in (VERBS, MISSPELT)
    for verb in verbs
    for determiner in DETERMINERS
    for noun in NOUNS
)
SENTENCES = tuple(f"{item[0].upper()}{item[1:]}." for item in ITEMS)
NEXT_SENTENCES = tuple(f"Then {item}." for item in ITEMS)

QUALITIES = ("on_topic", "polite", "hedged", "faulty", "right_format", "right_length")
QUALITY_WEIGHTS = np.array([2.5, 0.8, -0.8, -0.9, 1.7, 1.4])
TIE_WEIGHT = 0.9

# Share of on-topic items, and of met requests, that each simulated model aims at.
SKILLS = np.linspace(0.25, 0.95, 8)
MODEL_NAMES = tuple(f"simulated-{number}b" for number in range(1, len(SKILLS) + 1))


@dataclass
class Answers:
    """Pairs of answers as indices into the word lists; ``n`` pairs, 2 answers each.

    Attributes:
        prompt: ``(n,)`` int64 prompt code below ``N_PROMPTS``.
        multi_turn: ``(n,)`` bool; the second answer of a conversation is one sentence.
        follow_up: ``(n,)`` int64, the second user turn of multi-turn rows.
        model: ``(n, 2)`` int64, the two simulated models; they differ.
        format: ``(n, 2)`` int64 in ``FORMAT_NAMES``.
        n_items: ``(n, 2)`` int64, items of the first turn, 1 to ``MAX_ITEMS``.
        opening, closing: ``(n, 2)`` int64.
        items: ``(n, 2, MAX_ITEMS + 1)`` int64; the last one is the second turn's.
        empty: ``(n, 2)`` bool, the answer has no text.
    """

    prompt: np.ndarray
    multi_turn: np.ndarray
    follow_up: np.ndarray
    model: np.ndarray
    format: np.ndarray
    n_items: np.ndarray
    opening: np.ndarray
    closing: np.ndarray
    items: np.ndarray
    empty: np.ndarray


def draw_answers(
    rng: np.random.Generator, prompt: np.ndarray, multi_turn_share: float = 0.1
) -> Answers:
    """Draw two models and their answers to every prompt code of ``(n,)`` int64."""
    n_rows = len(prompt)
    _, length, layout, topic, _, _ = np.unravel_index(prompt, PROMPT_SHAPE)
    first = rng.integers(len(SKILLS), size=n_rows)
    other = (first + rng.integers(1, len(SKILLS), size=n_rows)) % len(SKILLS)
    model = np.stack([first, other], axis=1)
    skill = SKILLS[model]
    pair = (n_rows, 2)
    meets = rng.random((2, *pair)) < 0.25 + 0.6 * skill
    wrong_format = (layout[:, None] // 3 + rng.integers(1, 3, size=pair)) % 3
    is_long = (length[:, None] >= 3) == meets[1]
    polite = rng.random((2, *pair)) < 0.45

    def ending(is_polite: np.ndarray, n_polite: int) -> np.ndarray:
        blunt = rng.integers(N_BLUNT, size=pair) * (rng.random(pair) < 0.6)
        return np.where(is_polite, N_BLUNT + rng.integers(n_polite, size=pair), blunt)

    slots = (*pair, MAX_ITEMS + 1)
    share = np.clip(skill + rng.normal(0, 0.45, pair), 0, 1)[..., None]
    hedge_share, fault_share = 0.7 * rng.random((2, *pair, 1)) ** 2
    off_topic = (topic[:, None, None] + rng.integers(1, len(TOPICS), size=slots)) % len(
        TOPICS
    )
    is_on_topic = rng.random(slots) < share
    noun_topic = np.where(is_on_topic, topic[:, None, None], off_topic)
    hedge = np.where(
        rng.random(slots) < hedge_share, rng.integers(1, len(HEDGES), size=slots), 0
    )
    items = np.ravel_multi_index(
        (
            hedge,
            (rng.random(slots) < fault_share).astype(np.int64),
            rng.integers(len(VERBS), size=slots),
            rng.integers(len(DETERMINERS), size=slots),
            noun_topic * N_NOUNS + rng.integers(N_NOUNS, size=slots),
        ),
        ITEM_SHAPE,
    )
    return Answers(
        prompt=prompt,
        multi_turn=rng.random(n_rows) < multi_turn_share,
        follow_up=rng.integers(len(FOLLOW_UPS), size=n_rows),
        model=model,
        format=np.where(meets[0], layout[:, None] // 3, wrong_format),
        n_items=np.where(is_long, rng.integers(2, MAX_ITEMS + 1, size=pair), 1),
        opening=ending(polite[0], len(OPENINGS) - N_BLUNT),
        closing=ending(polite[1], len(CLOSINGS) - N_BLUNT),
        items=items,
        empty=np.zeros(pair, dtype=bool),
    )


def answer_qualities(answers: Answers) -> np.ndarray:
    """The six ``QUALITIES`` of both answers: ``(n, 2, 6)`` float64 in [0, 1].

    An empty answer has none of them.
    """
    _, length, layout, topic, _, _ = np.unravel_index(answers.prompt, PROMPT_SHAPE)
    hedge, misspelt, _, _, noun = np.unravel_index(answers.items, ITEM_SHAPE)
    used = np.arange(MAX_ITEMS + 1) < answers.n_items[..., None]
    used[..., MAX_ITEMS] = answers.multi_turn[:, None]
    n_used = used.sum(axis=2)

    def share(marks: np.ndarray) -> np.ndarray:
        return (marks & used).sum(axis=2) / n_used

    polite = (answers.opening >= N_BLUNT) * 0.5 + (answers.closing >= N_BLUNT) * 0.5
    qualities = np.stack(
        [
            share(noun // N_NOUNS == topic[:, None, None]),
            polite,
            share(hedge > 0),
            share(misspelt > 0),
            answers.format == layout[:, None] // 3,
            (answers.n_items > 1) == (length[:, None] >= 3),
        ],
        axis=2,
    )
    return np.where(answers.empty[..., None], 0.0, qualities)


def judge_probs(
    qualities: np.ndarray, *, ties: bool = True, noise: float = 0.0
) -> np.ndarray:
    """Probabilities of (A, B, tie) that labels are drawn from: ``(n, 3)`` float64.

    Args:
        qualities: ``(n, 2, 6)``, as ``answer_qualities`` returns.
        ties: Whether the judge may call a tie; if not, this is Bradley-Terry.
        noise: Share of the labels that are replaced by one of three at random.
    """
    advantage = (qualities[:, 0] - qualities[:, 1]) @ QUALITY_WEIGHTS
    weights = np.exp(np.stack([advantage, -advantage, 0 * advantage], axis=1) / 2)
    weights[:, 2] = TIE_WEIGHT * ties
    probs = weights / weights.sum(axis=1, keepdims=True)
    return (1 - noise) * probs + noise / 3


def draw_labels(rng: np.random.Generator, probs: np.ndarray) -> np.ndarray:
    """One class index a row, ``(n,)`` int64, from ``(n, 3)`` probabilities."""
    return (probs.cumsum(axis=1)[:, :2] <= rng.random((len(probs), 1))).sum(axis=1)


def bayes_log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean ``-log p(label)`` in nats: no model can expect to do better."""
    return -float(np.log(probs[np.arange(len(labels)), labels]).mean())


def prompt_texts(answers: Answers) -> list[list[str]]:
    """The user's turns of every row."""
    texts = []
    columns = np.stack(np.unravel_index(answers.prompt, PROMPT_SHAPE), axis=1).tolist()
    for (ask, length, layout, topic, noun, audience), multi, more in zip(
        columns, answers.multi_turn.tolist(), answers.follow_up.tolist(), strict=True
    ):
        text = (
            f"{ASKS[ask]} a {LENGTHS[length]} {FORMATS[layout]} about "
            f"{TOPIC_NAMES[topic]} and the {NOUNS[topic * N_NOUNS + noun]} "
            f"for {AUDIENCES[audience]}."
        )
        texts.append([text, FOLLOW_UPS[more]] if multi else [text])
    return texts


def answer_texts(answers: Answers, side: int) -> list[list[str]]:
    """The turns of answer 0 (A) or 1 (B) of every row."""
    texts = []
    for layout, n_items, opening, closing, items, multi, empty in zip(
        answers.format[:, side].tolist(),
        answers.n_items[:, side].tolist(),
        answers.opening[:, side].tolist(),
        answers.closing[:, side].tolist(),
        answers.items[:, side].tolist(),
        answers.multi_turn.tolist(),
        answers.empty[:, side].tolist(),
        strict=True,
    ):
        if empty:
            texts.append(["", ""] if multi else [""])
            continue
        if layout == 0:
            lines = [f"{n}. {ITEMS[item]}" for n, item in enumerate(items[:n_items], 1)]
            body = "\n".join(lines)
        elif layout == 1:
            sentences = [NEXT_SENTENCES[item] for item in items[1:n_items]]
            body = " ".join([SENTENCES[items[0]], *sentences])
        else:
            steps = '", "'.join([ITEMS[item] for item in items[:n_items]])
            body = f'{{"steps": ["{steps}"]}}'
        parts = (OPENINGS[opening], body, CLOSINGS[closing])
        text = ("\n" if layout == 0 else " ").join([part for part in parts if part])
        texts.append([text, SENTENCES[items[MAX_ITEMS]]] if multi else [text])
    return texts

"""Simulate answer pairs and a judge whose probabilities are known exactly.

A prompt asks for a topic, a format and a length. Two answers differ in six observable
qualities. The judge prefers one answer or calls a tie, with the probabilities of
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
# In the order of VERBS, each with its letters mixed up.
MISSPELT = (
    *("chekc", "choos", "claen", "comapre", "descibe", "expalin"),
    *("fnid", "kepe", "mesure", "prepair", "tset", "ues"),
)
HEDGES = ("", "maybe ", "perhaps ", "possibly ", "probably ")
DETERMINERS = ("the", "your", "every", "one")
OPENINGS = ("", "Fine.", "Look:", "Happy to help!", "Great question!", "Sure, friend!")
CLOSINGS = ("", "Enough.", "Done.", "Thanks for asking!", "Hope this helps!")
N_BLUNT = 3  # the first 3 openings and closings are blunt, the others polite
FORMAT_NAMES = ("list", "prose", "json")

ASKS = ("Write", "Give me", "Please write", "I need", "Can you share", "Show me")
LENGTHS = ("short", "brief", "small", "long", "detailed", "full")
# Three phrases for each of FORMAT_NAMES.
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
# A prompt code is an index into this grid: ask, length, format, topic, noun of the
# topic, audience.
PROMPT_SHAPE = (
    *(len(ASKS), len(LENGTHS), len(FORMATS)),
    *(len(TOPICS), N_NOUNS, len(AUDIENCES)),
)
N_PROMPTS = int(np.prod(PROMPT_SHAPE))

MAX_ITEMS = 3
# An item code is an index into this grid: hedge, right or misspelt, verb, determiner,
# noun. ITEMS has the text of every code.
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

# The skill of each simulated model: the share of its items that are on topic, and how
# often it meets a request. Models differ, so that pairs of models are uneven.
SKILLS = np.linspace(0.25, 0.95, 8)
MODEL_NAMES = tuple(f"simulated-{number}b" for number in range(1, len(SKILLS) + 1))


@dataclass
class Answers:
    """Hold ``n`` pairs of answers as indices into the word lists.

    Attributes:
        prompt: ``(n,)`` int64 prompt code below ``N_PROMPTS``.
        multi_turn: ``(n,)`` bool, the conversation has a second turn, which both
            answers fill with one sentence.
        follow_up: ``(n,)`` int64, the user's second turn; unused without one.
        model: ``(n, 2)`` int64, two different simulated models.
        format: ``(n, 2)`` int64 index into ``FORMAT_NAMES``.
        n_items: ``(n, 2)`` int64 number of items in the first turn, 1 to ``MAX_ITEMS``.
        opening, closing: ``(n, 2)`` int64 indices into ``OPENINGS`` and ``CLOSINGS``.
        items: ``(n, 2, MAX_ITEMS + 1)`` int64 item codes; the last is the second
            turn's, and those between ``n_items`` and it are unused.
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


def decode_requests(
    prompt: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode what prompts ask for.

    Args:
        prompt: ``(n,)`` int64 prompt codes.

    Returns:
        ``(n,)`` int64 topic, ``(n,)`` int64 format (an index into ``FORMAT_NAMES``),
        and ``(n,)`` bool, whether the prompt asks for a long answer.
    """
    _, length, phrase, topic, _, _ = np.unravel_index(prompt, PROMPT_SHAPE)
    n_phrases = len(FORMATS) // len(FORMAT_NAMES)
    return topic, phrase // n_phrases, length >= LENGTHS.index("long")


def draw_answers(
    rng: np.random.Generator, prompt: np.ndarray, multi_turn_share: float = 0.1
) -> Answers:
    """Draw two models and their answers to every prompt.

    Args:
        rng: Generator of everything random.
        prompt: ``(n,)`` int64 prompt codes.
        multi_turn_share: Share of the rows with a second turn.
    """
    # The order of the draws determines the demo's data: another order, other data.
    n_rows = len(prompt)
    topic, asked_format, asks_long = decode_requests(prompt)
    first = rng.integers(len(SKILLS), size=n_rows)
    other = (first + rng.integers(1, len(SKILLS), size=n_rows)) % len(SKILLS)
    model = np.stack([first, other], axis=1)
    skill = SKILLS[model]
    pair = (n_rows, 2)
    meets = rng.random((2, *pair)) < 0.25 + 0.6 * skill
    # Adding 1 or 2 modulo 3 reaches the two formats that were not asked for.
    wrong_format = (asked_format[:, None] + rng.integers(1, 3, size=pair)) % 3
    is_long = asks_long[:, None] == meets[1]
    polite = rng.random((2, *pair)) < 0.45

    def ending(is_polite: np.ndarray, n_polite: int) -> np.ndarray:
        blunt = rng.integers(N_BLUNT, size=pair) * (rng.random(pair) < 0.6)
        return np.where(is_polite, N_BLUNT + rng.integers(n_polite, size=pair), blunt)

    items = _draw_items(rng, topic, skill)
    return Answers(
        prompt=prompt,
        multi_turn=rng.random(n_rows) < multi_turn_share,
        follow_up=rng.integers(len(FOLLOW_UPS), size=n_rows),
        model=model,
        format=np.where(meets[0], asked_format[:, None], wrong_format),
        n_items=np.where(is_long, rng.integers(2, MAX_ITEMS + 1, size=pair), 1),
        opening=ending(polite[0], len(OPENINGS) - N_BLUNT),
        closing=ending(polite[1], len(CLOSINGS) - N_BLUNT),
        items=items,
        empty=np.zeros(pair, dtype=bool),
    )


def _draw_items(
    rng: np.random.Generator, topic: np.ndarray, skill: np.ndarray
) -> np.ndarray:
    """Draw the item codes of both answers.

    Args:
        rng: Generator of everything random.
        topic: ``(n,)`` int64 topic that the prompt asks for.
        skill: ``(n, 2)`` float64 skill of both models.

    Returns:
        ``(n, 2, MAX_ITEMS + 1)`` int64.
    """
    slots = (*skill.shape, MAX_ITEMS + 1)
    topic = topic[:, None, None]
    share = np.clip(skill + rng.normal(0, 0.45, skill.shape), 0, 1)[..., None]
    # Squared: most answers have few hedges and faults, and some have many.
    hedge_share, fault_share = 0.7 * rng.random((2, *skill.shape, 1)) ** 2
    off_topic = (topic + rng.integers(1, len(TOPICS), size=slots)) % len(TOPICS)
    is_on_topic = rng.random(slots) < share
    noun_topic = np.where(is_on_topic, topic, off_topic)
    hedge = np.where(
        rng.random(slots) < hedge_share, rng.integers(1, len(HEDGES), size=slots), 0
    )
    return np.ravel_multi_index(
        (
            hedge,
            (rng.random(slots) < fault_share).astype(np.int64),
            rng.integers(len(VERBS), size=slots),
            rng.integers(len(DETERMINERS), size=slots),
            noun_topic * N_NOUNS + rng.integers(N_NOUNS, size=slots),
        ),
        ITEM_SHAPE,
    )


def answer_qualities(answers: Answers) -> np.ndarray:
    """Compute the six ``QUALITIES`` of both answers.

    Returns:
        ``(n, 2, 6)`` float64 in [0, 1]; all 0 for an empty answer.
    """
    topic, asked_format, asks_long = decode_requests(answers.prompt)
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
            answers.format == asked_format[:, None],
            (answers.n_items > 1) == asks_long[:, None],
        ],
        axis=2,
    )
    return np.where(answers.empty[..., None], 0.0, qualities)


def judge_probs(
    qualities: np.ndarray, *, ties: bool = True, noise: float = 0.0
) -> np.ndarray:
    """Compute the judge's probabilities, from which labels are drawn.

    Args:
        qualities: ``(n, 2, 6)``, as ``answer_qualities`` returns.
        ties: Let the judge call ties. Without them, this is Bradley-Terry.
        noise: Share of the labels that are replaced by one of three at random.

    Returns:
        ``(n, 3)`` float64 probabilities of A, B and tie.
    """
    advantage = (qualities[:, 0] - qualities[:, 1]) @ QUALITY_WEIGHTS
    # Davidson's weights e^a, e^b and t e^((a+b)/2), all divided by e^((a+b)/2), so that
    # only the difference a - b is needed.
    weights = np.exp(np.stack([advantage, -advantage, 0 * advantage], axis=1) / 2)
    weights[:, 2] = TIE_WEIGHT * ties
    probs = weights / weights.sum(axis=1, keepdims=True)
    return (1 - noise) * probs + noise / 3


def draw_labels(rng: np.random.Generator, probs: np.ndarray) -> np.ndarray:
    """Draw one class index per row, ``(n,)`` int64, from ``(n, 3)`` probabilities."""
    return (probs.cumsum(axis=1)[:, :2] <= rng.random((len(probs), 1))).sum(axis=1)


def bayes_log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    """Compute the mean ``-log p(label)`` in nats, the best that a model can expect.

    Args:
        probs: ``(n, 3)``, as ``judge_probs`` returns.
        labels: ``(n,)`` int64 class indices.
    """
    return -float(np.log(probs[np.arange(len(labels)), labels]).mean())


def prompt_texts(answers: Answers) -> list[list[str]]:
    """Write the user's turns of every row: ``n`` lists of one or two texts."""
    texts = []
    columns = np.stack(np.unravel_index(answers.prompt, PROMPT_SHAPE), axis=1).tolist()
    for (ask, length, phrase, topic, noun, audience), multi, more in zip(
        columns, answers.multi_turn.tolist(), answers.follow_up.tolist(), strict=True
    ):
        text = (
            f"{ASKS[ask]} a {LENGTHS[length]} {FORMATS[phrase]} about "
            f"{TOPIC_NAMES[topic]} and the {NOUNS[topic * N_NOUNS + noun]} "
            f"for {AUDIENCES[audience]}."
        )
        texts.append([text, FOLLOW_UPS[more]] if multi else [text])
    return texts


def answer_texts(answers: Answers, side: int) -> list[list[str]]:
    """Write the turns of answer 0 (A) or 1 (B) of every row.

    Returns:
        ``n`` lists with as many texts as the conversation has turns.
    """
    texts = []
    for format_index, n_items, opening, closing, items, multi, empty in zip(
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
        format_name = FORMAT_NAMES[format_index]
        if format_name == "list":
            lines = [f"{n}. {ITEMS[item]}" for n, item in enumerate(items[:n_items], 1)]
            body = "\n".join(lines)
        elif format_name == "prose":
            sentences = [NEXT_SENTENCES[item] for item in items[1:n_items]]
            body = " ".join([SENTENCES[items[0]], *sentences])
        else:
            steps = '", "'.join([ITEMS[item] for item in items[:n_items]])
            body = f'{{"steps": ["{steps}"]}}'
        parts = (OPENINGS[opening], body, CLOSINGS[closing])
        separator = "\n" if format_name == "list" else " "
        text = separator.join([part for part in parts if part])
        texts.append([text, SENTENCES[items[MAX_ITEMS]]] if multi else [text])
    return texts

"""Pre-train all weights of a model on dense labels, with temporary heads.

Tags are predicted from the middle layer and ratings from the last one, so that a rating
can average tags that lower layers have found. A model of two layers that predicts all
labels from its last layer learns neither in time.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import Linear
from torch.nn.functional import cross_entropy, layer_norm
from transformers import PreTrainedModel

from prefdistill.data.prompts import EncodedPairs
from prefdistill.running.progress import Progress
from prefdistill.simulation.dense_labels import N_TAGS, DenseLabels
from prefdistill.simulation.simulated_pairs import FORMAT_NAMES, QUALITIES, TOPIC_NAMES

BATCH_PAIRS = 16
WINDOW_BATCHES = 16  # batches whose rows are sorted by length together
UNTAGGED_WEIGHT = 0.1  # most tokens have no tag
ASKED_WEIGHT = 0.6
LAST_WEIGHT = 2.0
# On-topic, right format and right length compare an answer with its prompt, which is
# harder to learn than to find a word.
RATING_WEIGHTS = (4.0, 1.0, 1.0, 1.0, 2.0, 2.0)
N_ASKED = (len(TOPIC_NAMES), len(FORMAT_NAMES), 2)


class DenseHeads(torch.nn.Module):
    """Predict the dense labels with linear layers.

    Args:
        hidden_size: Width of the model.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        n_ratings = len(QUALITIES)
        self.tags = Linear(hidden_size, N_TAGS)
        self.noun = Linear(hidden_size, 1 + len(TOPIC_NAMES))
        self.asked = torch.nn.ModuleList(Linear(hidden_size, n) for n in N_ASKED)
        self.first = Linear(hidden_size, n_ratings)
        self.both = Linear(hidden_size, 2 * n_ratings)
        weights = torch.tensor(RATING_WEIGHTS)
        self.register_buffer("weights", weights / weights.mean())

    def tag_loss(
        self, middle: torch.Tensor, tags: torch.Tensor, nouns: torch.Tensor,
        answer_at: torch.Tensor, asked: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Sum the cross-entropies of tags, noun topics and what the prompt asks for.

        Args:
            middle: ``(rows, length, hidden_size)`` states of the middle layer.
            tags: ``(rows, length)`` int64, -100 at padding.
            nouns: ``(rows, length)`` int64, -100 at padding.
            answer_at: ``(rows, length)`` int64, 0 outside the answers.
            asked: ``(rows, 3)`` int64.
        """
        # Layers in the middle have no norm of their own at their output.
        middle = layer_norm(middle, middle.shape[-1:])
        weights = torch.ones(N_TAGS)
        weights[0] = UNTAGGED_WEIGHT
        tag_logits = self.tags(middle).flatten(0, 1)
        loss = cross_entropy(tag_logits, tags.flatten(), weights)
        row, token = answer_at.nonzero(as_tuple=True)
        asked_loss = cross_entropy(self.noun(middle).flatten(0, 1), nouns.flatten())
        for head, target in zip(self.asked, asked.T, strict=True):
            asked_loss = asked_loss + cross_entropy(
                head(middle[row, token]), target[row]
            )
        return loss + ASKED_WEIGHT * asked_loss

    def rating_loss(
        self, top: torch.Tensor, answer_at: torch.Tensor, ratings: torch.Tensor,
        last: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Sum the weighted mean squared errors of the ratings.

        Each token of answer A rates A, and each token of answer B rates both, so a
        token learns to rate as much of an answer as it has seen. The last token of a
        row counts most, since the classifier reads its state.

        Args:
            top: ``(rows, length, hidden_size)`` states of the last layer.
            answer_at: ``(rows, length)`` int64: 1 in answer A, 2 in answer B, else 0.
            ratings: ``(rows, 2, 6)`` float, standardised.
            last: ``(rows,)`` int64 positions of last tokens.
        """
        row, token = (answer_at == 1).nonzero(as_tuple=True)
        first = self.first(top[row, token]) - ratings[row, 0]
        row, token = (answer_at == 2).nonzero(as_tuple=True)
        both = self.both(top[row, token]).unflatten(1, (2, -1)) - ratings[row]
        ends = self.both(top[torch.arange(len(top)), last]).unflatten(1, (2, -1))

        def error(difference: torch.Tensor) -> torch.Tensor:
            return (difference.square() * self.weights).mean()

        # Ratings at tokens that have not seen the whole answer count half.
        return (
            0.5 * error(first)
            + error(both[:, 0])
            + 0.5 * error(both[:, 1])
            + LAST_WEIGHT * error(ends - ratings)
        )


def draw_batches(lengths: np.ndarray, seed: int, n_steps: int) -> Iterator[np.ndarray]:
    """Draw ``n_steps`` batches of row indices, each of rows of similar length.

    Args:
        lengths: ``(n,)`` number of tokens per row.
        seed: Seed of the shuffles.
        n_steps: Number of batches; epochs follow one another until it is reached.
    """
    rng = np.random.default_rng([seed, 8])
    n_done = 0
    while n_done < n_steps:
        order = rng.permutation(len(lengths))
        for start in range(0, len(order), BATCH_PAIRS * WINDOW_BATCHES):
            rows = order[start : start + BATCH_PAIRS * WINDOW_BATCHES]
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            # Ceiling division: the last batch of a window may be smaller.
            parts = np.array_split(rows, -(-len(rows) // BATCH_PAIRS))
            for part in rng.permutation(len(parts))[: n_steps - n_done]:
                n_done += 1
                yield parts[part]


def pad_right(arrays: list[np.ndarray], fill: int) -> torch.Tensor:
    """Stack arrays, padded on the right with ``fill``: ``(rows, longest)`` int64."""
    result = np.full((len(arrays), max(map(len, arrays))), fill, dtype=np.int64)
    for row, array in enumerate(arrays):
        result[row, : len(array)] = array
    return torch.from_numpy(result)


def batch_loss(
    model: PreTrainedModel,
    heads: DenseHeads,
    encoded: EncodedPairs,
    labels: DenseLabels,
    rows: np.ndarray,
) -> torch.Tensor:
    """Compute the loss of some rows: a scalar.

    Args:
        model: A causal model; its own head is not used.
        heads: The temporary heads.
        encoded: The pairs.
        labels: Labels of the same pairs.
        rows: Positions of the pairs of the batch.
    """
    # No attention mask: causal attention never looks right, where the padding is.
    tokens = [encoded.tokens(row, "AB") for row in rows]
    states = model.model(
        pad_right(tokens, 0), use_cache=False, output_hidden_states=True
    )
    answer_at = pad_right([labels.answer_at[row] for row in rows], 0)
    middle = states.hidden_states[max(1, model.config.num_hidden_layers // 2)]
    lower = heads.tag_loss(
        middle,
        pad_right([labels.tags[row] for row in rows], -100),
        pad_right([labels.noun_topics[row_tokens] for row_tokens in tokens], -100),
        answer_at,
        torch.from_numpy(labels.asked[rows]),
    )
    last = torch.from_numpy(encoded.lengths[rows].astype(np.int64) - 1)
    ratings = torch.from_numpy(labels.ratings[rows])
    return lower + heads.rating_loss(states.last_hidden_state, answer_at, ratings, last)


def pretrain(
    model: PreTrainedModel,
    encoded: EncodedPairs,
    labels: DenseLabels,
    *,
    n_steps: int,
    learning_rate: float,
    seed: int,
) -> list[float]:
    """Train all weights of ``model.model`` in place.

    Args:
        model: A causal model.
        encoded: The pairs.
        labels: Labels of the same pairs.
        n_steps: Number of steps, of about ``BATCH_PAIRS`` pairs each.
        learning_rate: Peak learning rate of AdamW.
        seed: Seed of heads and batches.

    Returns:
        The loss of every step.
    """
    torch.manual_seed(seed)
    heads = DenseHeads(model.config.hidden_size)
    parameters = [*model.model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, learning_rate, (0.9, 0.98), weight_decay=0.0, fused=True
    )
    progress, losses = Progress(n_steps, "steps"), []
    model.train()
    for step, rows in enumerate(draw_batches(encoded.lengths, seed, n_steps)):
        share = (step + 1) / n_steps
        # Warm-up over 5 % of the steps, and linear decay over the last 30 % instead of
        # a cosine: comparisons with the prompt are learnt late, at the full rate.
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(share / 0.05, 1, (1.001 - share) / 0.3)
        loss = batch_loss(model, heads, encoded, labels, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        progress.update(1, int(encoded.lengths[rows].sum()), f"loss {losses[-1]:.3f}")
    model.eval()
    return losses

"""Load a finished judge from its folder, and compare two answers.

    from prefdistill.judge import Judge

    judge = Judge.load("results/release/gptq4bit")
    judge.compare("Is the sea blue?", "Yes.", "Often: it mirrors the sky.")

The workflow predicts with the same functions (cleaning, building of rows, scoring,
calibration, average over both orders), so the probabilities are the workflow's.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from prefdistill.data.cells import CellFault, parse_turns
from prefdistill.data.pairs import TEXT_COLUMNS
from prefdistill.data.prompts import EncodedPairs, encode_pairs
from prefdistill.data.texts import strip_turns
from prefdistill.engine.packing import CPU_TOKENS
from prefdistill.errors import UserError
from prefdistill.export.judge_settings import JudgeSettings, read_judge_settings
from prefdistill.models.forward import device_of
from prefdistill.models.loading import load_classifier, load_tokenizer
from prefdistill.models.memory import place
from prefdistill.models.precision import find_device
from prefdistill.models.scoring import score_pairs
from prefdistill.scores.views import as_answers, symmetrise
from prefdistill.storage.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

Text = str | Sequence[str]

GPU_TOKENS = 16896
# Pairs between two reports of progress. Bins of this many pairs are packed almost as
# full as bins of all pairs together.
CHUNK_PAIRS = 1024


class Verdict(NamedTuple):
    """The probabilities that a person prefers answer A, answer B, or neither."""

    a: float
    b: float
    tie: float


def pairs_table(ids: Sequence[str], rows: Sequence[Sequence[list[str]]]) -> pa.Table:
    """Build a table of pairs, with control characters removed as in the workflow.

    Args:
        ids: One per row.
        rows: The turns of prompt, answer A and answer B of each row.

    Returns:
        Columns ``id``, ``prompt``, ``response_a`` and ``response_b``.
    """
    columns: dict[str, Any] = {"id": pa.array(ids, pa.string())}
    for column, name in enumerate(TEXT_COLUMNS):
        turns = pa.array([row[column] for row in rows], pa.list_(pa.string()))
        columns[name], _ = strip_turns(turns)
    return pa.table(columns)


def _copied(text: Text) -> Text:
    """Copy a list of turns, as parsing repairs it in place."""
    return list(text) if isinstance(text, list | tuple) else text


def _listed(pairs: Any) -> list[Any]:
    """List pairs that may come from a generator.

    Raises:
        UserError: If they are one text, one mapping, or no collection.
    """
    if isinstance(pairs, str | bytes | Mapping) or not isinstance(pairs, Iterable):
        raise UserError(
            f"pairs: {type(pairs).__name__} is not a list of pairs; give "
            "[(prompt, response_a, response_b), ...]"
        )
    return list(pairs)


def _turns(row: Any, number: int) -> list[list[str]]:
    """Parse a row's three texts into lists of turns.

    Raises:
        UserError: If they are not three texts.
    """
    texts: Any = row
    if isinstance(row, Mapping) and row.keys() == set(TEXT_COLUMNS):
        texts = [row[name] for name in TEXT_COLUMNS]
    # Anything else that can be iterated, such as a set, could yield texts in any order.
    if not isinstance(texts, list | tuple) or len(texts) != len(TEXT_COLUMNS):
        raise UserError(
            f"pair {number}: is not (prompt, response_a, response_b); give three texts "
            "in this order, or a mapping with these keys and no others"
        )
    try:
        return [
            parse_turns([text] if isinstance(text, str) else text, name, Counter())
            for name, text in zip(TEXT_COLUMNS, map(_copied, texts), strict=True)
        ]
    except CellFault as fault:
        raise fault.located("pairs", f"pair {number}") from fault


@dataclass(frozen=True)
class Judge:
    """A loaded judge; make one with ``Judge.load``.

    Attributes:
        model: The frozen classifier.
        tokenizer: Its tokenizer.
        settings: The template, the views and the calibration.
        token_budget: Most tokens in a forward pass.
    """

    model: Any
    tokenizer: Any
    settings: JudgeSettings
    token_budget: int

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device | None = None
    ) -> "Judge":
        """Load a judge from a folder: a release, the merged model, or a GPTQ model.

        Nothing is downloaded, and no code in the folder is run. Weights are 16-bit on a
        GPU (NF4 if 16-bit weights would not fit) and 32-bit on the CPU. GPTQ weights
        stay as they are.

        Args:
            path: The folder.
            device: Such as ``cpu`` or ``cuda:1``; by default the GPU if there is one.

        Raises:
            UserError: If a file of the judge is missing or damaged, or if this machine
                has no such device.
        """
        device = find_device(device)
        folder = Path(path)
        settings = read_judge_settings(folder)
        on_cpu = device.type == "cpu"
        token_budget = CPU_TOKENS if on_cpu else GPU_TOKENS
        precision = "auto" if on_cpu else place(folder, "auto", token_budget)[0]
        model = load_classifier(folder, precision, device=device)
        return cls(model, load_tokenizer(folder), settings, token_budget)

    def compare(self, prompt: Text, response_a: Text, response_b: Text) -> Verdict:
        """Estimate the probabilities that A, B or neither is preferred.

        Args:
            prompt: One text, or the user's turns in order.
            response_a: One answer, or the answers to each turn.
            response_b: The other answer, in the same form.

        Raises:
            UserError: If a text is neither a string nor a list of strings.
        """
        return self.compare_batch([(prompt, response_a, response_b)])[0]

    def compare_batch(
        self,
        pairs: Iterable[Sequence[Text] | Mapping[str, Text]],
        progress: Callable[[int, int], object] | None = None,
    ) -> list[Verdict]:
        """Compare many pairs in packed batches, much faster than one by one.

        Args:
            pairs: Each is ``(prompt, response_a, response_b)``, as for ``compare``, or
                a mapping with these three keys.
            progress: Function that is called with the number of pairs done and the
                number of all pairs.

        Raises:
            UserError: If a pair has another form, or a text is neither a string nor a
                list of strings.
        """
        rows = [_turns(pair, number) for number, pair in enumerate(_listed(pairs), 1)]
        verdicts: list[Verdict] = []
        for start in range(0, len(rows), CHUNK_PAIRS):
            chunk = rows[start : start + CHUNK_PAIRS]
            ids = [str(start + number) for number in range(1, len(chunk) + 1)]
            probs, _ = self.score(pairs_table(ids, chunk))
            verdicts += [Verdict(*row) for row in probs.tolist()]
            if progress:
                progress(len(verdicts), len(rows))
        return verdicts

    def score(
        self, table: pa.Table, checkpoints: Checkpoints | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score a table of pairs, as the workflow predicts them.

        Args:
            table: From ``pairs_table``.
            checkpoints: Where the logits of a stopped call are kept; None keeps none.

        Returns:
            ``(n, 3)`` calibrated probabilities of (A, B, tie), and the ``(n,)``
            ``order_gap``; both float.

        Raises:
            Interrupted: If the process has to stop; finished logits are kept.
        """
        encoded = self.encode(table)
        if encoded.n_truncated:
            logger.info("%d pairs are too long and are cut", encoded.n_truncated)
        logits = self.logits(encoded, checkpoints)
        return self.probabilities(logits), self.order_gap(logits)

    def encode(self, table: pa.Table) -> EncodedPairs:
        """Tokenise a table of pairs from ``pairs_table``."""
        return encode_pairs(table, self.tokenizer, self.settings.text)

    def logits(
        self, encoded: EncodedPairs, checkpoints: Checkpoints | None = None
    ) -> np.ndarray:
        """Compute raw logits in all views, ``(n, n_views, 3)`` float32 as shown.

        Args:
            encoded: From ``encode``.
            checkpoints: Where the logits of a stopped call are kept; None keeps none.
        """
        return score_pairs(
            self.model,
            encoded,
            views=self.settings.views,
            token_budget=self.token_budget,
            checkpoints=checkpoints,
        )

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrate logits and average the views.

        Args:
            logits: ``(n, n_views, 3)``, from ``logits``.

        Returns:
            ``(n, 3)`` float probabilities of (A, B, tie).
        """
        return symmetrise(self.settings.scaling.apply(logits), self.settings.views)

    def order_gap(self, logits: np.ndarray) -> np.ndarray:
        """Measure how much the order of the answers changes the probabilities.

        Args:
            logits: ``(n, n_views, 3)``, from ``logits``.

        Returns:
            ``(n,)`` float total variation distances between the two orders'
            probabilities, from 0 to 1; 0 with one view.
        """
        scaled = as_answers(self.settings.scaling.apply(logits), self.settings.views)
        first, last = (symmetrise(scaled[:, [i]], ["AB"]) for i in (0, -1))
        return np.abs(first - last).sum(axis=1) / 2

    @property
    def device(self) -> torch.device:
        """Return the device that holds the weights."""
        return device_of(self.model)

"""The training loop: packed bins, a fixed number of pairs a step, exact resume.

Nothing depends on the state of a random generator: the order of the data comes from
(seed, epoch) and dropout from (seed, step), so a resumed run repeats the uninterrupted
one bit for bit on a CPU.
"""

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from prefdistill.checkpoints import Checkpoints
from prefdistill.files import naming, write_text
from prefdistill.io import VIEWS
from prefdistill.job import Interrupted, Progress, UserError, stop_requested
from prefdistill.losses import RowLosses
from prefdistill.memory import must_recompute
from prefdistill.models import core_model, device_of
from prefdistill.packing import collate, pack
from prefdistill.prompts import EncodedPairs

logger = logging.getLogger(__name__)

RUN_TIME_KEYS = ("token_budget", "recompute", "checkpoint_steps")
MAX_SKIPPED_STEPS = 5
FP16_LOSS_SCALE = 1024.0


def result_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Training settings that decide the result, without those of how it is run."""
    return {key: settings[key] for key in settings if key not in RUN_TIME_KEYS}


def train_rows(table: pa.Table, path: Path) -> pa.Table:
    """The rows of split ``train``.

    Raises:
        UserError: If there is none.
    """
    table = table.filter(pc.equal(table.column("split"), "train"))
    if not len(table):
        raise UserError(f"{path}: no row has split train; use fewer folds or more data")
    return table


def choose_rows(n_total: int, n_rows: int | None, seed: int) -> np.ndarray:
    """Sorted indices of a seeded subset; all rows if ``n_rows`` is None or enough."""
    if n_rows is None or n_rows >= n_total:
        return np.arange(n_total)
    return np.sort(np.random.default_rng(seed).choice(n_total, n_rows, replace=False))


@dataclass(frozen=True)
class Plan:
    """Which pairs go into which step, and at which learning rate."""

    n_pairs: int
    pairs_per_step: int
    n_steps: int
    n_warmup: int
    seed: int

    @classmethod
    def from_settings(
        cls, settings: dict[str, Any], n_pairs: int, epochs: float
    ) -> "Plan":
        """Round the epochs to whole steps, at least one; ``max_steps`` caps them."""
        pairs_per_step = min(settings["pairs_per_step"], n_pairs)
        n_steps = max(1, round(epochs * n_pairs / pairs_per_step))
        if settings.get("max_steps") is not None:
            n_steps = min(n_steps, settings["max_steps"])
        n_warmup = settings.get("warmup_steps")
        if n_warmup is None:
            n_warmup = round(settings["warmup_fraction"] * n_steps)
        return cls(n_pairs, pairs_per_step, n_steps, n_warmup, settings["seed"])

    def pairs(self, step: int) -> np.ndarray:
        """Pair indices of a step, ``(pairs_per_step,)``.

        Steps cut an endless row of shuffled epochs, so that all are equally large and
        a pair is seen again only after all others.
        """
        first = step * self.pairs_per_step
        places = np.arange(first, first + self.pairs_per_step)
        epochs, within = np.divmod(places, self.n_pairs)
        orders = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(self.n_pairs)
            for epoch in np.unique(epochs).tolist()
        }
        places = zip(epochs.tolist(), within.tolist(), strict=True)
        return np.array([orders[epoch][place] for epoch, place in places])

    def learning_rate(self, step: int, settings: dict[str, Any]) -> float:
        """Linear warm-up, then cosine, linear or constant down to the least rate."""
        peak = settings["learning_rate"]
        if step < self.n_warmup:
            return peak * (step + 1) / self.n_warmup
        if settings["schedule"] == "constant":
            return peak
        done = (step - self.n_warmup) / max(1, self.n_steps - self.n_warmup)
        left = (
            (1 + math.cos(math.pi * done)) / 2
            if settings["schedule"] == "cosine"
            else 1 - done
        )
        floor = settings["min_lr_ratio"]
        return peak * (floor + (1 - floor) * left)


class Trainer:
    """One training run; ``run`` goes through its steps and keeps checkpoints.

    Args:
        model: A PEFT model; its trainable weights are float32.
        encoded: Pairs to train on.
        row_losses: The objective.
        settings: A ``training`` or ``post_pretrain`` block.
        epochs: Passes over the pairs; may be a fraction.
        checkpoints: Where state is kept between interruptions.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        encoded: EncodedPairs,
        row_losses: RowLosses,
        settings: dict[str, Any],
        epochs: float,
        checkpoints: Checkpoints,
    ) -> None:
        self.model, self.encoded, self.row_losses = model, encoded, row_losses
        self.settings, self.checkpoints = settings, checkpoints
        self.plan = Plan.from_settings(settings, len(encoded.ids), epochs)
        self.weights = {
            name: weight
            for name, weight in model.named_parameters()
            if weight.requires_grad
        }
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=settings["learning_rate"],
            weight_decay=settings["weight_decay"],
        )
        self.step = self.n_updates = self.n_skipped_running = 0
        self.curve_path = checkpoints.folder / "train.jsonl"
        fp16 = core_model(model).dtype == torch.float16
        self.loss_scale = FP16_LOSS_SCALE if fp16 else 1.0
        if must_recompute(model, settings):
            core_model(model).activation_checkpointing_enable({"use_reentrant": False})

    def run(self, curve_path: Path) -> None:
        """Train to the last step, resuming if there is a checkpoint.

        Args:
            curve_path: JSON lines written at the end: ``step, loss, lr, grad_norm,
                n_tokens, seconds`` (of the step).

        Raises:
            Interrupted: After SIGTERM or SIGUSR1, once the state is saved.
            UserError: After five steps in a row without a finite loss and gradient.
        """
        self._resume()
        self.model.train()
        progress = Progress(self.plan.n_steps, "steps", done=self.step)
        every = self.settings["checkpoint_steps"]
        while self.step < self.plan.n_steps:
            record = self._take_step()
            with (
                naming(self.curve_path),
                open(self.curve_path, "a", encoding="utf-8") as curve,
            ):
                curve.write(json.dumps(record) + "\n")
            note = f"loss {record['loss']:.4f}" if record["loss"] is not None else ""
            progress.update(1, record["n_tokens"], note)
            unfinished = self.step < self.plan.n_steps
            if unfinished and (stop_requested() or self.step % every == 0):
                self._save()
            if unfinished and stop_requested():
                raise Interrupted(
                    f"saved at step {self.step} of {self.plan.n_steps}; the same "
                    "command goes on from there"
                )
        self.model.eval()
        write_text(curve_path, self.curve_path.read_text(encoding="utf-8"))

    def finish(self) -> None:
        """Remove the state of the run, once its outputs are in place."""
        self.curve_path.unlink(missing_ok=True)
        self.checkpoints.remove()

    def _take_step(self) -> dict[str, Any]:
        """Forward, backward and update on one step's pairs in both orders."""
        started = time.monotonic()
        pairs = self.plan.pairs(self.step)
        rows = np.repeat(pairs, 2)
        views = np.tile([0, 1], len(pairs))
        sequence = np.random.SeedSequence([self.settings["seed"], self.step])
        torch.manual_seed(int(sequence.generate_state(1)[0]))
        loss = torch.zeros((), device=device_of(self.model))
        bins = pack(self.encoded.lengths[rows], self.settings["token_budget"])
        for members in bins:
            tokens = [
                self.encoded.tokens(rows[i], VIEWS[views[i]]) for i in members.tolist()
            ]
            losses = self.row_losses(
                self.model, collate(tokens), rows[members], views[members]
            )
            part = losses.sum() / len(rows)
            (part * self.loss_scale).backward()
            loss += part.detach()
        learning_rate = self.plan.learning_rate(self.step, self.settings)
        value = float(loss)
        norm = self._clip()
        ok = math.isfinite(value) and math.isfinite(norm)
        if ok:
            self.optimizer.param_groups[0]["lr"] = learning_rate
            self.optimizer.step()
            self.n_updates += 1
            self.n_skipped_running = 0
        else:
            self._skip(pairs, value, norm)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "step": self.step,
            "loss": value if ok else None,
            "lr": learning_rate,
            "grad_norm": norm if ok else None,
            "n_tokens": int(self.encoded.lengths[rows].sum()),
            "seconds": round(time.monotonic() - started, 4),
        }

    def _clip(self) -> float:
        """Undo the loss scale, clip the gradients' norm, return it as it was."""
        weights = [w for w in self.weights.values() if w.grad is not None]
        if self.loss_scale != 1.0:
            for weight in weights:
                weight.grad.div_(self.loss_scale)
        limit = self.settings["max_grad_norm"]
        return float(torch.nn.utils.clip_grad_norm_(weights, limit))

    def _skip(self, pairs: np.ndarray, loss: float, norm: float) -> None:
        """Log the rows of a step without a finite loss and gradient; stop in the end.

        Raises:
            UserError: If it is the fifth such step in a row.
        """
        self.n_skipped_running += 1
        ids = ", ".join(self.encoded.ids[pairs].tolist())
        logger.warning(
            "step %d skipped: loss %s, gradient norm %s; row ids: %s",
            self.step + 1, loss, norm, ids,
        )  # fmt: skip
        if self.n_skipped_running >= MAX_SKIPPED_STEPS:
            raise UserError(
                f"steps {self.step - MAX_SKIPPED_STEPS + 2} to {self.step + 1} had no "
                "finite loss and gradient; lower learning_rate or change precision"
            )

    def _save(self) -> None:
        tensors = {f"weight.{name}": weight for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            for key in ("exp_avg", "exp_avg_sq"):
                if self.n_updates:
                    tensors[f"{key}.{name}"] = self.optimizer.state[weight][key]
        counts = {
            "n_updates": self.n_updates,
            "n_skipped_running": self.n_skipped_running,
        }
        self.checkpoints.save(self.step, tensors, counts)

    def _resume(self) -> None:
        """Take up the newest checkpoint, and the loss curve as far as it goes."""
        lines: list[str] = []
        found = self.checkpoints.load()
        if found is not None:
            self.step, tensors, counts = found
            self.n_updates = counts["n_updates"]
            self.n_skipped_running = counts["n_skipped_running"]
            for name, weight in self.weights.items():
                weight.data.copy_(tensors[f"weight.{name}"])
                if self.n_updates:
                    self.optimizer.state[weight] = {
                        "step": torch.tensor(float(self.n_updates)),
                        "exp_avg": tensors[f"exp_avg.{name}"].to(weight.device),
                        "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(weight.device),
                    }
            if self.curve_path.exists():
                lines = self.curve_path.read_text(encoding="utf-8").splitlines(True)
            logger.info("going on from step %d of %d", self.step, self.plan.n_steps)
        write_text(self.curve_path, "".join(lines[: self.step]))

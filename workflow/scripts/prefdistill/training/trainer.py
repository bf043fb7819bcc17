"""Train an adapter: packed bins, a fixed number of pairs per step, exact resume.

The order of the data depends only on (seed, epoch), and dropout only on (seed, step,
bin). So a resumed run repeats an uninterrupted one bit for bit on a CPU. Several
processes share out the rows of a step and add up their gradients. The step is the same
for any number of processes, up to rounding and the draws of dropout.
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.autograd.graph import increment_version

from prefdistill.data.prompts import EncodedPairs
from prefdistill.engine.packing import collate, pack_shares, shape_step, shared_tokens
from prefdistill.errors import Interrupted, UserError
from prefdistill.models.forward import (
    core_model,
    device_of,
    engine_of,
    is_sharded,
    shares_prompts,
)
from prefdistill.models.memory import (
    count_parameters,
    fit_training,
    halved_budget,
    note_short_memory,
)
from prefdistill.running.processes import (
    any_process,
    is_first,
    n_processes,
    own_share,
    sum_over_processes,
    wait_for_all,
)
from prefdistill.running.progress import Progress
from prefdistill.running.stopping import stop_requested
from prefdistill.settings import OptimisationSettings
from prefdistill.storage.checkpoints import Checkpoints
from prefdistill.storage.logits import VIEWS
from prefdistill.storage.whole_files import write_text
from prefdistill.training.ema import WeightAverage
from prefdistill.training.objectives import RowLosses
from prefdistill.training.steps import Plan

logger = logging.getLogger(__name__)

MAX_SKIPPED_STEPS = 5
FP16_LOSS_SCALE = 1024.0
# Compiling four more shapes takes about forty seconds and saves 1 to 4 % of the tokens,
# which are padding. On an H100 that pays after about an hour of training, which is this
# many operations.
FEW_SHAPES, MANY_SHAPES, MANY_SHAPES_FLOP = 4, 8, 2e18


def train_rows(table: pa.Table, path: Path) -> pa.Table:
    """Return the rows of split ``train``.

    Args:
        table: A fold's rows.
        path: Their file, for the error message.

    Raises:
        UserError: If there is none.
    """
    table = table.filter(pc.equal(table.column("split"), "train"))
    if not len(table):
        raise UserError(f"{path}: no row has split train; use fewer folds or more data")
    return table


def choose_rows(n_total: int, n_rows: int | None, seed: int) -> np.ndarray:
    """Choose a seeded subset of rows; all rows if ``n_rows`` is None or not less.

    Returns:
        ``(n,)`` int64 row indices, sorted.
    """
    if n_rows is None or n_rows >= n_total:
        return np.arange(n_total)
    return np.sort(np.random.default_rng(seed).choice(n_total, n_rows, replace=False))


class Trainer:
    """Train a model's adapter step by step, with checkpoints.

    With several processes, each has a trainer. Only the first process writes files.

    Args:
        model: A PEFT model; its trainable weights are float32.
        encoded: Pairs to train on.
        row_losses: The objective.
        settings: The ``training`` or ``post_pretrain`` settings.
        epochs: Passes over the pairs; may be a fraction.
        checkpoints: Where state is kept between interruptions.
        average_decay: Decay of the weights' running mean, ``average``; 0 keeps none.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        encoded: EncodedPairs,
        row_losses: RowLosses,
        settings: OptimisationSettings,
        epochs: float,
        checkpoints: Checkpoints,
        average_decay: float = 0.0,
    ) -> None:
        self.model, self.encoded, self.row_losses = model, encoded, row_losses
        self.settings, self.checkpoints = settings, checkpoints
        self.plan = Plan.from_settings(settings, len(encoded.ids), epochs)
        self.weights = {
            name: weight
            for name, weight in model.named_parameters()
            if weight.requires_grad
        }
        self.average = (
            WeightAverage(self.weights, average_decay) if average_decay else None
        )
        self.is_fused = device_of(model).type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=self.is_fused,
        )
        how, self.token_budget = fit_training(
            model, settings, int(encoded.lengths.max())
        )
        engine_of(model).set_recompute(how)
        # A bin with both orders of a pair computes their common prompt once, so dropout
        # of LoRA draws one mask for it.
        self.common = encoded.prefix_lengths * shares_prompts(model)
        n_tokens = self.plan.n_steps * self._tokens_per_step()
        # Two per weight and token in the forward pass, two for the gradient of inputs.
        self.n_operations = 4 * count_parameters(model)["linear"] * n_tokens
        engine_of(model).set_compiled(self.n_operations, settings.compile)
        self.step = self.n_updates = self.n_skipped_running = 0
        self.curve: list[dict[str, Any]] = []
        fp16 = core_model(model).dtype == torch.float16
        self.loss_scale = FP16_LOSS_SCALE if fp16 else 1.0

    def run(self, curve_path: Path) -> None:
        """Train to the last step, resuming if there is a checkpoint.

        Args:
            curve_path: JSON lines, written at the end, one per step: ``step``, ``loss``
                in nats, ``lr``, ``grad_norm``, ``n_tokens`` and ``seconds``.

        Raises:
            Interrupted: After SIGTERM or SIGUSR1, or shortly before the time limit,
                once the state is saved.
            UserError: After five steps in a row without a finite loss and gradient.
        """
        self._resume()
        self.model.train()
        first_step = saved_step = self.step
        progress = Progress(self.plan.n_steps, "steps", done=self.step)
        while self.step < self.plan.n_steps:
            stop = any_process(stop_requested())
            due = self.step - saved_step >= self.settings.checkpoint_steps
            if self.step > saved_step and (stop or due):
                self._save()
                saved_step = self.step
            if stop:
                raise Interrupted(
                    f"saved at step {self.step} of {self.plan.n_steps}; the same "
                    "command goes on from there",
                    progressed=self.step > first_step,
                )
            record = self._take_step()
            self.curve.append(record)
            note = f"loss {record['loss']:.4f}" if record["loss"] is not None else ""
            progress.update(1, record["n_tokens"], note)
        self.model.eval()
        if is_first():
            write_text(curve_path, "".join(json.dumps(r) + "\n" for r in self.curve))

    def finish(self) -> None:
        """Delete the checkpoints, once the run's outputs are in place."""
        if is_first():
            self.checkpoints.remove()

    def _take_step(self) -> dict[str, Any]:
        """Update the weights on one step's pairs in both orders; return its record."""
        started = time.monotonic()
        pairs = self.plan.pairs(self.step)
        rows = np.repeat(pairs, 2)
        views = np.tile([0, 1], len(pairs))
        value = self._accumulate(rows, views)
        while value is None:
            self.optimizer.zero_grad(set_to_none=True)
            longest = int(self.encoded.lengths[rows].max())
            self.token_budget = halved_budget(self.token_budget, longest)
            value = self._accumulate(rows, views)
        learning_rate = self.plan.learning_rate(self.step, self.settings)
        norm = self._clip()
        ok = math.isfinite(value) and math.isfinite(norm)
        if ok:
            self.optimizer.param_groups[0]["lr"] = learning_rate
            self.optimizer.step()
            # The engine re-reads weights whose version changed. A fused AdamW does not
            # change it.
            increment_version(list(self.weights.values()))
            if self.average:
                self.average.update()
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

    def _accumulate(self, rows: np.ndarray, views: np.ndarray) -> float | None:
        """Compute the mean loss of a step's rows, and add up its gradient.

        Returns:
            The loss in nats over all processes; None if memory ran out in any.
        """
        lengths = self.encoded.lengths[rows]
        # Tokens shared with the previous row: each BA follows AB of the same pair.
        common = self.common[rows] * views
        shares = pack_shares(lengths, self.token_budget, common, n_processes())
        bins = [members for share in shares for members in share]
        shared = [shared_tokens(members, common) for members in bins]
        step = self.shape_step()
        sizes = [
            int(lengths[members].sum() - n_shared.sum())
            for members, n_shared in zip(bins, shared, strict=True)
        ]
        loss = torch.zeros((), device=device_of(self.model))
        out_of_memory = False
        try:
            counts, in_step = list(map(len, shares)), is_sharded(self.model)
            for index, weight in own_share(sizes, counts, in_step=in_step):
                self._seed_dropout(index)
                members = bins[index]
                tokens = [
                    self.encoded.tokens(rows[i], VIEWS[views[i]])
                    for i in members.tolist()
                ]
                batch = collate(tokens, step, shared[index])
                losses = self.row_losses(
                    self.model, batch, rows[members], views[members]
                )
                part = weight * losses.sum() / len(rows)
                (part * self.loss_scale).backward()
                loss += part.detach()
        except torch.OutOfMemoryError as error:
            note_short_memory(self.model, error)
            out_of_memory = True
        if any_process(out_of_memory):
            return None
        self._add_up(loss)
        return float(loss)

    def shape_step(self) -> int:
        """Return the step that lengths of passes are rounded up to.

        See ``packing.shape_step``.
        """
        budget = min(self.token_budget, round(1.25 * self._tokens_per_step()))
        n_shapes = FEW_SHAPES if self.n_operations < MANY_SHAPES_FLOP else MANY_SHAPES
        return shape_step(budget, device_of(self.model).type, n_shapes)

    def _tokens_per_step(self) -> float:
        """Return the mean number of tokens to compute in a step."""
        per_pair = 2 * self.encoded.lengths.mean() - self.common.mean()
        return self.plan.pairs_per_step * float(per_pair)

    def _seed_dropout(self, index: int) -> None:
        """Seed the dropout of a step's bin, whichever process works on it."""
        seeds = [self.settings.seed, self.step, index]
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))

    def _add_up(self, loss: torch.Tensor) -> None:
        """Sum loss and gradients over the processes, in place."""
        if n_processes() == 1:
            return
        # A process that had no bin has no gradients, but all must take part in the sum.
        for weight in self.weights.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in self.weights.values()]
        sum_over_processes([loss, *gradients])

    def _clip(self) -> float:
        """Undo the loss scale, clip the gradients' norm, and return the former norm."""
        weights = [w for w in self.weights.values() if w.grad is not None]
        if self.loss_scale != 1.0:
            for weight in weights:
                weight.grad.div_(self.loss_scale)
        limit = self.settings.max_grad_norm
        return float(torch.nn.utils.clip_grad_norm_(weights, limit))

    def _skip(self, pairs: np.ndarray, loss: float, norm: float) -> None:
        """Log the rows of a step without a finite loss and gradient.

        Raises:
            UserError: If it is the fifth such step in a row.
        """
        self.n_skipped_running += 1
        if self.loss_scale > 1.0:
            self.loss_scale /= 2  # the gradients may have overflowed in fp16
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
        if self.average:
            tensors |= self.average.tensors()
        info = {
            "n_updates": self.n_updates,
            "n_skipped_running": self.n_skipped_running,
            "token_budget": self.token_budget,
            "loss_scale": self.loss_scale,
            "curve": self.curve,
        }
        if is_first():
            self.checkpoints.save(self.step, tensors, info)
        wait_for_all()

    def _resume(self) -> None:
        """Restore the state from the newest checkpoint, if there is one."""
        found = self.checkpoints.load()
        if found is None:
            return
        self.step, tensors, info = found
        self.n_updates = info["n_updates"]
        self.n_skipped_running = info["n_skipped_running"]
        self.token_budget = min(self.token_budget, info["token_budget"])
        self.loss_scale = info["loss_scale"]
        self.curve = info["curve"]
        for name, weight in self.weights.items():
            with torch.no_grad():
                weight.copy_(tensors[f"weight.{name}"])
            if self.n_updates:
                # A fused AdamW keeps its step count on the weight's GPU.
                place = weight.device if self.is_fused else "cpu"
                self.optimizer.state[weight] = {
                    "step": torch.tensor(float(self.n_updates), device=place),
                    "exp_avg": tensors[f"exp_avg.{name}"].to(weight.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(weight.device),
                }
        if self.average:
            self.average.restore(tensors)
        logger.info("going on from step %d of %d", self.step, self.plan.n_steps)

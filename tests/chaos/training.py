"""Kill training and scoring at random and at chosen instants, and resume them.

    python tests/chaos/training.py --kills 200 --signals 50 --seed 0

Each trial runs tiny models through the real training loop or scorer, in a process that
is killed one to three times and started again. In the end every output must equal that
of the undisturbed run, byte for byte (except the ``seconds`` of a step). A kill may
cost no more steps than lie between two checkpoints.
"""

import argparse
import json
import mmap
import os
import shutil
import signal
import struct
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from children import (
    FILE_CALLS,
    KILLED,
    MAX_DRAWS,
    Child,
    Place,
    Tally,
    contents,
    count_calls,
    differing,
    draw_place,
    prepare,
    working_folder,
)

prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from prefdistill.data.prompts import EncodedPairs, encode_pairs  # noqa: E402
from prefdistill.models import scoring as inference  # noqa: E402
from prefdistill.models.loading import load_classifier, load_tokenizer  # noqa: E402
from prefdistill.models.lora import add_adapter, save_adapter  # noqa: E402
from prefdistill.models.scoring import score_pairs  # noqa: E402
from prefdistill.running.job import guarded  # noqa: E402
from prefdistill.running.progress import Progress  # noqa: E402
from prefdistill.settings import (  # noqa: E402
    BaseModelSettings,
    LoraSettings,
    OptimisationSettings,
    TextSettings,
    read,
)
from prefdistill.simulation.tiny_models import (  # noqa: E402
    build_model,
    draw_pairs,
    save_base,
    tokenizer_corpus,
    train_tokenizer,
)
from prefdistill.storage import checkpoints  # noqa: E402
from prefdistill.storage.checkpoints import Checkpoints  # noqa: E402
from prefdistill.storage.logits import VIEWS, Logits, write_logits  # noqa: E402
from prefdistill.training import trainer as training  # noqa: E402
from prefdistill.training.objectives import label_objective  # noqa: E402
from prefdistill.training.trainer import Trainer  # noqa: E402

N_PAIRS = 14
TEXT = TextSettings(
    template="{prompt} A: {response_a} B: {response_b} =",
    turn="<turn {n}>: ",
    max_length=60,
    prompt_share=0.25,
    head_share=0.5,
)
BASE = BaseModelSettings(
    source="tiny",
    hidden_size=32,
    n_layers=2,
    n_heads=4,
    pretrain_steps=0,
    seed=0,
    revision=None,
)
LORA = {
    "r": 2,
    "alpha": 4,
    "dropout": 0.2,
    "targets": ["q_proj", "up_proj"],
    "lowest_layer": 0,
}
SETTINGS = {
    "learning_rate": 0.01,
    "max_steps": 9,
    "pairs_per_step": 4,
    "token_budget": 160,  # three bins or more a step
    "warmup_steps": 2,
    "warmup_fraction": 0.0,
    "schedule": "cosine",
    "min_lr_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "seed": 7,
    "recompute": "auto",
    "compile": "auto",
}
TRAINING_CALLS = FILE_CALLS | {
    "between two bins of a step": (training, "collate"),
    "at the update": (torch.optim.AdamW, "step"),
    "between tensors and sidecar": (checkpoints, "write_json"),
}
SCORING_CALLS = FILE_CALLS | {
    "between two bins": (inference, "collate"),
    "between tensors and sidecar": (checkpoints, "write_json"),
}


class Shared:
    """Four numbers that parent and children share.

    ``step``: the last finished step; ``start``: the first step of the last process, or
    -1; ``longest``: seconds of the longest step; ``ready``: whether the child's signal
    handlers are in place.
    """

    NAMES = ("step", "start", "longest", "ready")

    def __init__(self) -> None:
        self.__dict__["memory"] = mmap.mmap(-1, 8 * len(self.NAMES))

    def __getattr__(self, name: str) -> float:
        return struct.unpack_from("d", self.memory, 8 * self.NAMES.index(name))[0]

    def __setattr__(self, name: str, value: float) -> None:
        struct.pack_into("d", self.memory, 8 * self.NAMES.index(name), value)


@dataclass
class Case:
    """A model to train, or to score with, and the results of an undisturbed run.

    Attributes:
        name: For messages.
        scores: Whether pairs are scored with the model instead of training it.
        model: Loaded once; every child has a copy of its own.
        encoded: The pairs.
        checkpoint_steps: Steps, or scored bins, between two checkpoints.
        outputs: Content of every output file.
        counts: Calls of the functions at which a run can be killed.
        seconds: Duration.
        largest_file: Bytes of the largest file written.
    """

    name: str
    scores: bool
    model: torch.nn.Module
    encoded: EncodedPairs
    checkpoint_steps: int
    outputs: dict[str, Any] | None = None
    counts: dict[str, int] | None = None
    seconds: float = 0.0
    largest_file: int = 0

    @property
    def calls(self) -> dict[str, tuple[Any, str]]:
        """Return the functions at which a run can be killed."""
        return SCORING_CALLS if self.scores else TRAINING_CALLS

    def run(self, folder: Path, shared: Shared) -> None:
        """Do the work of a job: resume, continue to the end, publish, clean up."""
        kept = Checkpoints(folder / "scratch", self.name)
        if self.scores:
            self._score(folder, kept, shared)
        else:
            self._train(folder, kept, shared)

    def _train(self, folder: Path, kept: Checkpoints, shared: Shared) -> None:
        real = Trainer._take_step

        def take_step(trainer: Trainer) -> dict[str, Any]:
            if shared.start < 0:
                shared.start = trainer.step
            record = real(trainer)
            shared.longest = max(shared.longest, record["seconds"])
            shared.step = trainer.step
            return record

        Trainer._take_step = take_step
        targets = np.eye(3, dtype=np.float32)[np.arange(N_PAIRS) % 3]
        settings = SETTINGS | {"checkpoint_steps": self.checkpoint_steps}
        objective = label_objective(targets)
        settings = read(OptimisationSettings, settings)
        trainer = Trainer(self.model, self.encoded, objective, settings, 9.0, kept)
        trainer.run(folder / "train.jsonl")
        save_adapter(self.model, folder)
        trainer.finish()

    def _score(self, folder: Path, kept: Checkpoints, shared: Shared) -> None:
        real, resume = inference._score, inference._State.resume

        def resume_and_tell(state: Any, kept: Checkpoints) -> None:
            resume(state, kept)
            shared.start = shared.step = state.n_done

        def score(*arguments: Any) -> torch.Tensor | None:
            started = time.monotonic()
            found = real(*arguments)
            shared.longest = max(shared.longest, time.monotonic() - started)
            shared.step += 1
            return found

        inference._State.resume = resume_and_tell
        inference._score, inference.SAVE_EVERY_S = score, 0.0
        ids = self.encoded.ids
        logits = score_pairs(
            self.model, self.encoded, token_budget=160, checkpoints=kept
        )
        write_logits(folder / "logits.npz", Logits(ids, ids, logits, {"views": VIEWS}))
        kept.remove()

    def measure(self, folder: Path) -> None:
        """Make the reference: run undisturbed in a child, and count its calls."""
        folder.mkdir()
        sizes = folder / "sizes"

        def body() -> None:
            largest = 0

            def keep_size(tensors: Any, path: Path, **named: Any) -> None:
                nonlocal largest
                save(tensors, path, **named)
                largest = max(largest, os.path.getsize(path))

            save, checkpoints.save_file = checkpoints.save_file, keep_size
            counts = count_calls(self.calls)
            self.run(folder, Shared())
            sizes.write_text(json.dumps([counts, largest]))

        started = time.monotonic()
        code = Child(body, folder.with_suffix(".log")).wait()
        self.seconds = time.monotonic() - started
        if code:
            sys.exit(f"{self.name}: {folder.with_suffix('.log').read_text()}")
        self.counts, self.largest_file = json.loads(sizes.read_text())
        sizes.unlink()
        self.outputs = contents(folder)


def make_cases(folder: Path) -> list[Case]:
    """Make cases of Llama, Qwen2 and Gemma-2, plain and NF4, to train and to score."""
    _, table = draw_pairs(0, N_PAIRS)
    models = {}
    for architecture in ("llama", "qwen2", "gemma2"):
        base = folder / architecture
        tokenizer = train_tokenizer(tokenizer_corpus(table, TEXT), architecture)
        model = build_model(replace(BASE, architecture=architecture), tokenizer)
        save_base(base, model, tokenizer)
        encoded = encode_pairs(table, load_tokenizer(base), TEXT)
        for precision in ("fp32", "nf4"):
            lora = read(LoraSettings, LORA)
            model = add_adapter(load_classifier(base, precision), lora, seed=1)
            models[f"{architecture}-{precision}"] = model, encoded
    every = {"llama": 1, "qwen2": 3, "gemma2": 2}
    cases = [
        Case(name, False, *models[name], every[name.partition("-")[0]])
        for name in models
    ]
    for name in ("llama-nf4", "gemma2-fp32"):
        cases.append(Case(f"{name}-scoring", True, *models[name], 1))
    for case in cases:
        case.measure(folder / f"{case.name}-reference")
    return cases


@dataclass
class Trials:
    """Trials over all cases, one after another.

    Attributes:
        cases: The cases to run.
        folder: The trials' folder; the files of failed trials stay until the end.
        rng: Random generator.
        n_kills, n_again: Kills, and steps repeated after them.
        n_published: Kills after the last output was published, while the checkpoints
            were being removed. No work was left then, so repeated steps do not count.
        most_again: Most steps that one kill cost.
        longest_exit: Seconds from a signal to the process's end, at most.
    """

    cases: list[Case]
    folder: Path
    rng: np.random.Generator
    n_kills: int = 0
    n_again: int = 0
    n_published: int = 0
    most_again: int = 0
    longest_exit: float = 0.0

    def kill(self, number: int, tally: Tally) -> str | None:
        """Run a trial with one to three kills; return what went wrong, if anything."""
        # Every fifth trial scores.
        scoring = [case for case in self.cases if case.scores == (number % 5 == 4)]
        case = scoring[number % len(scoring)]
        wanted = int(self.rng.integers(1, 4))
        n_kills = 0
        for _ in range(MAX_DRAWS):
            if n_kills == 0:
                folder, shared = self._empty(f"kill{number}"), Shared()
            kind = self._draw_kind(case) if n_kills < wanted else None
            published = case.outputs.keys() <= contents(folder).keys()
            step, shared.start = shared.step, -1
            code = self._run(case, folder, shared, kind)
            if shared.start < 0:  # it did not come to its first step
                shared.step = step
            elif published:
                self.n_published += 1
            elif n_kills:
                again = int(step - shared.start)
                self.n_again += again
                self.most_again = max(self.most_again, again)
                if again > case.checkpoint_steps:
                    return f"{case.name}: {again} steps lost"
            if kind and code in KILLED:
                n_kills += 1
                tally.counts[kind] += 1
                self.n_kills += 1
            elif code:
                return f"{case.name}, {kind}: exit status {code}"
            elif n_kills:
                return difference(case, folder)
        return f"{case.name}: no kill came in time"

    def _draw_kind(self, case: Case) -> str:
        """Draw any instant with probability 1/3, else a chosen place."""
        if self.rng.random() < 1 / 3:
            return "at any instant"
        return str(self.rng.choice(["in a write", *case.calls]))

    def _run(self, case: Case, folder: Path, shared: Shared, kind: str | None) -> int:
        """Run a case in a child, and kill it in the given way, if any."""
        place: Place | None = None
        if kind not in (None, "at any instant"):
            place = draw_place(
                kind, case.calls, case.counts, case.largest_file, self.rng
            )

        def body() -> None:
            if place:
                place.arm()
            case.run(folder, shared)

        child = Child(body, folder.with_suffix(".log"))
        if kind == "at any instant":
            time.sleep(self.rng.uniform(0, case.seconds))
            child.signal(signal.SIGKILL)
        return child.wait()

    def stop(self, number: int, tally: Tally) -> str | None:
        """Run a trial with a signal; return what went wrong, if anything."""
        case = self.cases[number % len(self.cases)]
        kind = (signal.SIGTERM, signal.SIGUSR1)[number % 2]
        for _ in range(MAX_DRAWS):
            folder, shared = self._empty(f"stop{number}"), Shared()
            shared.start = -1
            child = self._start_job(case, folder, shared)
            while not shared.ready:
                time.sleep(0.001)
            started = time.monotonic()
            time.sleep(self.rng.uniform(0, case.seconds))
            child.signal(kind)
            sent = time.monotonic()
            code = child.wait()
            took = time.monotonic() - sent
            if code:
                break
            # Too late: the machine is less busy than when the time was taken.
            case.seconds = min(case.seconds, 0.9 * (sent - started))
        else:
            return f"{case.name}: no signal came in time"
        if code != 143:
            return f"{case.name}, {kind.name}: exit status {code}"
        if took > shared.longest + 5:
            return f"{case.name}, {kind.name}: ended {took:.1f} s later"
        tally.counts[kind.name] += 1
        self.longest_exit = max(self.longest_exit, took)
        stopped_at, shared.start = shared.step, -1
        code = self._start_job(case, folder, shared).wait()
        if code or shared.start != stopped_at:
            return f"{case.name}: stopped at {stopped_at}, resumed at {shared.start}"
        shutil.rmtree(folder / "logs")
        return difference(case, folder)

    def _start_job(self, case: Case, folder: Path, shared: Shared) -> Child:
        """Start a case as a job of the workflow, with its log, lock and signals."""
        job = SimpleNamespace(
            log=[folder / "logs/job.log"], threads=1, input=[], output=[], params={}
        )

        def body() -> None:
            with guarded(job):
                shared.ready = 1
                case.run(folder, shared)

        shared.ready = 0
        return Child(body, folder.with_suffix(".log"))

    def _empty(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder


def difference(case: Case, folder: Path) -> str | None:
    """Describe how a trial's files differ from the reference; None if equal."""
    wrong = differing(contents(folder), case.outputs)
    if wrong:
        return f"{case.name}: {', '.join(wrong)} differ"
    shutil.rmtree(folder)
    return None


def run_trials(n_kills: int, n_signals: int, seed: int) -> tuple[Tally, Tally]:
    """Run all trials, print counts by kind, and return the two tallies."""
    kills, signals = Tally(), Tally()
    with working_folder() as folder:
        trials = Trials(make_cases(folder), folder, np.random.default_rng(seed))
        progress = Progress(n_kills + n_signals, "trials")
        for number in range(n_kills):
            kills.add(f"kill {number}", trials.kill(number, kills))
            progress.update()
        for number in range(n_signals):
            signals.add(f"signal {number}", trials.stop(number, signals))
            progress.update()
    print(
        f"{trials.n_kills} kills; {trials.n_again} steps done again, at most "
        f"{trials.most_again} after one kill; {trials.n_published} kills came when all "
        "outputs were in place"
    )
    kills.report("runs killed and resumed, byte-identical")
    print(f"at most {trials.longest_exit:.2f} s from a signal to the end")
    signals.report("runs stopped by a signal and resumed, byte-identical")
    return kills, signals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--signals", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tallies = run_trials(options.kills, options.signals, options.seed)
    sys.exit(any(tally.failures for tally in tallies))


if __name__ == "__main__":
    main()

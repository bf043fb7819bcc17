"""What the processes of ``test_processes`` do; run as a script, a job of two.

python two_processes.py FOLDER [loop STEPS | die | refuse | work]

Its settings and pairs serve the tests of the trainer and of the scripts too.
"""

import json
import os
import sys
import time
import types
from pathlib import Path

from prefdistill.errors import Interrupted, UserError
from prefdistill.models.quick_imports import hide_unused_imports
from prefdistill.running.job import guarded
from prefdistill.running.stopping import stop_requested

TEXT = {
    "template": "<prompt>: {prompt}<response_a>: {response_a}"
    "<response_b>: {response_b}<verdict>:",
    "turn": "<turn {n}>: ",
    "max_length": 80,
    "prompt_share": 0.25,
    "head_share": 0.5,
}
LORA = {
    "r": 2,
    "alpha": 4,
    "dropout": 0.1,
    "targets": ["q_proj", "up_proj"],
    "lowest_layer": 0,
}
SETTINGS = {
    "learning_rate": 0.01,
    "max_steps": None,
    "pairs_per_step": 4,
    "token_budget": 128,
    "warmup_steps": None,
    "warmup_fraction": 0.2,
    "schedule": "cosine",
    "min_lr_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "seed": 7,
    "checkpoint_steps": 3,
    "recompute": "auto",
    "compile": "auto",
}
DISTILLATION = {
    "weights": {"ce": 1.0, "kl": 1.0, "cosine": 1.0},
    "temperature": 1.0,
    "labels": "in_fold",
    "logits": "calibrated",
    "teacher_gate": "refuse",
    "n_labelled_rows": None,
    "sample_weights": {"beta": 0.0, "low": 0.25, "high": 4.0},
    "pseudo_labels": {"weight": 0.0},
    "ema": {"decay": 0.0, "use": False},
}
MODELS = {"llama": "nf4", "gemma2": "fp32"}
# With dropout, on this alone does a model in parts draw the masks of a whole one.
LORAS = {
    "llama": LORA | {"targets": ["q_proj"]},
    "gemma2": LORA | {"dropout": 0.0},
}
N_PAIRS = 14


def settings_of(**changes):
    from prefdistill.settings import OptimisationSettings, read

    return read(OptimisationSettings, SETTINGS | changes)


def encoded_pairs(folder):
    import pyarrow as pa

    from prefdistill.data.prompts import encode_pairs
    from prefdistill.models.loading import load_tokenizer
    from prefdistill.settings import TextSettings, read

    words = ["river ", "list ", "poem "]
    table = {
        "id": [f"train:{n}" for n in range(N_PAIRS)],
        "prompt": [[words[n % 3] * (1 + n % 4)] for n in range(N_PAIRS)],
        "response_a": [["yes " * (1 + n % 5)] for n in range(N_PAIRS)],
        "response_b": [["no " * (1 + n % 7)] for n in range(N_PAIRS)],
    }
    return encode_pairs(
        pa.table(table), load_tokenizer(folder), read(TextSettings, TEXT)
    )


def trainer_of(folder, name, scratch, *, shard=False, objective=None, **changes):
    """A trainer on a fresh model; its scratch folder is shared by the processes."""
    import numpy as np

    from prefdistill.models.loading import load_classifier
    from prefdistill.models.lora import add_adapter
    from prefdistill.settings import LoraSettings, read
    from prefdistill.storage.checkpoints import Checkpoints
    from prefdistill.training.objectives import label_objective
    from prefdistill.training.trainer import Trainer

    model = load_classifier(folder / name, MODELS[name], shard=shard)
    model = add_adapter(model, read(LoraSettings, LORAS[name]), seed=1)
    targets = np.eye(3, dtype=np.float32)[np.arange(N_PAIRS) % 3]
    objective = objective or label_objective(targets)
    pairs = encoded_pairs(folder / name)
    checkpoints = Checkpoints(scratch, "abc")
    settings = settings_of(**changes)
    return Trainer(model, pairs, objective, settings, 3.0, checkpoints)


def outcome_of(folder, trainer, name):
    """Train to the end, score, and write what came out, as the first process."""
    import numpy as np

    from prefdistill.models.lora import save_adapter
    from prefdistill.models.scoring import score_pairs
    from prefdistill.running.processes import is_first

    trainer.run(folder / name / "train.jsonl")
    logits = score_pairs(trainer.model, trainer.encoded, token_budget=100)
    if is_first():
        save_adapter(trainer.model, folder / name)
        np.save(folder / name / "logits.npy", logits)
        budget = {"token_budget": trainer.token_budget}
        (folder / name / "end.json").write_text(json.dumps(budget))


def out_of_memory_once():
    """The label objective, out of memory at the second process's first pass."""
    import numpy as np
    import torch

    from prefdistill.running.processes import rank
    from prefdistill.training.objectives import label_objective

    good = label_objective(np.eye(3, dtype=np.float32)[np.arange(N_PAIRS) % 3])
    calls = iter(range(1000))

    def row_losses(*arguments):
        if next(calls) == 0 and rank() == 1:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return good(*arguments)

    return row_losses


def work(folder):
    """Every way to train, one after the other."""
    from prefdistill.running.processes import rank
    from prefdistill.training import trainer as training

    for name in MODELS:
        for shard in (False, True):
            kind = f"{name}-{'sharded' if shard else 'whole'}"
            trainer = trainer_of(folder, name, folder / "scratch" / kind, shard=shard)
            outcome_of(folder, trainer, kind)
    scratch = folder / "scratch" / "resumed"
    stopped = trainer_of(folder, "llama", scratch)
    training.stop_requested = lambda: rank() == 1 and stopped.step == 5
    try:
        stopped.run(folder / "never.jsonl")
    except Interrupted as stop:
        (folder / f"stop-{rank()}.txt").write_text(f"{stop} {stop.progressed}")
    training.stop_requested = stop_requested
    if rank() == 0:
        os.system(f"cp -r {scratch} {folder / 'scratch' / 'left'}")
    outcome_of(folder, trainer_of(folder, "llama", scratch), "resumed")
    short = trainer_of(
        folder, "llama", folder / "scratch" / "short", objective=out_of_memory_once()
    )
    outcome_of(folder, short, "short")


def loop(folder, n_steps):
    """Count steps, kept in a file; the request to stop reaches one process first."""
    from prefdistill.running.processes import any_process, is_first, wait_for_all

    state = folder / "state.txt"
    first = step = int(state.read_text()) if state.exists() else 0
    while step < n_steps:
        if is_first():
            print("at work", flush=True)
        time.sleep(0.05)
        step += 1
        if any_process(stop_requested()):
            if is_first():
                time.sleep(0.5)  # the others must not leave meanwhile
                state.write_text(str(step))
            wait_for_all()
            raise Interrupted(f"saved at step {step}", progressed=step > first)
    if is_first():
        (folder / "done.txt").write_text(f"from {first}")


def main():
    folder, what = Path(sys.argv[1]), sys.argv[2]
    job = types.SimpleNamespace(
        log=[folder / "logs/a.log"], threads=1, input=[], output=[], params={}
    )
    with guarded(job, processes=2):
        hide_unused_imports()
        from prefdistill.running.processes import rank, wait_for_all

        if what == "work":
            work(folder)
        elif what == "loop":
            loop(folder, int(sys.argv[3]))
        elif rank() == 1 and what == "die":
            os.kill(os.getpid(), 9)
        elif rank() == 1 and what == "refuse":
            raise UserError("row id 7: no good; do better")
        wait_for_all()


if __name__ == "__main__":
    main()

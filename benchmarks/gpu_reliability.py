"""Check resume and out-of-memory on a real GPU: `python -m benchmarks.gpu_reliability`.

A random 0.5B model of Llama's shape trains for some steps: uninterrupted, interrupted
and resumed, and short of memory. Each prints one JSON line. Nothing is downloaded.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from prefdistill.data.prompts import EncodedPairs
from prefdistill.errors import Interrupted
from prefdistill.models.loading import load_classifier
from prefdistill.models.lora import add_adapter
from prefdistill.settings import LoraSettings, OptimisationSettings, read
from prefdistill.storage.checkpoints import Checkpoints
from prefdistill.training import trainer as training
from prefdistill.training.objectives import label_objective
from prefdistill.training.trainer import Trainer

N_PAIRS, N_STEPS, STOP_AT = 256, 24, 11
SETTINGS = {
    "learning_rate": 1e-3,
    "max_steps": N_STEPS,
    "pairs_per_step": 16,
    "token_budget": 8192,
    "warmup_steps": 2,
    "warmup_fraction": 0.0,
    "schedule": "cosine",
    "min_lr_ratio": 0.1,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 7,
    "checkpoint_steps": 5,
    "recompute": "none",
    "compile": "auto",
}
LORA = {
    "r": 16,
    "alpha": 32,
    "dropout": 0.0,
    "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    "lowest_layer": 0,
}


def make_model(folder: Path) -> None:
    """Save random bf16 weights of a small Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=1536, intermediate_size=6144,
        num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4,
        pad_token_id=0,
    )  # fmt: skip
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)


def make_pairs() -> tuple[EncodedPairs, np.ndarray]:
    """Draw tokens of log-normal lengths, whose first token tells the label."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, N_PAIRS)
    sizes = np.clip(rng.lognormal(5.5, 0.6, (N_PAIRS, 2)), 16, 900).astype(int)
    segments = {
        "prompt": [np.full(4, 10 + label, np.int32) for label in labels],
        "response_a": [rng.integers(20, 4096, n).astype(np.int32) for n, _ in sizes],
        "response_b": [rng.integers(20, 4096, n).astype(np.int32) for _, n in sizes],
    }
    literals = tuple(np.array([token], np.int32) for token in (1, 2, 3, 4))
    encoded = EncodedPairs(
        ids=np.array([f"train:{n}" for n in range(N_PAIRS)]),
        lengths=(sizes.sum(axis=1) + 8).astype(np.int32),
        n_truncated=0,
        literals=literals,
        fields=("prompt", "response_a", "response_b"),
        segments=segments,
    )
    return encoded, np.eye(3, dtype=np.float32)[labels]


def main() -> None:
    """Train in each way, in bf16 and NF4, and compare the losses."""
    root = Path(tempfile.mkdtemp())
    make_model(root / "model")
    encoded, targets = make_pairs()

    def run(
        name: str, precision: str, stop_at: int | None = None, **changes
    ) -> Trainer:
        model = load_classifier(root / "model", precision, head_seed=1)
        model = add_adapter(model, read(LoraSettings, LORA), seed=1)
        settings = read(OptimisationSettings, SETTINGS | changes)
        trainer = Trainer(
            model, encoded, label_objective(targets), settings, 100.0,
            Checkpoints(root / name, precision),
        )  # fmt: skip
        training.stop_requested = lambda: trainer.step == stop_at
        trainer.run(root / f"{name}.jsonl")
        return trainer

    def losses(trainer: Trainer) -> np.ndarray:
        return np.array([record["loss"] for record in trainer.curve])

    for precision in ("bf16", "nf4"):
        whole = losses(run("whole", precision))
        repeated = losses(run("repeated", precision))
        try:
            run("resumed", precision, stop_at=STOP_AT)
        except Interrupted as stop:
            print(stop, file=sys.stderr)
        resumed = losses(run("resumed", precision))
        print(
            json.dumps(
                {
                    "what": "resume",
                    "precision": precision,
                    "loss_first_last": [whole[0], whole[-1]],
                    "resumed_largest_difference": np.abs(resumed - whole).max(),
                    "repeated_largest_difference": np.abs(repeated - whole).max(),
                    "steps": [len(whole), len(resumed)],
                }
            ),
            flush=True,
        )
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run("peak", precision, max_steps=3)
        peak = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(0.75 * peak / total)
        short = run("short", precision)
        torch.cuda.set_per_process_memory_fraction(1.0)
        print(
            json.dumps(
                {
                    "what": "out of memory",
                    "precision": precision,
                    "memory_given_of_needed": 0.75,
                    "token_budget": [SETTINGS["token_budget"], short.token_budget],
                    "largest_difference": np.abs(losses(short) - whole).max(),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()

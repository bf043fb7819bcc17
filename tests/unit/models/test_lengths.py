import json

import pyarrow as pa
from measure_lengths import main as measure_lengths

from prefdistill.data.prompts import encode_pairs
from prefdistill.settings import TextSettings, read
from prefdistill.storage.tables import FOLD_SCHEMA, write_table


def test_lengths_before_the_cut(
    tiny_model_folder, tiny_tokenizer, tmp_path, monkeypatch
):
    texts = ["a b c " * n for n in (5, 40, 200)]
    rows = [
        {"id": f"train:{n}", "source": "train", "split": split, "group": str(n)}
        | {"prompt": ["why?"], "response_a": [text], "response_b": ["no"]}
        | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
        for n, (split, text) in enumerate(
            zip(("train", "train", "dev"), texts, strict=True)
        )
    ]
    table = pa.Table.from_pylist(rows, schema=FOLD_SCHEMA)
    write_table(tmp_path / "fold0.parquet", table, FOLD_SCHEMA)
    text = {
        "template": "{prompt}|{response_a}|{response_b}", "turn": "{n}",
        "max_length": 100, "prompt_share": 0.25, "head_share": 0.5,
    }  # fmt: skip
    base = tiny_model_folder("gemma2") / "config.json"
    counts, figure = tmp_path / "lengths.json", tmp_path / "lengths.svg"
    settings = read(TextSettings, text)
    measure_lengths(tmp_path / "fold0.parquet", base, counts, figure, settings)
    found = json.loads(counts.read_text())
    cut = encode_pairs(table, tiny_tokenizer, settings)
    assert (found["max_length"], found["every"]) == (100, 1)
    assert (
        sum(part["rows_cut"] for part in found["splits"].values())
        == (cut.n_truncated)
        > 0
    )
    dev = found["splits"]["dev"]
    assert dev["tokens"] - dev["tokens_cut"] == cut.lengths[2]
    assert dev["quantiles"]["1"] == dev["tokens"]
    assert figure.read_text().startswith("<?xml")
    monkeypatch.setattr("prefdistill.models.lengths.MAX_ROWS", 2)
    settings = read(TextSettings, text)
    measure_lengths(tmp_path / "fold0.parquet", base, counts, figure, settings)
    few = json.loads(counts.read_text())
    assert few["every"] == 2
    assert few["splits"]["dev"] == dev
    assert few["splits"]["train"]["rows"] == 1

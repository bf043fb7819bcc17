"""Rows, CSV files and imports that the tests of readers and parsers share."""

import csv
import json

from import_pairs import main

from prefdistill.data.pairs import UNLABELLED
from prefdistill.storage.records import read_json
from prefdistill.storage.tables import PAIRS_SCHEMA, read_table

HEADER = (
    "id,model_a,model_b,prompt,response_a,response_b,"
    "winner_model_a,winner_model_b,winner_tie"
)


def kaggle_row(name=1, prompt=("p",), a=("a",), b=("b",), label=(1, 0, 0)):
    """Make the cells of a CSV row, in the order of ``HEADER``."""
    texts = [json.dumps(list(turns)) for turns in (prompt, a, b)]
    return [name, "m", "n", *texts, *label]


def write_csv(path, rows, header=HEADER):
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return str(path)


def import_files(folder, train, **others):
    """Import the inputs as the job does; returns the rows and the report."""
    data = {"train": train, "extra": [], "ultra": [], "test": None} | others
    main(folder / "pairs.parquet", folder / "import.json", data)
    table = read_table(folder / "pairs.parquet", PAIRS_SCHEMA)
    return table.to_pylist(), read_json(folder / "import.json")


def typed_row(name, prompt="p", a="a", b="b", label=(1, 0, 0)):
    """Make a typed row; ``name`` is ``source:id``, and a text is a turn or several."""
    texts = [[t] if isinstance(t, str) else list(t) for t in (prompt, a, b)]
    source = name.split(":")[0]
    label = (None, None, None) if source in UNLABELLED else label
    values = [name, source, *texts, *label, "m", "n", "file.csv", 1]
    return dict(zip(PAIRS_SCHEMA.names, values, strict=True))

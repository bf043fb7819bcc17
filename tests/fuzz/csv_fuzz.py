"""Mutate valid input files and import them, for as long as is asked.

A file must be imported, with every row of it kept or dropped for a counted reason, or
refused by a ``UserError`` of one line that names it. Anything else is a finding: its
file is saved, and the exit status is 1.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prefdistill.data.cleaning import RowKeys, choose_rows, compute_keys, summarise
from prefdistill.data.pairs import ROW_COLUMNS, ImportedFile, PairsWriter
from prefdistill.data.readers import read_file_rows
from prefdistill.data.texts import clean_batch
from prefdistill.errors import UserError
from prefdistill.settings import CleaningSettings
from prefdistill.storage.tables import PAIRS_SCHEMA

KINDS = ("csv", "csv.gz", "csv.zst", "jsonl", "parquet")
WEIGHTS = (12, 1, 1, 4, 1)
REASONS = [field.name for field in fields(CleaningSettings)]
POLICY = CleaningSettings(**dict.fromkeys(REASONS, "drop"))
SLOW_S = 5.0
LONGEST_MESSAGE = 700
# What differs between messages of one class.
VARYING = (
    r"(?<=, column ).*(?=: is not UTF)",
    r"(?<=found ).*(?=; a train)",
    r"'.*'|\".*\"|\(.*\)|\d+",
)

TEXTS = (
    *("p", "", " ", "a, b", 'say "x"', "two\nlines", "é", "🌊", "\u200b", "\u202e"),
    *("\x00", "\x85", "\u2028", "<eos>", "<response_b>:", "\\", "\ufeff", "\ufffe"),
)
TURNS = (*TEXTS, "\ud83d", "\udc00\ud83d", None)
CELLS = (
    *("", "null", "NaN", "[]", "[null]", "{}", "[[]]", '["p",]', "['p']", '"p"'),
    *('["\\ud83d"]', '["\\udc00\\ud83d"]', '["\\u0000"]', '["a\nb"]', "[" * 600),
    *("1e999", "[1]", '["a"] x', "0", "1", "1.0", "-1", "2", "true", "9" * 30),
    *("9" * 5000, "x" * 200_000, "[" * 980 + "]" * 980, "[" * 950 + "\n" + "]" * 950),
    *("\ufeff", "\x00", "-0", "007", "１", "=1+1", "#N/A", "0x1", "1_0", " 1"),
    *("\ud83d", '["\ud83d"]', [[["p"]]], {"a": 1}, [1], None, 0.5, True, 10**400),
)
BYTES = (
    *(b'"', b'""', b",", b"\n", b"\r", b"\r\n", b"\x00", b"\xff", b"\xe9", b"\\u"),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"[", b"]", b"{", b"}", b";"),
    *(b"id", b"prompt", b"winner_tie", b"NaN", b"1e5", b"-", b"\xf0\x9f", b"\t"),
)


class Finding(Exception):
    """A promise that does not hold for an input."""


def nested(depth: int) -> list:
    """Lists within lists."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def random_rows(rng: random.Random) -> list[dict]:
    """Rows that are mostly right, with odd texts."""

    def turns() -> list:
        return [rng.choice(TURNS) for _ in range(rng.choice((1, 1, 2, 3, 0)))]

    rows = []
    for number in range(rng.randrange(8)):
        label = rng.choice(((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0), (1, 1, 0)))
        values = (number, turns(), turns(), turns(), *label, "m", rng.choice(TEXTS))
        rows.append(dict(zip(ROW_COLUMNS, values, strict=True)))
    return rows


def spoil(rows: list[dict], rng: random.Random) -> None:
    """Replace, remove or add a few values of the rows."""
    for row in rng.sample(rows, min(len(rows), rng.randrange(3))):
        name = rng.choice(ROW_COLUMNS)
        action = rng.random()
        if action < 0.8:
            row[name] = rng.choice((*CELLS, *TEXTS, nested(rng.choice((50, 600)))))
        elif action < 0.9:
            del row[name]
        else:
            row[rng.choice(TEXTS)] = 1


def encode(rows: list[dict], kind: str, rng: random.Random) -> bytes:
    """The rows as the bytes of a file of a kind, not yet packed."""
    if kind == "jsonl":
        is_ascii = rng.random() < 0.7
        lines = [json.dumps(row, ensure_ascii=is_ascii) for row in rows]
        return "\n".join([*lines, ""]).encode("utf-8", "surrogatepass")
    names = rng.sample(ROW_COLUMNS, len(ROW_COLUMNS))
    cells = [
        [
            json.dumps(value, ensure_ascii=rng.random() < 0.9)
            if isinstance(value := row.get(name, ""), list)
            else str(value)
            for name in names
        ]
        for row in rows
    ]
    if kind == "parquet":
        texts = [
            [text.encode("utf-8", "replace").decode() for text in row] for row in cells
        ]
        columns = [[row[place] for row in texts] for place in range(len(names))]
        handle = io.BytesIO()
        table = pa.table([pa.array(c, pa.string()) for c in columns], names)
        pq.write_table(table, handle)
        return handle.getvalue()
    handle = io.StringIO()
    ends = rng.choice(("\n", "\n", "\r\n", "\r"))
    writer = csv.writer(handle, lineterminator=ends)
    writer.writerows([names, *cells])
    text = handle.getvalue()
    encoding = rng.choices(
        ("utf-8", "utf-8-sig", "utf-16", "latin-1"), (90, 6, 2, 2)
    )[0]  # fmt: skip
    errors = "replace" if encoding == "latin-1" else "surrogatepass"
    return text.encode(encoding, errors)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Change bytes at a few random places."""
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice((0, 1, 1, 2, 10, 100)))
        piece = content[start:end]
        action = rng.randrange(5)
        if action == 0:
            content = content[:start] + rng.choice(BYTES) + content[start:]
        elif action == 1:
            content = content[:start] + content[end:]
        elif action == 2:
            content = content[:end] + piece * rng.choice((1, 2, 50)) + content[end:]
        elif action == 3:
            content = content[:start] + rng.randbytes(end - start) + content[end:]
        elif rng.random() < 0.2:
            content = content[:start]
    return content


def make_input(rng: random.Random) -> tuple[str, bytes]:
    """A random file: its kind and its bytes."""
    kind = rng.choices(KINDS, WEIGHTS)[0]
    rows = random_rows(rng)
    spoil(rows, rng)
    content = mutate(encode(rows, kind, rng), rng)
    if kind.endswith(".gz"):
        content = gzip.compress(content, 1, mtime=0)
    elif kind.endswith(".zst"):
        content = pa.compress(content, codec="zstd", asbytes=True)
    if "." in kind and rng.random() < 0.3:
        content = mutate(content, rng)
    if rng.random() < 0.01:
        kind = rng.choice((*KINDS, "xlsx", "json", "txt"))
    return kind, content


def import_file(path: Path) -> tuple[ImportedFile, pa.Table]:
    """What the rule import_pairs does with a train file, its table in memory."""
    counts, handle = ImportedFile(str(path), "train"), io.BytesIO()
    with pq.ParquetWriter(handle, PAIRS_SCHEMA) as writer:
        PairsWriter(writer).add(read_file_rows(path, "train", counts), counts)
    handle.seek(0)
    return counts, pq.read_table(handle)


def count_rows(content: bytes, kind: str) -> int | None:
    """Rows of a text file by a second, plain reading; None for the other kinds."""
    if kind == "jsonl":
        return sum(1 for line in content.split(b"\n") if line.strip())
    if kind != "csv":
        return None
    lines = io.StringIO(content.decode("utf-8-sig"), newline="")
    return sum(1 for row in csv.reader(lines) if row) - 1


def check_import(counts: ImportedFile, table: pa.Table, expected: int | None) -> None:
    """Every row is there once, as text that can be written, and cleaning adds up.

    Raises:
        Finding: If not.
    """
    if expected not in (None, counts.n_rows) or table.num_rows != counts.n_rows:
        raise Finding(f"{expected} rows, {counts.n_rows} counted, {len(table)} written")
    if len(set(table.column("id").to_pylist())) != counts.n_rows:
        raise Finding("an id occurs twice")
    if table.column("row").to_pylist() != list(range(1, counts.n_rows + 1)):
        raise Finding("the rows are not numbered from 1")
    table.validate(full=True)
    json.dumps(vars(counts), ensure_ascii=False).encode()
    cleaned = [clean_batch(batch)[0] for batch in table.to_batches()]
    keys = RowKeys.concatenate([compute_keys(batch) for batch in cleaned])
    report = summarise(keys, *choose_rows(keys, POLICY))
    gone = sum(sum(rows.values()) for rows in report["dropped"].values())
    if report["n_in"]["train"] != report["n_out"]["train"] + gone:
        raise Finding(f"rows in, out and dropped do not add up: {report}")


def run_once(path: Path, content: bytes, kind: str) -> str:
    """Import one file; returns the class of its outcome.

    Raises:
        Exception: Whatever is neither success nor a proper refusal.
    """
    path.write_bytes(content)
    started = time.perf_counter()
    try:
        counts, table = import_file(path)
    except UserError as error:
        text = str(error)
        text.encode()
        if not text.startswith(str(path)) or len(text.splitlines()) != 1:
            raise Finding(f"not one line that names the file: {text!r}") from error
        if len(text) > LONGEST_MESSAGE:
            raise Finding(f"a message of {len(text)} characters") from error
        outcome = text[len(str(path)) :]
        for pattern in VARYING:
            outcome = re.sub(pattern, "#", outcome)
    else:
        check_import(counts, table, count_rows(content, kind))
        outcome = " ".join(["imported", *sorted(+counts.repaired)])
    if time.perf_counter() - started > SLOW_S:
        raise Finding("slow")
    return outcome


def save(folder: Path, content: bytes, kind: str, error: Exception) -> None:
    """Keep an input and the error's traceback."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = hashlib.sha256(content).hexdigest()[:12]
    (folder / f"{stem}.{kind}").write_bytes(content)
    text = "".join(traceback.format_exception(error))
    (folder / f"{stem}.txt").write_text(text, encoding="utf-8", errors="replace")


def place_of(error: Exception) -> str:
    """Type and line of an error, by which findings are counted."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


def main() -> int:
    """Fuzz, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("scratch/fuzz"))
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    found: Counter[str] = Counter()
    n_runs, started = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        while time.monotonic() - started < 60 * options.minutes:
            kind, content = make_input(random.Random(f"{options.seed}/{n_runs}"))
            n_runs += 1
            try:
                outcomes[run_once(Path(folder, f"t.{kind}"), content, kind)] += 1
            except Exception as error:
                place = place_of(error)
                found[place] += 1
                if found[place] <= 3:
                    save(options.findings, content, kind, error)
                    print(f"finding: {place}: {error!r:.200}", flush=True)
    seconds = time.monotonic() - started
    for outcome, n_times in outcomes.most_common():
        print(f"{n_times:8} {outcome}")
    print(
        f"{n_runs} runs in {seconds:.0f} s ({n_runs / seconds:.0f}/s), seed "
        f"{options.seed}: {len(outcomes)} outcomes, {sum(found.values())} findings at "
        f"{len(found)} places" + (f", see {options.findings}" if found else "")
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

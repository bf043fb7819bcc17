"""Every input is handled by a stated policy and counted, or refused in one line.

Each case goes through import_pairs, clean_pairs and make_folds, as in the workflow, so
these tests belong to no single module.
"""

# A table reads best with one case a line.
# ruff: noqa: E501

import csv
import gzip
import io
import json
from dataclasses import dataclass, field, fields

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clean_pairs import main as clean_pairs
from import_pairs import main as import_pairs
from make_folds import main as make_folds

from prefdistill.errors import UserError
from prefdistill.settings import CleaningSettings, FoldSettings
from prefdistill.storage.records import read_json

NAMES = (
    *("id", "model_a", "model_b", "prompt", "response_a", "response_b"),
    *("winner_model_a", "winner_model_b", "winner_tie"),
)
HEADER = ",".join(NAMES)
NEEDED = "id,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie"
FOLDS = FoldSettings(
    n=3, select_fraction=0.1, test_fraction=0.1, test_part=None, seed=0
)
REASONS = [field.name for field in fields(CleaningSettings)]
POLICY = CleaningSettings(**dict.fromkeys(REASONS, "drop"))
N_CLEAN = 30
WIN_A, WIN_B, TIE = "1,0,0", "0,1,0", "0,0,1"


def line(name=1, prompt='["p"]', a='["a"]', b='["b"]', label=WIN_A):
    """Make a line of CSV; the texts are JSON and are quoted here."""
    cells = ('"' + text.replace('"', '""') + '"' for text in (prompt, a, b))
    return ",".join([str(name), "m", "n", *cells, label])


CLEAN = [
    line(1000 + n, f'["question {n}"]', label=(WIN_A, WIN_B, TIE)[n % 3])
    for n in range(N_CLEAN)
]


def table(*lines, header=HEADER, clean=True):
    """Make a file: header, the lines in question, and thirty good lines."""
    return "\n".join([header, *lines, *(CLEAN if clean else []), ""]).encode()


def rows_of(*lines):
    """Parse lines of CSV as dictionaries of strings."""
    return list(csv.DictReader(io.StringIO("\n".join([HEADER, *lines]))))


def json_lines(*lines):
    """Turn lines of CSV into JSON lines with lists and numbers."""
    numbers = ("id", *NAMES[6:])
    texts = NAMES[3:6]
    return "".join(
        json.dumps(
            {k: json.loads(v) if k in numbers + texts else v for k, v in row.items()}
        )
        + "\n"
        for row in rows_of(*lines)
    ).encode()


def parquet(*lines, **columns):
    """Turn lines of CSV into a parquet file of strings; ``columns`` replace some."""
    rows = rows_of(*lines)
    content = {name: pa.array([row[name] for row in rows]) for name in NAMES}
    handle = io.BytesIO()
    pq.write_table(pa.table(content | columns), handle)
    return handle.getvalue()


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


@dataclass
class Case:
    """Hold an input and the expected outcome.

    ``expected`` is the whole message, with ``{f}`` for the file, or the counts.
    """

    content: bytes
    expected: str | dict
    name: str = "t.csv"
    others: dict = field(default_factory=dict)


def kept(n_more=1, dropped=None, repaired=None, ignored=()):
    """Make the counts of a run that succeeds: ``n_more`` rows beside the clean ones."""
    return {
        "n_out": N_CLEAN + n_more,
        "dropped": dropped or {},
        "repaired": repaired or {},
        "ignored": list(ignored),
    }


def dropped(**reasons):
    return kept(0, reasons)


def process(folder, name, content, others, folds=FOLDS):
    """Run the three jobs one after the other; returns the counts."""
    (folder / name).write_bytes(content)
    data = {"train": [str(folder / name)], "extra": [], "ultra": [], "test": None}
    for source, text in others.items():
        (folder / f"{source}.csv").write_bytes(text)
        path = str(folder / f"{source}.csv")
        data[source] = path if source == "test" else [path]
    pairs, report = folder / "pairs.parquet", folder / "import.json"
    import_pairs(pairs, report, data)
    clean, counts = folder / "clean.parquet", folder / "cleaning.json"
    clean_pairs(pairs, report, clean, counts, POLICY)
    make_folds(
        clean,
        [folder / f"fold{k}.parquet" for k in range(folds.n)],
        folder / "post_pretrain.parquet",
        folder / "unlabelled.parquet",
        folder / "folds.json",
        folds,
        folder / "pseudo.parquet",
    )
    cleaning = read_json(counts)
    gone = {k: sum(v.values()) for k, v in cleaning["dropped"].items()}
    n_in, n_out = (sum(cleaning[key].values()) for key in ("n_in", "n_out"))
    assert n_in == n_out + sum(gone.values())
    return {
        "n_out": n_out,
        "dropped": {reason: n for reason, n in gone.items() if n},
        "repaired": {reason: n for reason, n in cleaning["repaired"].items() if n},
        "ignored": cleaning["helper_columns_removed"],
    }


EMOJI = "\\ud83d\\ude00"
NOT_JSON = ' is not JSON; it must be a JSON list of turns, such as ["Hello"]'
AT = "{f}, row 1 (line 2)"
GOOD = table(line())
TEXT = GOOD.decode()
TYPED = [line(), *CLEAN]


def cell(text, message):
    """Make a case of a text cell that is refused."""
    return Case(table(line(prompt=text)), f"{AT}, column prompt: {message}")


def number(name, message):
    """Make a case of an id that is refused."""
    return Case(table(line(name)), f"{AT}, column id: {message}")


def label(text, column, message):
    """Make a case of labels that are refused."""
    message = f"{message} is not a label; it must be 0 or 1"
    return Case(table(line(label=text)), f"{AT}, column {column}: {message}")


def missing(column, found, where="header", how="comma-separated "):
    return (
        f"{{f}}, {where}, column {column}: is missing; found {found}; a train file "
        f"needs {how}{NEEDED}"
    )


def quoted(names):
    return ", ".join(map(repr, names))


CASES = {
    # The container and its encoding.
    "clean": Case(GOOD, kept()),
    "byte_order_mark": Case(b"\xef\xbb\xbf" + GOOD, kept(repaired={"byte_order_mark": 1})),
    "crlf": Case(GOOD.replace(b"\n", b"\r\n"), kept(repaired={"crlf_line_ends": 1})),
    "cr": Case(GOOD.replace(b"\n", b"\r"), kept(repaired={"crlf_line_ends": 1})),
    "blank_lines": Case(b"\n\n" + GOOD + b"\r\n\n", kept(repaired={"blank_line": 4})),
    "no_last_line_end": Case(GOOD[:-1], kept()),
    "utf16_with_mark": Case(TEXT.encode("utf-16"), "{f}: is UTF-16; save it as UTF-8"),
    "utf16_be_with_mark": Case(b"\xfe\xff" + TEXT.encode("utf-16-be"), "{f}: is UTF-16; save it as UTF-8"),
    "utf16_le": Case(TEXT.encode("utf-16-le"), "{f}: has NUL bytes in its header; save it as UTF-8"),
    "utf16_be": Case(TEXT.encode("utf-16-be"), "{f}: has NUL bytes in its header; save it as UTF-8"),
    "utf32": Case(TEXT.encode("utf-32"), "{f}: is UTF-32; save it as UTF-8"),
    "latin1": Case(table(line(prompt='["é"]')).decode().encode("latin-1"), f"{AT}, column prompt: is not UTF-8; save the file as UTF-8"),
    "latin1_header": Case(table(header=HEADER + ",né").decode().encode("latin-1"), "{f}, header (line 1), column n\\udce9: is not UTF-8; save the file as UTF-8"),
    "latin1_after_a_bad_quote": Case(table('1,m,n,"["p"]",x,x,1,0,0', line(2, '["é"]')).decode().encode("latin-1"), "{f}, row 2 (line 3), column prompt: is not UTF-8; save the file as UTF-8"),
    "zeros": Case(b"\0" * 100, "{f}: has NUL bytes in its header; save it as UTF-8"),
    "nul_in_a_text": Case(table(line(prompt='["a\0b"]')), kept(repaired={"raw_control_character": 1, "control_characters": 1})),
    "nul_in_a_label": label("1,0,0\0", "winner_tie", "'0\\x00'"),
    "empty": Case(b"", "{f}: is empty; check where it comes from"),
    "blank": Case(b"\xef\xbb\xbf\r\n\n ", "{f}: is empty; check where it comes from"),
    "header_only": Case(table(clean=False), "{f}: has no data rows; check where it comes from"),
    "gzip": Case(gzip.compress(GOOD), kept(), "t.csv.gz"),
    "gzip_upper_case": Case(gzip.compress(GOOD), kept(), "T.CSV.GZ"),
    "gzip_with_mark": Case(gzip.compress(b"\xef\xbb\xbf" + GOOD), kept(repaired={"byte_order_mark": 1}), "t.csv.gz"),
    "gzip_as_csv": Case(gzip.compress(GOOD), "{f}: is gzip-compressed; name it .csv.gz"),
    "csv_as_gzip": Case(GOOD, "{f}: is not gzip-compressed; drop .gz from its name", "t.csv.gz"),
    "gzip_cut": Case(gzip.compress(GOOD)[:-9], "{f}: cannot be read to its end (Compressed file ended before the end-of-stream marker was reached); fetch or write it again", "t.csv.gz"),
    "gzip_empty": Case(b"", "{f}: is empty; check where it comes from", "t.csv.gz"),
    "zstd": Case(zstd(GOOD), kept(), "t.csv.zst"),
    "zstd_as_csv": Case(zstd(GOOD), "{f}: is zstd-compressed; name it .csv.zst"),
    "csv_as_zstd": Case(GOOD, "{f}: is not zstd-compressed; drop .zst from its name", "t.csv.zst"),
    "zstd_cut": Case(zstd(GOOD)[:-5], "{f}: cannot be read to its end (Truncated compressed stream); fetch or write it again", "t.csv.zst"),
    "parquet": Case(parquet(*TYPED), kept(), "t.parquet"),
    "parquet_as_csv": Case(parquet(*TYPED), "{f}: is a parquet file; name it .parquet"),
    "csv_as_parquet": Case(GOOD, "{f}: not a readable parquet file (Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.); write it again, or give it the name of its kind", "t.parquet"),
    "parquet_of_floats": Case(parquet(line(), winner_tie=pa.array([float("nan")])), "{f}, row 1, column winner_tie: 'nan' is not a label; it must be 0 or 1", "t.parquet"),
    "parquet_of_bytes": Case(parquet(line(), prompt=pa.array([b'["p"]'])), "{f}, row 1, column prompt: 'b\\'[\"p\"]\\'' is not a list of turns, such as [\"Hello\"]", "t.parquet"),
    "parquet_not_utf8": Case(parquet(line(), prompt=pa.array([b"\xe9"]).view(pa.string())), "{f}, after row 0: a text is not UTF-8; write the file again", "t.parquet"),
    "json_lines": Case(json_lines(*TYPED), kept(), "t.jsonl"),
    "json_lines_packed": Case(gzip.compress(json_lines(*TYPED)), kept(), "t.jsonl.gz"),
    "json_lines_crlf": Case(b"\xef\xbb\xbf" + json_lines(*TYPED).replace(b"\n", b"\r\n"), kept(repaired={"byte_order_mark": 1, "crlf_line_ends": 1}), "t.jsonl"),
    "json_lines_surrogate": Case(json_lines(line(prompt='["\\ud83d"]'), *CLEAN), kept(repaired={"lone_surrogate": 1}), "t.jsonl"),
    "json_lines_surrogate_in_a_cell": Case(json_lines(*TYPED).replace(b'["p"]', b'"[\\"\\ud83d\\"]"', 1), kept(repaired={"lone_surrogate": 1}), "t.jsonl"),
    "json_lines_deep_name": Case(json_lines(*TYPED).replace(b'"m"', b"[" * 900 + b"]" * 900, 1), kept(), "t.jsonl"),
    "json_lines_extra_key": Case(json_lines(*TYPED).replace(b'{"id": 1,', b'{"\\udc00": 3, "id": 1,'), kept(ignored=["\ufffd"]), "t.jsonl"),
    "json_lines_cut": Case(json_lines(*TYPED)[:-9], "{f}, row 31 (line 31): is not a JSON object; write each row as one, with columns as keys", "t.jsonl"),
    "json_lines_missing_key": Case(json_lines(*TYPED).replace(b'"winner_tie"', b'"tie"', 1), missing("winner_tie", quoted((*NAMES[:8], "tie")), "row 1 (line 1)", ""), "t.jsonl"),
    "json_lines_key_twice": Case(json_lines(*TYPED).replace(b'"model_a"', b'"id"', 1), "{f}, row 1 (line 1), column id: occurs 2 times; keep one", "t.jsonl"),
    "json_lines_latin1": Case(b'{"id": "\xe9"}\n', "{f}, row 1 (line 1): is not UTF-8; save the file as UTF-8", "t.jsonl"),
    "json_list": Case(b"[{}]", "{f}, row 1 (line 1): is not a JSON object; write each row as one, with columns as keys", "t.jsonl"),
    "json": Case(b"[]", "{f}: is one JSON document; write one object per line and name it .jsonl", "t.json"),
    "spreadsheet": Case(b"PK\x03\x04", "{f}: is a spreadsheet; export it as CSV in UTF-8", "t.xlsx"),
    "spreadsheet_as_csv": Case(b"PK\x03\x04", "{f}: is a zip archive or a spreadsheet; unpack or export it as CSV"),
    "old_spreadsheet_as_csv": Case(b"\xd0\xcf\x11\xe0", "{f}: is an old spreadsheet; export it as CSV"),
    "zip": Case(b"PK\x03\x04", "{f}: is a zip archive; unpack it and name the file inside", "t.zip"),
    "tabs": Case(GOOD.replace(b",", b"\t"), "{f}: is separated by tabs; write it with commas and name it .csv", "t.tsv"),
    "unknown_kind": Case(b"", "{f}: cannot read this kind of file; give .csv, .csv.gz, .csv.zst, .parquet, .jsonl, .jsonl.gz, .jsonl.zst instead", "t.txt"),
    # Columns and fields.
    "missing_column": Case(table(header=HEADER.replace("winner_tie", "tie")), missing("winner_tie", quoted((*NAMES[:8], "tie")))),
    "header_case": Case(table(header=HEADER.replace("prompt", "Prompt")), missing("prompt", quoted(NAMES).replace("prompt", "Prompt"))),
    "header_blanks": Case(table(header=HEADER.replace(",", ", ")), missing("prompt", "'id', " + quoted(f" {name}" for name in NAMES[1:]))),
    "no_header": Case(table(header=line(), clean=False), missing("id", quoted(["1", "m", "n", '["p"]', '["a"]', '["b"]', "1", "0", "0"]))),
    "semicolons": Case(HEADER.replace(",", ";").encode(), missing("id", "'id;model_a;model_b;prompt;response_a;...'")),
    "column_twice": Case(table(header=HEADER.replace("model_b", "prompt")), "{f}, header, column prompt: occurs 2 times; keep one"),
    "model_twice": Case(table(header=HEADER.replace(",model_b", ",model_a")), "{f}, header, column model_a: occurs 2 times; keep one"),
    "extra_columns": Case(table(*[text + ",5,x" for text in TYPED], header=HEADER + ",label,", clean=False), kept(ignored=["", "label"])),
    "no_models": Case("\n".join([NEEDED] + [",".join([text.split(",")[0], *text.split(",", 3)[3:]]) for text in TYPED]).encode(), kept()),
    "too_few_fields": Case(table("2,m,n"), AT + ": has 3 fields, the header has 9; quote cells that hold commas or line breaks"),
    "too_many_fields": Case(table(line() + ",x"), AT + ": has 10 fields, the header has 9; quote cells that hold commas or line breaks"),
    "header_again": Case(table(line(), HEADER), "{f}, row 2 (line 3), column id: 'id' is not an integer"),
    "cut_in_a_cell": Case(table(line(), '2,m,n,"[""p""]', clean=False), "{f}, row 2 (line 3): a quote is opened and never closed"),
    "cut_in_the_header": Case(b'id,"model_a\n' + GOOD, "{f}, header (line 1): a quote inside a quoted cell is not doubled"),
    "bare_quote": Case(table('1,m,n,"["p"]","[]","[]",1,0,0'), AT + ": a quote inside a quoted cell is not doubled"),
    "embedded_line_breaks": Case(table(line(prompt='[\n"p\\nq",\r\n"r"]'), line("x")), "{f}, row 2 (line 5), column id: 'x' is not an integer"),
    "raw_line_break": Case(table(line(prompt='["p\nq"]')), kept(repaired={"raw_control_character": 1})),
    # Ids.
    "id_twice": Case(table(line(), line(2), line()), "{f}, row 3 (line 4), column id: 1 occurs a second time among the train rows; ids must be unique"),
    "id_blank": number("", "'' is not an integer"),
    "id_text": number("x7", "'x7' is not an integer"),
    "id_float": number("1.0", "'1.0' is not an integer"),
    "id_exponent": number("1e+18", "'1e+18' is not an integer"),
    "id_zeros": number("007", "'007' is not an integer"),
    "id_blanks": number(" 1", "' 1' is not an integer"),
    "id_nan": number("nan", "'nan' is not an integer"),
    "id_second_mark": number("\ufeff1", "'\\ufeff1' is not an integer"),
    "id_negative": Case(table(line(-7)), kept()),
    "id_of_64_bits": Case(table(line(-(2**63))), kept()),
    "id_too_big": number(2**63, "'9223372036854775808' does not fit into 64 bits"),
    "id_huge": number("9" * 5000, "'" + "9" * 37 + "...' does not fit into 64 bits"),
    "test_ids_of_train": Case(GOOD, kept(2), others={"test": b'id,prompt,response_a,response_b\n1,"[""x""]","[]","[]"\n'}),
    "test_with_labels": Case(GOOD, kept(2, ignored=["model_a", "model_b", *NAMES[6:]]), others={"test": table(line(1, '["x"]'), clean=False)}),
    "test_without_rows": Case(GOOD, "{d}/test.csv: has no data rows; check where it comes from", others={"test": table(clean=False)}),
    # Texts.
    "plain_text": cell("hello", "'hello'" + NOT_JSON),
    "blank_text": cell("", "''" + NOT_JSON),
    "python_list": cell("['p', 'q']", "\"['p', 'q']\"" + NOT_JSON),
    "trailing_comma": cell('["p",]', "'[\"p\",]'" + NOT_JSON),
    "cut_json": cell('["p', "'[\"p'" + NOT_JSON),
    "two_lists": cell('["p"] ["q"]', '\'["p"] ["q"]\'' + NOT_JSON),
    "object": cell("{}", "'{}' is not a list of turns, such as [\"Hello\"]"),
    "string": cell('"p"', "'\"p\"' is not a list of turns, such as [\"Hello\"]"),
    "null": cell("null", "'null' is not a list of turns, such as [\"Hello\"]"),
    "nan": cell("NaN", "'NaN' is not a list of turns, such as [\"Hello\"]"),
    "numbers": cell('["p", 3]', "turn 2 is '3', not a string or null"),
    "nested_list": cell('[["p"]]', "turn 1 is \"['p']\", not a string or null"),
    "deep": cell("[" * 100_000, "the JSON is nested too deeply"),
    "deep_and_closed": cell("[" * 500 + "]" * 500, "turn 1 is '[[[[[[[...]]]]]]]', not a string or null"),
    "null_turn": Case(table(line(prompt='["p", null]')), kept(repaired={"null_turn": 1})),
    "only_null": Case(table(line(prompt="[null]")), kept(0, {"empty": 1}, {"null_turn": 1})),
    "empty_prompt": Case(table(line(prompt="[]")), dropped(empty=1)),
    "empty_answers": Case(table(line(a="[]", b='[" ", "\\n"]')), dropped(empty=1)),
    "one_empty_answer": Case(table(line(a="[]")), kept()),
    "turn_counts_differ": Case(table(line(prompt='["p", "q"]', a='["a"]', b='["b", "c", "d"]')), kept()),
    "surrogates": Case(table(line(prompt=f'["\\ud83d {EMOJI} \\uDE00"]')), kept(repaired={"lone_surrogate": 2})),
    "only_control_characters": Case(table(line(prompt='["\\u0000\\u001b\\u0085"]')), kept(0, {"empty": 1}, {"control_characters": 1})),
    "control_characters": Case(table(line(a='["a\\u0007", "b\\r"]')), kept(repaired={"control_characters": 2})),
    "zero_width_and_bidi_marks_are_text": Case(table(line(prompt='["\\u200b"]', a='["\\u202ea"]', b='["a"]')), kept()),
    "ten_megabytes": Case(table(line(a='["' + "x" * (10 << 20) + '"]')), kept()),
    "special_token_string": Case(table(line(a='["<|im_end|>"]')), kept(repaired={"special_token_strings": 1})),
    # Labels.
    "none_hot": Case(table(line(label="0,0,0")), dropped(none_hot=1)),
    "multi_hot": Case(table(line(label="1,0,1"), line(2, label="1,1,1")), dropped(multi_hot=2)),
    "label_float": label("1.0,0.0,0.0", "winner_model_a", "'1.0'"),
    "label_nan": label("1,0,nan", "winner_tie", "'nan'"),
    "label_word": label("True,False,False", "winner_model_a", "'True'"),
    "label_negative": label("1,-1,0", "winner_model_b", "'-1'"),
    "label_two": label("2,0,0", "winner_model_a", "'2'"),
    "label_soft": label("0.5,0.5,0", "winner_model_a", "'0.5'"),
    "label_blank": label("1,0,", "winner_tie", "''"),
    # Rows among each other.
    "identical": Case(table(line(a='["x  y"]', b='["x\\ny "]')), dropped(identical=1)),
    "duplicate": Case(table(line(), line(2, '[" P"]')), kept(1, {"duplicate": 1})),
    "duplicate_swapped": Case(table(line(), line(2, a='["b"]', b='["a"]', label=WIN_B)), kept(1, {"duplicate": 1})),
    "contradictory": Case(table(line(), line(2, label=TIE)), kept(1, {"duplicate_contradictory": 1})),
    "contradictory_swapped": Case(table(line(), line(2, a='["b"]', b='["a"]')), kept(1, {"duplicate_contradictory": 1})),
    "duplicate_across_sources": Case(GOOD, kept(1, {"duplicate": 1}), others={"extra": table(line(9), clean=False)}),
    "test_row_in_train": Case(GOOD, kept(1, {"duplicate": 1}, ignored=["model_a", "model_b", *NAMES[6:]]), others={"test": table(line(9), clean=False)}),
    # Too little for the folds.
    "nothing_left": Case(table(line(label="0,0,0"), clean=False), "{d}/pairs.parquet: cleaning leaves no train row (1 none_hot); check the files under data.train and the cleaning settings"),
    "one_prompt": Case(table(*[line(n, a=f'["{n}"]') for n in range(40)], clean=False), "folds.n: 3 folds with select and test need 5 different prompts, the train rows have 1; lower folds.n or add data"),
    "few_prompts": Case(table(*CLEAN[:4], clean=False), "folds.n: 3 folds with select and test need 5 different prompts, the train rows have 4; lower folds.n or add data"),
    "one_class": Case(table(*[line(n, f'["{n}"]') for n in range(30)], clean=False), "folds.n: dev of fold 0 has 8 rows and none of class b; lower folds.n or add data"),
    "fold_without_a_class": Case(table(*[line(n, f'["{n}"]', label=(WIN_A, WIN_B, TIE)[n % 3 if n < 6 else n % 2]) for n in range(30)], clean=False), "folds.n: dev of fold 2 has 8 rows and none of class tie; lower folds.n or add data"),
    "test_empty": Case(table(*CLEAN[:6], clean=False), "folds.test_fraction: test gets no rows; raise folds.test_fraction or add data"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_is_handled_and_counted_or_refused_in_one_line(tmp_path, case):
    arguments = (tmp_path, case.name, case.content, case.others)
    if isinstance(case.expected, dict):
        assert process(*arguments) == case.expected
        return
    with pytest.raises(UserError) as error:
        process(*arguments)
    expected = case.expected.replace("{f}", str(tmp_path / case.name))
    assert str(error.value) == expected.replace("{d}", str(tmp_path))
    assert str(error.value).isascii()
    assert not list(tmp_path.glob("fold*"))

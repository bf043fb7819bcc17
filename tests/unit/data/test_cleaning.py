import hashlib
import json
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest
from clean_pairs import main
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_samples import typed_row

from prefdistill.data.cleaning import choose_rows, compute_keys
from prefdistill.data.texts import (
    prompt_group,
)
from prefdistill.errors import UserError
from prefdistill.settings import CleaningSettings
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.tables import (
    CLEAN_SCHEMA,
    PAIRS_SCHEMA,
    read_table,
    write_table,
)

REASONS = [field.name for field in fields(CleaningSettings)]
DROP = CleaningSettings(**dict.fromkeys(REASONS, "drop"))
KEEP = CleaningSettings(**dict.fromkeys(REASONS, "keep"))
A, B, TIE = (1, 0, 0), (0, 1, 0), (0, 0, 1)


def clean(folder, rows, policy=DROP, ignored=()):
    table = pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA)
    write_table(folder / "pairs.parquet", table, PAIRS_SCHEMA)
    imported = {"repaired": {"null_turn": 2}, "files": [{"ignored_columns": ignored}]}
    write_json(folder / "import.json", imported)
    main(
        folder / "pairs.parquet",
        folder / "import.json",
        folder / "clean.parquet",
        folder / "cleaning.json",
        policy,
    )
    kept = read_table(folder / "clean.parquet", CLEAN_SCHEMA).to_pylist()
    return kept, read_json(folder / "cleaning.json")


def ids(rows):
    return [row["id"] for row in rows]


def dropped(report):
    """List the reasons with a count, by source."""
    return {
        reason: {s: n for s, n in counts.items() if n}
        for reason, counts in report["dropped"].items()
        if any(counts.values())
    }


OTHER = typed_row("train:0", "other", "x", "y")


@pytest.mark.parametrize(
    ("rows", "kept", "reasons"),
    [
        ([typed_row("train:1", label=(0, 0, 0))], [], {"none_hot": {"train": 1}}),
        ([typed_row("train:1", label=(1, 1, 0))], [], {"multi_hot": {"train": 1}}),
        ([typed_row("train:1", label=(1, 1, 1))], [], {"multi_hot": {"train": 1}}),
        ([typed_row("extra:1", prompt=" \n")], [], {"empty": {"extra": 1}}),
        ([typed_row("extra:1", prompt=[])], [], {"empty": {"extra": 1}}),
        ([typed_row("train:1", prompt="\x00")], [], {"empty": {"train": 1}}),
        ([typed_row("train:1", a="", b=["", " "])], [], {"empty": {"train": 1}}),
        ([typed_row("train:1", a="", b="b")], ["train:1"], {}),
        ([typed_row("train:1", a="x  y", b="x\ny ")], [], {"identical": {"train": 1}}),
        ([typed_row("train:1", a="X", b="x")], ["train:1"], {}),
        ([typed_row("train:1", a=["x", "y"], b=["x y"])], ["train:1"], {}),
        (
            [typed_row("train:1"), typed_row("train:2")],
            ["train:1"],
            {"duplicate": {"train": 1}},
        ),
        (
            [typed_row("train:1", label=A), typed_row("train:2", label=B)],
            ["train:1"],
            {"duplicate_contradictory": {"train": 1}},
        ),
        (
            [typed_row("train:1", "P  q"), typed_row("train:2", "p Q", "b", "a", B)],
            ["train:1"],
            {"duplicate": {"train": 1}},
        ),
        (
            [typed_row("train:1"), typed_row("train:2", a="b", b="a", label=A)],
            ["train:1"],
            {"duplicate_contradictory": {"train": 1}},
        ),
        (
            [
                typed_row("train:1", label=TIE),
                typed_row("train:2", a="b", b="a", label=TIE),
            ],
            ["train:1"],
            {"duplicate": {"train": 1}},
        ),
        (
            [
                typed_row("ultra:1"),
                typed_row("extra:1"),
                typed_row("train:1"),
                typed_row("extra:2"),
            ],
            ["train:1"],
            {"duplicate": {"extra": 2, "ultra": 1}},
        ),
        (
            [typed_row("train:1"), typed_row("test:1", a="b", b="a")],
            ["test:1"],
            {"duplicate": {"train": 1}},
        ),
        (
            [typed_row("train:1", label=(0, 0, 0)), typed_row("train:2")],
            ["train:2"],
            {"none_hot": {"train": 1}},
        ),
        (
            [typed_row("train:1"), typed_row("train:2", a="c")],
            ["train:1", "train:2"],
            {},
        ),
        (
            [
                typed_row("unlabelled:1"),
                typed_row("ultra:1", a="b", b="a"),
                typed_row("unlabelled:2", []),
            ],
            ["ultra:1"],
            {"duplicate": {"unlabelled": 1}, "empty": {"unlabelled": 1}},
        ),
        ([typed_row("unlabelled:1")], ["unlabelled:1"], {}),
    ],
)
def test_policy(tmp_path, rows, kept, reasons):
    left, report = clean(tmp_path, [OTHER, *rows])
    assert ids(left) == ["train:0", *kept]
    assert dropped(report) == reasons


def test_keep_policy_keeps_all_but_unusable_targets(tmp_path):
    rows = [
        typed_row("train:1"),
        typed_row("train:2"),
        typed_row("train:3", a="b"),
        typed_row("train:4", ""),
    ]
    rows.append(typed_row("train:5", "new", label=(0, 0, 0)))
    left, report = clean(tmp_path, rows, KEEP)
    assert ids(left) == ids(rows[:4])
    assert dropped(report) == {"none_hot": {"train": 1}}


def test_every_test_row_stays_and_is_flagged(tmp_path):
    rows = [typed_row(f"test:{n}") for n in range(3)]
    rows += [
        typed_row("test:3", a="b"),
        typed_row("test:4", ""),
        typed_row("test:5", "z", "", ""),
    ]
    left, report = clean(tmp_path, [OTHER, *rows])
    assert ids(left)[1:] == ids(rows)
    assert report["n_in"]["test"] == report["n_out"]["test"] == 6
    assert report["flagged_test_rows"] == {"empty": 2, "identical": 1, "duplicate": 2}


def test_report_adds_up_and_names_helper_columns(tmp_path):
    rows = [
        OTHER,
        typed_row("train:1"),
        typed_row("train:2"),
        typed_row("extra:1"),
        typed_row("ultra:9", "u"),
    ]
    _, report = clean(tmp_path, rows, ignored=["label", "argmax"])
    for source, n_in in report["n_in"].items():
        gone = sum(counts[source] for counts in report["dropped"].values())
        assert n_in - gone == report["n_out"][source]
    assert report["helper_columns_removed"] == ["argmax", "label"]
    assert report["repaired"] == {
        "null_turn": 2,
        "control_characters": 0,
        "special_token_strings": 0,
    }


def test_control_characters_are_removed_and_counted(tmp_path):
    left, report = clean(
        tmp_path,
        [typed_row("train:1", ["a\x00b", "ok\t\n"], "x\r\ny\x0cz\rw", "\x1b[1mb\x9f")],
    )
    assert left[0]["prompt"] == ["ab", "ok\t\n"]
    assert left[0]["response_a"] == ["x\ny\nz\nw"]
    assert left[0]["response_b"] == ["[1mb"]
    assert report["repaired"]["control_characters"] == 3


def test_special_token_strings_are_counted_and_left_to_the_encoder(tmp_path):
    rows = [
        typed_row(
            "train:1", ["<|im_start|>user", "fine", "a</s>b<s>"], "[INST] x [/INST]"
        ),
        typed_row("train:2", "if a <|b or c|> d: <code> <br> <div> [1] <<x>>", "s <s>"),
        typed_row("ultra:3", "<start_of_turn>model", "<\x00eos>", "<|\x07eot_id|>"),
    ]
    left, report = clean(tmp_path, rows)
    assert report["repaired"]["special_token_strings"] == 7
    assert left[0]["prompt"] == ["<|im_start|>user", "fine", "a</s>b<s>"]
    assert left[2]["response_a"] == ["<eos>"]


def test_nothing_left_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cleaning leaves no train row"):
        clean(tmp_path, [typed_row("train:1", label=(0, 0, 0)), typed_row("extra:1")])


def test_only_the_group_is_added(tmp_path):
    left, _ = clean(tmp_path, [typed_row("train:1", ["Hi", " THERE "])])
    assert set(left[0]) - set(PAIRS_SCHEMA.names) == {"group"}
    assert left[0]["group"] == hashlib.sha256(b"hi there").hexdigest()[:16]
    assert left[0]["group"] == prompt_group(["Hi", " THERE "])


SMALL = st.sampled_from(["a", "b", "c"])
RAW = st.tuples(
    st.sampled_from(["train", "extra", "ultra", "test"]),
    st.sampled_from(["p", "P ", "q"]),
    SMALL,
    SMALL,
    st.sampled_from([A, B, TIE]),
)


def slow_duplicates(rows):
    """Find duplicates with a set of pairs, in the order of precedence."""
    order = ["test", "train", "extra", "ultra"]
    seen, kept = set(), set()
    for one in sorted(rows, key=lambda r: order.index(r["source"])):
        prompt = " ".join(one["prompt"]).lower().strip()
        answers = frozenset(map(json.dumps, (one["response_a"], one["response_b"])))
        identical = len(answers) == 1
        if one["source"] == "test" or ((prompt, answers) not in seen and not identical):
            kept.add(one["id"])
        seen.add((prompt, answers))
    return [one["id"] for one in rows if one["id"] in kept]


@settings(max_examples=25, deadline=None)
@given(st.lists(RAW, max_size=25))
def test_duplicates_equal_the_slow_twin(tmp_path_factory, raw):
    rows = [typed_row(f"{source}:{n}", *rest) for n, (source, *rest) in enumerate(raw)]
    rows = [typed_row("train:first", "only here"), *rows]
    left, _ = clean(tmp_path_factory.mktemp("clean"), rows)
    assert ids(left) == slow_duplicates(rows)


def test_keys_do_not_depend_on_the_order_of_answers():
    rows = [typed_row("train:1", a="x", b="y"), typed_row("train:2", a="y", b="x")]
    keys = compute_keys(pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA).to_batches()[0])
    assert keys.pair[0] == keys.pair[1]
    assert np.array_equal(keys.flipped, ~keys.flipped[::-1])


LABEL = st.sampled_from([A, B, TIE, (0, 0, 0), (1, 1, 0)])
MIXED = st.lists(
    st.tuples(
        st.sampled_from(["train", "extra", "ultra", "test"]),
        st.sampled_from(["p", "P ", "q", "", "\u200b"]),
        st.sampled_from(["a", "b", " a", ""]),
        st.sampled_from(["a", "b", "c", ""]),
        LABEL,
    ),
    min_size=1,
    max_size=25,
)
TREATMENTS = st.sampled_from(["drop", "keep"])
POLICIES = st.builds(
    CleaningSettings, identical=TREATMENTS, empty=TREATMENTS, duplicates=TREATMENTS
)


def chosen(rows, policy=DROP):
    """Compute the keys, the rows that stay, and the others by reason."""
    table = pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA).combine_chunks()
    keys = compute_keys(table.to_batches()[0])
    return keys, *choose_rows(keys, policy)


def number_rows(raw):
    return [typed_row(f"{source}:{n}", *rest) for n, (source, *rest) in enumerate(raw)]


@given(raw=MIXED, random=st.randoms(use_true_random=False), policy=POLICIES)
def test_the_order_of_rows_changes_no_count(raw, random, policy):
    """Only the choice between equal rows of one source depends on their order."""
    results = []
    for _ in range(2):
        keys, kept, against = chosen(number_rows(raw), policy)
        against["duplicate"] |= against.pop("duplicate_contradictory")
        counts = {reason: int(rows.sum()) for reason, rows in against.items()}
        stay = zip(keys.rank[kept].tolist(), keys.pair[kept].tolist(), strict=True)
        results.append((counts, sorted(stay)))
        random.shuffle(raw)
    assert results[0] == results[1]


@given(raw=MIXED, policy=POLICIES)
def test_swapping_all_answers_swaps_the_result(raw, policy):
    swapped = [(s, p, b, a, (y[1], y[0], y[2])) for s, p, a, b, y in raw]
    keys, kept, against = chosen(number_rows(raw), policy)
    other_keys, other_kept, other_against = chosen(number_rows(swapped), policy)
    assert kept.tolist() == other_kept.tolist()
    assert keys.pair.tolist() == other_keys.pair.tolist()
    for reason, rows in against.items():
        assert rows.tolist() == other_against[reason].tolist()


@given(raw=MIXED, policy=POLICIES)
def test_every_row_stays_or_goes_for_one_reason(raw, policy):
    keys, kept, against = chosen(number_rows(raw), policy)
    reasons = np.sum(list(against.values()), axis=0)
    is_test = keys.rank == 0
    assert (reasons[~is_test] == ~kept[~is_test]).all()
    assert kept[is_test].all()
    assert reasons.max() <= 1

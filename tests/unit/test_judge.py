"""The judge as a library gives what the workflow predicts."""

from dataclasses import replace

import infer_logits
import numpy as np
import pytest
import symmetrise
from judge_samples import CALIBRATION, PAIRS, TEXT

from prefdistill import judge as judge_module
from prefdistill.data.texts import clean_batch
from prefdistill.errors import Interrupted, UserError
from prefdistill.judge import Verdict, pairs_table
from prefdistill.scores.views import PROBABILITY_COLUMNS, SYMMETRISED_SCHEMA, columns_of
from prefdistill.settings import ScoringSettings
from prefdistill.storage.checkpoints import Checkpoints
from prefdistill.storage.tables import FOLD_SCHEMA, read_table, write_table


def as_turns(text):
    return [text] if isinstance(text, str) else text


def workflow_probabilities(judge_folder, tmp_path):
    """Predict the pairs with the workflow's own scripts."""
    names = ("prompt", "response_a", "response_b")
    rows = [
        {"id": f"test:{n}", "source": "test", "split": "unlabelled", "group": ""}
        | {name: as_turns(text) for name, text in zip(names, pair, strict=True)}
        for n, pair in enumerate(PAIRS)
    ]
    table = pairs_schema_table(rows)
    write_table(tmp_path / "rows.parquet", table, FOLD_SCHEMA)

    infer_logits.main(
        pairs=[tmp_path / "rows.parquet"], weights=judge_folder / "model.safetensors",
        base=None, logits=tmp_path / "logits.npz", text=TEXT,
        scoring=ScoringSettings("auto", splits=["unlabelled"], token_budget=512),
        scratch=tmp_path / "scratch", code="",
    )  # fmt: skip
    symmetrise.main(
        tmp_path / "logits.npz",
        judge_folder / "calibration.json",
        None,
        tmp_path / "s",
        0.0,
    )
    found = read_table(tmp_path / "s", SYMMETRISED_SCHEMA)
    assert found.column("id").to_pylist() == [row["id"] for row in rows]
    return columns_of(found, PROBABILITY_COLUMNS)


def pairs_schema_table(rows):
    import pyarrow as pa

    fields = {name: [row.get(name) for row in rows] for name in FOLD_SCHEMA.names}
    batch = pa.record_batch(
        [pa.array(fields[f.name], f.type) for f in FOLD_SCHEMA], schema=FOLD_SCHEMA
    )
    return pa.Table.from_batches([clean_batch(batch)[0]])


def test_the_probabilities_are_the_workflows(judge, judge_folder, tmp_path):
    expected = workflow_probabilities(judge_folder, tmp_path)
    assert expected.std() > 0.05
    verdicts = judge.compare_batch(PAIRS)
    np.testing.assert_allclose(np.array(verdicts), expected, atol=1e-6)
    one = judge.compare(*PAIRS[1])
    assert isinstance(one, Verdict)
    assert one._fields == ("a", "b", "tie")
    np.testing.assert_allclose(one, expected[1], atol=1e-6)


def table_of(pairs):
    ids = [str(number) for number in range(len(pairs))]
    return pairs_table(ids, [[as_turns(text) for text in pair] for pair in pairs])


def test_stopped_scoring_goes_on(judge, tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path / "scratch", "judge")
    n_passes = []

    def stop_requested():
        n_passes.append(1)
        return len(n_passes) > len(PAIRS)

    monkeypatch.setattr("prefdistill.models.scoring.stop_requested", stop_requested)
    one_row_a_pass = replace(judge, token_budget=64)
    with pytest.raises(Interrupted):
        one_row_a_pass.score(table_of(PAIRS), kept)
    assert list((tmp_path / "scratch").glob("*.safetensors"))
    monkeypatch.undo()
    probs, _ = one_row_a_pass.score(table_of(PAIRS), kept)
    np.testing.assert_allclose(probs, np.array(judge.compare_batch(PAIRS)), atol=1e-6)
    kept.remove()
    assert not (tmp_path / "scratch").exists()


def test_swapped_answers_swap_the_probabilities(judge):
    prompt, a, b = PAIRS[0]
    forth, back = judge.compare(prompt, a, b), judge.compare(prompt, b, a)
    # Logits are float32, so probabilities agree to about its last digits.
    np.testing.assert_allclose(forth, (back.b, back.a, back.tie), rtol=1e-5)
    assert abs(forth.a - forth.b) > 1e-3


def test_a_batch_reports_progress_and_may_be_empty(judge, monkeypatch):
    whole = judge.compare_batch(PAIRS)
    monkeypatch.setattr(judge_module, "CHUNK_PAIRS", 2)
    seen = []
    parts = judge.compare_batch(PAIRS, progress=lambda *done: seen.append(done))
    assert seen == [(2, 8), (4, 8), (6, 8), (8, 8)]
    np.testing.assert_allclose(np.array(parts), np.array(whole), atol=1e-6)
    assert judge.compare_batch([]) == []


def test_the_order_gap_is_the_distance_of_the_two_orders(judge):
    encoded = judge.encode(pairs_table(["1"], [[["tell me"], ["one"], ["two and"]]]))
    logits = judge.logits(encoded)
    (gap,) = judge.order_gap(logits)
    scaled = logits[0].astype(float) * CALIBRATION["a"] + CALIBRATION["b"]
    first, second = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    assert gap == pytest.approx(np.abs(first - second[[1, 0, 2]]).sum() / 2)
    assert gap > 1e-3


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("a", "b"), r"pair 2: is not \(prompt, response_a, response_b\)"),
        ("abc", r"pair 2: is not \(prompt, response_a, response_b\)"),
        (("a", "b", [1]), "pair 2, column response_b: turn 1 is '1', not a string"),
        (("a", 5, "c"), "pair 2, column response_a: '5' is not a list of turns"),
    ],
)
def test_what_is_no_pair_is_one_line(judge, pair, message):
    with pytest.raises(UserError, match=message):
        judge.compare_batch([PAIRS[0], pair])


def test_a_mapping_is_read_by_its_keys(judge):
    names = ("prompt", "response_a", "response_b")
    expected = judge.compare_batch(PAIRS[:2])
    mappings = [dict(zip(names, pair, strict=True)) for pair in PAIRS[:2]]
    backwards = [dict(reversed(pair.items())) for pair in mappings]
    assert judge.compare_batch(mappings) == expected
    assert judge.compare_batch(backwards) == expected
    assert judge.compare_batch(iter(mappings)) == expected


ROW = {"prompt": "p", "response_a": "a", "response_b": "b"}


@pytest.mark.parametrize(
    "pair",
    [
        *({}, ROW | {"id": 1}, {"prompt": "p", "response_a": "a"}, {1: 2, 3: 4, 5: 6}),
        *({"p", "a", "b"}, frozenset("pab"), "pab", b"pab", 3, None, 0.5, object()),
        *((), ("p", "a"), ("p", "a", "b", "c"), ("p", "a", None), ("p", "a", 3)),
        *(("p", "a", b"b"), ("p", "a", {"b"}), ("p", "a", {"b": 1}), ROW.values()),
        *((x for x in "pab"), iter("pab"), range(3), ("p", "a", ["b", 3])),
        ROW | {"prompt": None},
    ],
    ids=lambda pair: type(pair).__name__,
)
def test_what_is_no_pair_names_the_pair(judge, pair):
    with pytest.raises(UserError, match="pair 2") as refused:
        judge.compare_batch([PAIRS[0], pair])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("pairs", [ROW, "pab", b"pab", 3, None])
def test_what_is_no_list_of_pairs_is_one_line(judge, pairs):
    with pytest.raises(UserError, match="is not a list of pairs"):
        judge.compare_batch(pairs)

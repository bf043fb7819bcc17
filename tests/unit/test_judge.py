"""The judge as a library gives what the workflow predicts."""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace

import infer_logits
import numpy as np
import pytest
import symmetrise
import torch

from prefdistill import judge as judge_module
from prefdistill.data.cleaning import clean_batch
from prefdistill.errors import Interrupted, UserError
from prefdistill.export.card import CardFacts, card_text
from prefdistill.export.judge_settings import write_judge_settings
from prefdistill.export.merging import write_classifier
from prefdistill.export.release import (
    EXAMPLE,
    EXAMPLE_FILE,
    RELEASE_FILES,
    write_release,
)
from prefdistill.judge import Judge, Verdict, pairs_table
from prefdistill.models.head import Head
from prefdistill.scores.views import PROBABILITY_COLUMNS, SYMMETRISED_SCHEMA, columns_of
from prefdistill.settings import ScoringSettings, TextSettings, read
from prefdistill.storage.checkpoints import Checkpoints
from prefdistill.storage.records import read_json, write_json
from prefdistill.storage.tables import FOLD_SCHEMA, read_table, write_table

TEXT = {
    "template": "<prompt>: {prompt}\n\n<response_a>: {response_a}\n\n"
    "<response_b>: {response_b}\n\n<verdict>:",
    "turn": "\n<turn {n}>: ",
    "max_length": 160,
    "prompt_share": 0.25,
    "head_share": 0.5,
}
CALIBRATION = {
    "method": "vector",
    "tied": True,
    "a": [0.7, 0.7, 1.2],
    "b": [0.1, 0.1, -0.2],
}
PAIRS = [
    ("tell me", "one answer", "another, longer answer"),
    (["first", "and then?"], ["a list", "of two"], ["no", "yes"]),
    ("bell\x07 and\r\nbreak", "<verdict>: <eos>", ""),
    ("long " * 90, "river " * 120, "mountain " * 60),
    ("", "same", "same"),
    ("hi", "\x07 ", "says something"),
    ("hi", ["one", "two"], ["one", " two "]),
    ("nothing", " ", ""),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_folder):
    """A finished judge of two layers."""
    target = tmp_path_factory.mktemp("judge") / "merged"
    torch.manual_seed(0)
    write_classifier(
        tiny_model_folder("gemma2"), target, Head({"score.weight": torch.randn(3, 32)})
    )
    write_json(target / "calibration.json", CALIBRATION)
    write_judge_settings(target, TEXT, ["AB", "BA"])
    return target


@pytest.fixture(scope="module")
def judge(folder):
    return Judge.load(folder, "cpu")


def as_turns(text):
    return [text] if isinstance(text, str) else text


def workflow_probabilities(folder, tmp_path):
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
        pairs=[tmp_path / "rows.parquet"], weights=folder / "model.safetensors",
        base=None, logits=tmp_path / "logits.npz", text=read(TextSettings, TEXT),
        scoring=ScoringSettings("auto", splits=["unlabelled"], token_budget=512),
        scratch=tmp_path / "scratch", code="",
    )  # fmt: skip
    symmetrise.main(
        tmp_path / "logits.npz", folder / "calibration.json", None, tmp_path / "s", 0.0
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


def test_the_probabilities_are_the_workflows(judge, folder, tmp_path):
    expected = workflow_probabilities(folder, tmp_path)
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


def test_a_folder_that_is_no_judge_is_one_line(folder, tmp_path, tiny_model_folder):
    with pytest.raises(UserError, match=r"has no judge\.json, so it is not a finished"):
        Judge.load(tiny_model_folder("gemma2"))
    copy = tmp_path / "judge"
    shutil.copytree(folder, copy)
    settings = json.loads((copy / "judge.json").read_text())
    write_json(copy / "judge.json", settings | {"format": 9})
    with pytest.raises(UserError, match="format 9 is not known"):
        Judge.load(copy)
    for name in ("known_priors", "second_view"):
        write_json(copy / "judge.json", settings | {name: {"view": "AB"}})
        with pytest.raises(UserError, match=rf"judge\.json: {name} is not known to"):
            Judge.load(copy)
    unset = {"known_priors": None, "second_view": None}
    write_json(copy / "judge.json", settings | unset)
    assert Judge.load(copy, "cpu").settings.views == ("AB", "BA")
    write_json(copy / "judge.json", settings)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        Judge.load(copy)


# --- the release -------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(folder):
    target = folder.parent / "release"
    write_release(folder, target, "# Card\n")
    return target


def test_a_release_is_whole_and_its_weights_take_no_room(folder, release):
    assert {path.name for path in release.iterdir()} == set(RELEASE_FILES)
    one, other = (each / "model.safetensors" for each in (folder, release))
    assert one.stat().st_ino == other.stat().st_ino
    before = one.stat().st_mtime_ns
    write_release(folder, release, "# Other card\n")
    assert one.stat().st_mtime_ns == before
    assert (release / "README.md").read_text() == "# Other card\n"


def test_where_links_cannot_be_the_weights_are_copied(folder, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link", source)

    monkeypatch.setattr("os.link", refuse)
    write_release(folder, tmp_path / "release", "")
    one, other = (each / "model.safetensors" for each in (folder, tmp_path / "release"))
    assert one.read_bytes() == other.read_bytes()
    assert one.stat().st_ino != other.stat().st_ino


def card_of(folder):
    calibration = {**CALIBRATION, "n_select": 9}
    for name in ("nll", "ece"):
        calibration |= {f"{name}_{when}": 0.5 for when in ("before", "after")}
    scores = defaultdict(float, stage="merged_calibrated", n=8)
    shares = {"a": 0.4, "b": 0.4, "tie": 0.2}
    splits = {
        split: {"n": 5, "class_shares": shares} for split in ("train", "select", "test")
    }
    base = {"source": "tiny", "architecture": "gemma2"}
    return card_text(
        CardFacts(
            judge="merged",
            student=base,
            teachers={"one": base},
            settings=read_json(folder / "judge.json"),
            scores=[scores],
            calibration=calibration,
            imported={"files": [{"file": "x.csv", "source": "train", "n_rows": 5}]},
            folds={"folds": {"0": splits}, "post_pretrain": {"n": 0}},
            simulated=False,
        )
    )


def test_the_card_tells_which_orders_are_shown(folder, tmp_path):
    assert "The pair is shown in both orders" in card_of(folder)
    write_judge_settings(tmp_path, TEXT, ["BA"])
    assert "The pair is shown in the order BA alone" in card_of(tmp_path)


def test_an_unfinished_judge_is_not_released(folder, tmp_path):
    for name in set(RELEASE_FILES) - {"calibration.json"}:
        if (folder / name).exists():
            (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match=r"has no calibration\.json"):
        write_release(tmp_path, tmp_path / "release", "")
    assert not (tmp_path / "release").exists()


def test_the_example_needs_no_package_and_gives_the_same(release, judge, tmp_path):
    assert len(EXAMPLE.splitlines()) <= 15
    assert max(map(len, EXAMPLE.splitlines())) <= 125
    done = subprocess.run(
        [sys.executable, "-I", release / EXAMPLE_FILE, *PAIRS[0]],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = judge.compare(*PAIRS[0])._asdict()
    assert json.loads(done.stdout) == pytest.approx(expected, abs=1e-5)
    absent = [sys.executable, "-I", "-c", "import prefdistill"]
    assert subprocess.run(absent, capture_output=True).returncode != 0

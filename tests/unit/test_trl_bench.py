"""What stands beside TRL's trainer, which is no dependency: splits, margins, tables."""

import csv
import sys

import numpy as np
import pytest

import reward_model
import trl_real
import trl_scores
from prefdistill.errors import UserError
from prefdistill.scores.metrics import labels_of, log_loss
from prefdistill.storage.tables import write_json

COLUMNS = (
    "id", "model_a", "model_b", "prompt", "response_a", "response_b",
    "winner_model_a", "winner_model_b", "winner_tie",
)  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """60 pairs on 30 prompts; the longer answer wins, equal lengths tie."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    with open(path, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        for row in range(60):
            label = row % 3
            n_words = {0: (4, 1), 1: (1, 4), 2: (2, 2)}[label]
            answers = [
                f'["{side} {" ".join(["river"] * n)}"]'
                for side, n in zip("xy", n_words, strict=True)
            ]
            hot = [int(label == each) for each in range(3)]
            writer.writerow([row, "m", "n", f'["Q{row // 2}"]', *answers, *hot])
    return path


def options(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["trl_real.py", *map(str, arguments)])
    return trl_real.read_options()


@pytest.fixture
def settings(pairs, monkeypatch, tmp_path):
    given = ["--base", "b", "--pairs", pairs, "--out", tmp_path, "--n-parts", 3]
    given += ["--folds", 2, "--max-steps", 2, "--max-length", 64, "--rank", 4]
    return trl_real.read_settings(options(monkeypatch, *given))


def test_each_row_is_tested_once_and_no_prompt_is_on_both_sides(settings, tmp_path):
    tested = []
    for part in range(3):
        labels = labels_of(trl_real.split_rows(settings, part, tmp_path))
        train = labels.split == "train"
        assert set(labels.split) == {"train", "dev", "select", "test"}
        assert not set(labels.group[train]) & set(labels.group[~train])
        tested += labels.ids[labels.split == "test"].tolist()
    assert sorted(tested) == sorted(f"train:{row}" for row in range(60))


def test_ties_are_left_out_and_the_winner_is_chosen(settings, tmp_path):
    table = trl_real.split_rows(settings, 0, tmp_path)
    rows = reward_model.preferences(table)
    assert len(rows) == np.count_nonzero(labels_of(table).label < 2)
    for row in rows:
        assert row["chosen"].count("river") == 4
        assert row["rejected"].count("river") == 1


def test_scale_and_margin_are_found_again():
    rng = np.random.default_rng(0)
    difference = rng.normal(size=20_000)
    probs = reward_model.tie_probabilities(difference, 1.5, 0.4)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    labels = (rng.random(len(probs))[:, None] > probs.cumsum(axis=1)).sum(axis=1)
    scale, margin = reward_model.fit_margin(difference, labels)
    assert (scale, abs(margin)) == pytest.approx((1.5, 0.4), abs=0.06)


def test_the_student_is_trained_and_calibrated(settings, tiny_model_folder, tmp_path):
    table = trl_real.split_rows(settings, 0, tmp_path)
    labels = labels_of(table)
    base = tiny_model_folder("llama")
    probs, facts = trl_real.try_student(
        base, table, labels, settings, 1e-3, tmp_path / "run"
    )
    train = labels.split == "train"
    assert facts["pairs"] == np.count_nonzero(train)
    assert probs.shape == (np.count_nonzero(~train), 3)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert len((tmp_path / "run/train.jsonl").read_text().splitlines()) == 2


def test_the_rate_is_taken_on_dev_alone(settings, tmp_path):
    labels = labels_of(trl_real.split_rows(settings, 0, tmp_path))
    held_out = labels.rows(np.isin(labels.split, trl_real.HELD_OUT))
    right = np.eye(3)[held_out.label] * 0.7 + 0.1
    wrong = np.roll(right, 1, axis=1)
    dev = (held_out.split == "dev")[:, None]

    def attempt(labels, rate, folder):
        """Rate 1 is right on dev, rate 2 elsewhere."""
        return np.where(dev == (rate == 1), right, wrong), {}

    probs, attempts = trl_real.best_rate(attempt, labels, [2.0, 1.0])
    test = held_out.split == "test"
    np.testing.assert_array_equal(probs, wrong[test])
    assert [each["rate"] for each in attempts] == [2.0, 1.0]
    assert attempts[1]["dev_log_loss"] == pytest.approx(-np.log(0.8))


def test_a_part_of_other_options_is_named(pairs, monkeypatch, tmp_path):
    """Also where the parts before it are missing."""
    write_json(tmp_path / "part1.json", {"part": 1, "options": {"seed": "9"}})
    given = ["--base", "b", "--pairs", pairs, "--out", tmp_path, "--parts"]
    options(monkeypatch, *given)
    with pytest.raises(UserError, match=r"part1\.json: made with other options"):
        trl_real.main()


def made_part(number, labels, shift):
    rng = np.random.default_rng(number)
    systems = (*trl_scores.SYSTEMS, "class prior")
    probs = {}
    for place, name in enumerate(systems):
        mixed = np.eye(3)[labels] * (0.2 + shift * place) + rng.random((len(labels), 3))
        probs[name] = (mixed / mixed.sum(axis=1, keepdims=True)).tolist()
    attempts = [
        {"rate": 0.1, "dev_log_loss": 2.0, "train_s": 9.0, "score_s": 9.0},
        {"rate": 0.2, "dev_log_loss": 1.0, "train_s": 3.0 + number, "score_s": 1.0},
    ]
    return {
        "part": number, "n": {"train": 5, "test": len(labels)},
        "attempts": dict.fromkeys(trl_scores.SYSTEMS, attempts),
        "label": labels, "group": [f"{number}-{row}" for row in range(len(labels))],
        "probs": probs,
    }  # fmt: skip


def test_scores_are_over_the_rows_of_all_parts():
    parts = [made_part(0, [0, 1, 2, 0], 0.5), made_part(1, [1, 1], 0.5)]
    scores = trl_scores.score_systems(parts)
    labels = np.array([0, 1, 2, 0, 1, 1])
    losses = {
        name: log_loss(np.concatenate([part["probs"][name] for part in parts]), labels)
        for name in scores
    }
    for name, score in scores.items():
        assert score["log_loss"]["mean"] == pytest.approx(losses[name])
        expected = losses[name] - losses["TRL reward model"]
        assert score["less_trl"]["mean"] == pytest.approx(expected)
    assert scores["student"]["train_s"] == 3.5
    text = trl_scores.page(parts, scores)
    assert "6 test rows of 2 parts" in text
    assert f"{losses['student']:.4f} [" in text
    assert "| 0.2 " in text
    assert "| 0.1 " not in text


def test_lines_of_code_are_without_comments_and_docstrings():
    source = '"""Doc\n\nmore"""\n\nimport x  # why\n\n\ndef f():\n    """Doc."""\n'
    assert trl_scores.code_lines(source + "    # so\n    return 1\n") == 3

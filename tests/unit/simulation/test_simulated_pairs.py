import csv
import json

import numpy as np
import pytest
from simulate_pairs import main

from prefdistill.simulation.simulated_files import (
    CSV_COLUMNS,
    LABELLED_DIRT,
    SOURCES,
    TEST_COLUMNS,
    TEXT_DIRT,
    TRUTH_SCHEMA,
    prompt_pools,
    simulate_rows,
    write_simulation,
)
from prefdistill.simulation.simulated_pairs import (
    N_PROMPTS,
    NOUNS,
    PROMPT_SHAPE,
    QUALITY_WEIGHTS,
    TIE_WEIGHT,
    TOPIC_NAMES,
    Answers,
    answer_qualities,
    answer_texts,
    bayes_log_loss,
    draw_answers,
    draw_labels,
    judge_probs,
    prompt_texts,
)
from prefdistill.storage.tables import read_table

SETTINGS = {
    **{"n_train": 1200, "n_extra": 240, "n_ultra": 360, "n_test": 60},
    **{"dirty_fraction": 0.1, "seed": 3},
}


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    answers = draw_answers(rng, rng.integers(N_PROMPTS, size=20_000))
    return answers, answer_qualities(answers)


def write(folder, settings=SETTINGS):
    paths = {source: folder / f"{source}.csv" for source in SOURCES}
    return paths, write_simulation(paths, folder / "truth.parquet", settings)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    paths, reports = write(folder)
    rows = {}
    for source, path in paths.items():
        with open(path, newline="", encoding="utf-8") as handle:
            rows[source] = list(csv.DictReader(handle))
    return folder, rows, reports


def swap_answers(answers):
    pairs = ("model", "format", "n_items", "opening", "closing", "items", "empty")
    flipped = {name: getattr(answers, name)[:, ::-1] for name in pairs}
    return Answers(**(vars(answers) | flipped))


def test_probabilities_sum_to_one(drawn):
    probs = judge_probs(drawn[1])
    assert probs.shape == (20_000, 3)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert probs.min() > 0


def test_swapping_the_answers_swaps_the_probabilities(drawn):
    answers, qualities = drawn
    swapped = judge_probs(answer_qualities(swap_answers(answers)))
    np.testing.assert_allclose(swapped, judge_probs(qualities)[:, [1, 0, 2]])


def test_judge_follows_davidson(drawn):
    qualities = drawn[1][:50]
    for (first, second), probs in zip(qualities, judge_probs(qualities), strict=True):
        a, b = np.exp(first @ QUALITY_WEIGHTS), np.exp(second @ QUALITY_WEIGHTS)
        weights = np.array([a, b, TIE_WEIGHT * np.sqrt(a * b)])
        np.testing.assert_allclose(probs, weights / weights.sum())


def test_no_ties_and_noisy_labels(drawn):
    qualities = drawn[1][:50]
    without = judge_probs(qualities, ties=False)
    assert (without[:, 2] == 0).all()
    noisy = judge_probs(qualities, noise=0.3)
    np.testing.assert_allclose(noisy, 0.7 * judge_probs(qualities) + 0.1)


def test_labels_follow_the_probabilities(drawn):
    probs = judge_probs(drawn[1])
    labels = draw_labels(np.random.default_rng(1), probs)
    for class_index in range(3):
        share = (labels == class_index).mean()
        assert share == pytest.approx(probs[:, class_index].mean(), abs=0.012)
    sure = probs[:, 0] > 0.7
    assert (labels[sure] == 0).mean() == pytest.approx(probs[sure, 0].mean(), abs=0.02)


def test_bayes_loss_is_the_entropy_and_well_below_the_prior(drawn):
    probs = judge_probs(drawn[1])
    labels = draw_labels(np.random.default_rng(1), probs)
    entropy = -(probs * np.log(probs)).sum(axis=1).mean()
    assert bayes_log_loss(probs, labels) == pytest.approx(entropy, abs=0.015)
    prior = probs.mean(axis=0)
    assert entropy < -(prior * np.log(prior)).sum() - 0.2


def test_qualities_agree_with_the_text(drawn):
    answers, qualities = drawn
    topics = np.unravel_index(answers.prompt, PROMPT_SHAPE)[3]
    texts = answer_texts(answers, 0)
    for row, prompt in enumerate(prompt_texts(answers)[:300]):
        assert TOPIC_NAMES[topics[row]] in prompt[0]
        text = " ".join(texts[row])
        words = text.lower().replace(".", " ").replace('"', " ").split()
        nouns = [NOUNS.index(word) for word in words if word in NOUNS]
        n_nouns = len(NOUNS) // len(TOPIC_NAMES)
        on_topic = np.mean([noun // n_nouns == topics[row] for noun in nouns])
        assert qualities[row, 0, 0] == pytest.approx(on_topic)
        if len(texts[row]) == 1:
            is_polite = text.endswith(("asking!", "helps!"))
            assert (qualities[row, 0, 1] > 0.5) <= is_polite
        is_json = texts[row][0].find('{"steps": [') >= 0
        assert is_json == (answers.format[row, 0] == 2)


def test_duplicates_copy_and_swap_their_donor():
    rng = np.random.default_rng(0)
    rows = simulate_rows(rng, "train", rng.integers(N_PROMPTS, size=240), 0.5)
    prompts, first, second = (list(map(json.dumps, texts)) for texts in rows.texts)
    clean = {
        (prompts[i], first[i], second[i]): i
        for i, kind in enumerate(rows.dirt)
        if not kind
    }
    n_checked = 0
    for row, kind in enumerate(rows.dirt):
        if kind == "duplicate":
            donor = clean[prompts[row], first[row], second[row]]
            assert rows.labels[row] == rows.labels[donor]
            np.testing.assert_array_equal(rows.probs[row], rows.probs[donor])
        elif kind == "swapped_duplicate":
            donor = clean[prompts[row], second[row], first[row]]
            assert rows.labels[row] == [1, 0, 2][rows.labels[donor]]
            np.testing.assert_array_equal(rows.probs[row], rows.probs[donor][[1, 0, 2]])
        n_checked += kind.endswith("duplicate")
    assert n_checked == 20


def test_csv_has_the_kaggle_columns_and_json_turns(simulated):
    _, rows, _ = simulated
    for source in SOURCES:
        columns = TEST_COLUMNS if source == "test" else CSV_COLUMNS
        assert len(rows[source]) == SETTINGS[f"n_{source}"]
        assert tuple(rows[source][0]) == columns
        for row in rows[source]:
            turns = [json.loads(row[name]) for name in TEST_COLUMNS[1:]]
            assert len({len(texts) for texts in turns}) == 1
            assert all(turn is None or isinstance(turn, str) for turn in turns[0])
    n_turns = [len(json.loads(row["prompt"])) for row in rows["train"]]
    assert {1, 2} == set(n_turns)
    ties = sum(row["winner_tie"] == "1" for row in rows["train"])
    assert 150 < ties < 400


def test_ultra_has_no_ties(simulated):
    _, rows, reports = simulated
    ties = [row for row in rows["ultra"] if row["winner_tie"] == "1"]
    # Ties can only come from rows that are marked as all three, or copied from train.
    assert len(ties) <= sum(
        reports["ultra"]["dirt"][kind]
        for kind in ("multi_hot", "duplicate", "swapped_duplicate")
    )


def test_prompts_repeat_within_and_across_files(simulated):
    _, rows, _ = simulated
    prompts = {
        source: [" ".join(row["prompt"].lower().split()) for row in rows[source]]
        for source in SOURCES
    }
    assert len(set(prompts["train"])) < 0.6 * len(prompts["train"])
    assert set(prompts["train"]) & set(prompts["extra"])
    assert set(prompts["train"]) & set(prompts["ultra"])
    pools = prompt_pools(SETTINGS)
    assert not set(pools["train"]) & set(pools["test"])


def test_every_kind_of_dirt_is_counted_and_there(simulated):
    _, rows, reports = simulated
    dirt = reports["train"]["dirt"]
    assert sum(dirt.values()) == 120
    assert set(dirt) == {*LABELLED_DIRT, *TEXT_DIRT}
    assert set(reports["test"]["dirt"]) == set(TEXT_DIRT)

    def count(test):
        return sum(map(test, rows["train"]))

    def label(row):
        return "".join(row[name] for name in CSV_COLUMNS[-3:])

    assert count(lambda row: label(row) == "000") == dirt["none_hot"]
    assert count(lambda row: label(row) == "111") == dirt["multi_hot"]
    assert count(lambda row: "null" in str(row.values())) == dirt["null_turn"]
    assert (
        count(lambda row: "\\ud83d" in row["response_a"] + row["response_b"])
        == (dirt["lone_surrogate"])
    )
    assert count(lambda row: "\\r\\n" in row["prompt"]) == dirt["crlf"]
    assert (
        count(lambda row: not "".join(json.loads(row["prompt"])).strip())
        == (dirt["empty_prompt"])
    )
    identical = count(lambda row: row["response_a"] == row["response_b"])
    assert identical >= dirt["identical"] + dirt["empty_pair"]


def test_truth_covers_every_row(simulated):
    folder, rows, reports = simulated
    truth = read_table(folder / "truth.parquet", TRUTH_SCHEMA)
    ids = [f"{source}:{row['id']}" for source in SOURCES for row in rows[source]]
    assert truth.column("id").to_pylist() == ids
    probs = np.stack(
        [truth.column(name).to_numpy() for name in ("p_a", "p_b", "p_tie")]
    )
    np.testing.assert_allclose(probs.sum(axis=0), 1)
    train = rows["train"]
    columns = ("winner_model_a", "winner_model_b", "winner_tie")
    labels = np.array([[int(row[name]) for name in columns] for row in train])
    clean = labels.sum(axis=1) == 1
    loss = bayes_log_loss(probs.T[: len(train)][clean], labels[clean].argmax(axis=1))
    assert loss == pytest.approx(reports["train"]["bayes_log_loss"], abs=0.01)


def test_same_seed_same_bytes_other_seed_other_bytes(simulated, tmp_path):
    folder, _, _ = simulated
    again, other = tmp_path / "again", tmp_path / "other"
    write(again)
    write(other, SETTINGS | {"seed": 4})
    for name in [f"{source}.csv" for source in SOURCES] + ["truth.parquet"]:
        assert (again / name).read_bytes() == (folder / name).read_bytes()
        assert (other / name).read_bytes() != (folder / name).read_bytes()


def test_script_logs_counts_and_accepts_empty_files(tmp_path, caplog):
    caplog.set_level("INFO")
    settings = SETTINGS | {"n_train": 1, "n_extra": 0, "n_ultra": 0, "n_test": 0}
    paths = {source: tmp_path / f"{source}.csv" for source in SOURCES}
    main(**paths, truth=tmp_path / "truth.parquet", settings=settings)
    assert "train: 1 rows; dirty: none" in caplog.text
    assert len(paths["test"].read_text().splitlines()) == 1

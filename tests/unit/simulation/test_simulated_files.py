import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from simulate_pairs import main

from prefdistill.settings import SimulationSettings
from prefdistill.simulation import simulated_files
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
from prefdistill.simulation.simulated_pairs import N_PROMPTS, bayes_log_loss
from prefdistill.storage.tables import read_table

SETTINGS = SimulationSettings(
    n_train=1200, n_extra=240, n_ultra=360, n_test=60, dirty_fraction=0.1, seed=3
)


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
        assert len(rows[source]) == getattr(SETTINGS, f"n_{source}")
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
    write(other, replace(SETTINGS, seed=4))
    for name in [f"{source}.csv" for source in SOURCES] + ["truth.parquet"]:
        assert (again / name).read_bytes() == (folder / name).read_bytes()
        assert (other / name).read_bytes() != (folder / name).read_bytes()


def test_script_logs_counts_and_accepts_empty_files(tmp_path, caplog):
    caplog.set_level("INFO")
    settings = replace(SETTINGS, n_train=1, n_extra=0, n_ultra=0, n_test=0)
    paths = {source: tmp_path / f"{source}.csv" for source in SOURCES}
    main(**paths, truth=tmp_path / "truth.parquet", settings=settings)
    assert "train: 1 rows; dirty: none" in caplog.text
    assert len(paths["test"].read_text().splitlines()) == 1


def test_a_file_of_several_chunks_is_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(simulated_files, "CHUNK_ROWS", 500)
    paths, reports = write(tmp_path)
    with open(paths["train"], newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["id"] for row in rows] == [str(n) for n in range(1, 1201)]
    assert reports["train"]["n_rows"] == len(rows)
    truth = read_table(tmp_path / "truth.parquet", TRUTH_SCHEMA)
    assert truth.num_rows == sum(report["n_rows"] for report in reports.values())


def test_pools_share_the_prompts_when_there_are_too_few():
    pools = prompt_pools(replace(SETTINGS, **{f"n_{name}": 10**6 for name in SOURCES}))
    codes = np.concatenate(list(pools.values()))
    assert len(np.unique(codes)) == len(codes) <= N_PROMPTS
    assert min(map(len, pools.values())) == N_PROMPTS // 4

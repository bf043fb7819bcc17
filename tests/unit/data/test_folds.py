from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_folds import main

from prefdistill.data.folds import assign_groups, bin_shares, plan_folds
from prefdistill.data.pairs import UNLABELLED
from prefdistill.data.texts import normalise_prompt, prompt_group
from prefdistill.errors import UserError
from prefdistill.settings import FoldSettings
from prefdistill.storage.records import read_json
from prefdistill.storage.tables import (
    CLEAN_SCHEMA,
    FOLD_SCHEMA,
    TARGET_COLUMNS,
    read_table,
    table_targets,
    write_table,
)

SETTINGS = FoldSettings(
    n=3, select_fraction=0.1, test_fraction=0.1, test_part=None, seed=0
)
HOT = ((1, 0, 0), (0, 1, 0), (0, 0, 1))


def row(name, prompt, label=0):
    source = name.split(":")[0]
    target = (None, None, None) if source in UNLABELLED else HOT[label]
    values = [name, source, [prompt], ["a"], ["b"], *target, "m", "n", "f.csv", 1]
    values.append(prompt_group([prompt]))
    return dict(zip(CLEAN_SCHEMA.names, values, strict=True))


def simulated_rows(n_train=240, n_prompts=90, seed=0):
    """Draw rows of all sources whose prompts overlap across sources in many ways."""
    rng = np.random.default_rng(seed)
    sizes = {"train": n_train, "extra": 120, "ultra": 120, "test": 20, "unlabelled": 9}
    low = {"train": 0, "extra": 40, "ultra": 60, "test": 85, "unlabelled": 0}
    rows = []
    for source, n_rows in sizes.items():
        prompts = rng.integers(low[source], low[source] + n_prompts, n_rows)
        for n, number in enumerate(prompts):
            text = f"Prompt {number}" if n % 2 else f"prompt   {number}"
            rows.append(row(f"{source}:{n}", text, int(rng.integers(3))))
    return rows


def run(folder, rows, **changes):
    table = pa.Table.from_pylist(rows, schema=CLEAN_SCHEMA)
    write_table(folder / "clean.parquet", table, CLEAN_SCHEMA)
    settings = replace(SETTINGS, **changes)
    paths = [folder / f"fold{k}.parquet" for k in range(settings.n)]
    main(
        folder / "clean.parquet",
        paths,
        folder / "post_pretrain.parquet",
        folder / "unlabelled.parquet",
        folder / "folds.json",
        settings,
        folder / "pseudo.parquet",
    )
    files = [*paths, folder / "post_pretrain.parquet", folder / "unlabelled.parquet"]
    *folds, post, unlabelled = (read_table(f, FOLD_SCHEMA).to_pylist() for f in files)
    return folds, post, unlabelled, read_json(folder / "folds.json")


def prompts_of(rows, *splits):
    return {
        normalise_prompt(r["prompt"][0])
        for r in rows
        if not splits or r["split"] in splits
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rows = simulated_rows()
    return rows, *run(tmp_path_factory.mktemp("folds"), rows)


def test_no_prompt_on_two_sides_of_a_fold(made):
    _, folds, *_ = made
    for rows in folds:
        seen = [prompts_of(rows, s) for s in ("train", "dev", "select", "test")]
        assert all(seen)
        assert sum(map(len, seen)) == len(set().union(*seen))


def test_dev_sides_select_and_test_partition_the_train_source(made):
    rows, folds, *_ = made
    expected = sorted(r["id"] for r in rows if r["source"] == "train")
    dev = [r["id"] for fold in folds for r in fold if r["split"] == "dev"]
    held = [r["id"] for r in folds[0] if r["split"] in ("select", "test")]
    assert sorted(dev + held) == expected
    for fold in folds:
        assert [r["id"] for r in fold if r["split"] in ("select", "test")] == held
        mine = [r["id"] for r in fold if r["source"] == "train"]
        assert sorted(mine) == expected


def test_other_sources_only_train_and_only_unseen_prompts(made):
    rows, folds, post, unlabelled, report = made
    n_extra = sum(r["source"] == "extra" for r in rows)
    for number, fold in enumerate(folds):
        extra = [r for r in fold if r["source"] == "extra"]
        assert {r["split"] for r in extra} == {"train"}
        left_out = report["left_out_of_folds"][str(number)]
        assert len(extra) + sum(left_out.values()) == n_extra
        assert left_out["extra_prompt_in_dev"] > 0
        assert {r["source"] for r in fold} == {"train", "extra"}
    n_ultra = sum(r["source"] == "ultra" for r in rows)
    left_out = report["left_out_of_post_pretrain"]
    assert len(post) + sum(left_out.values()) == n_ultra
    assert all(left_out.values())
    assert {(r["source"], r["split"]) for r in post} == {("ultra", "train")}
    train_prompts = {
        p for fold in folds for p in prompts_of(fold, "dev", "select", "test")
    }
    assert not prompts_of(post) & (train_prompts | prompts_of(unlabelled))


def test_unlabelled_rows_all_pass_through(made):
    rows, _, _, unlabelled, report = made
    assert [r["id"] for r in unlabelled] == [
        r["id"] for r in rows if r["source"] == "test"
    ]
    assert {r["split"] for r in unlabelled} == {"unlabelled"}
    assert {r["winner_tie"] for r in unlabelled} == {None}
    assert report["n_unlabelled"] == len(unlabelled)
    assert report["prompt_shared_with_unlabelled"]["train"] > 0


def test_pairs_to_learn_from_only_lie_in_their_own_file(tmp_path):
    rows = simulated_rows()
    *_, report = run(tmp_path, rows)
    pseudo = read_table(tmp_path / "pseudo.parquet", FOLD_SCHEMA).to_pylist()
    own = [r["id"] for r in rows if r["source"] == "unlabelled"]
    assert [r["id"] for r in pseudo] == own
    assert {r["split"] for r in pseudo} == {"unlabelled"}
    assert report["n_pseudo"] == len(own) == 9


def test_files_hold_no_model_names_and_nothing_derived_from_labels(made):
    _, folds, *_ = made
    assert set(folds[0][0]) == {
        "id", "source", "split", "group", "prompt", "response_a", "response_b",
        *TARGET_COLUMNS,
    }  # fmt: skip


def test_rows_keep_their_texts_targets_and_order(made):
    rows, folds, *_ = made
    by_id = {r["id"]: r for r in rows}
    place = {name: n for n, name in enumerate(by_id)}
    for fold in folds:
        for one in fold:
            given_row = by_id[one["id"]]
            assert all(one[key] == given_row[key] for key in set(one) - {"split"})
        order = [place[one["id"]] for one in fold]
        assert order == sorted(order)


def test_report_counts_the_files(made):
    _, folds, post, _, report = made
    for number, fold in enumerate(folds):
        for split, described in report["folds"][str(number)].items():
            mine = [r for r in fold if r["split"] == split]
            assert described["n"] == len(mine)
            ties = sum(r["winner_tie"] for r in mine) / len(mine)
            assert described["class_shares"]["tie"] == pytest.approx(ties, abs=1e-4)
    assert report["post_pretrain"]["n"] == len(post)


def test_order_of_rows_does_not_change_the_split(tmp_path, made):
    rows, folds, *_ = made
    shuffled = [rows[n] for n in np.random.default_rng(1).permutation(len(rows))]
    again, *_ = run(tmp_path, shuffled)
    for one, other in zip(folds, again, strict=True):
        assert {r["id"]: r["split"] for r in one} == {
            r["id"]: r["split"] for r in other
        }


def test_seed_changes_the_split(tmp_path, made):
    rows, folds, *_ = made
    again, *_ = run(tmp_path, rows, seed=1)
    assert prompts_of(folds[0], "dev") != prompts_of(again[0], "dev")


def test_same_input_same_bytes(tmp_path):
    contents = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        run(folder, simulated_rows())
        contents.append([p.read_bytes() for p in sorted(folder.iterdir())])
    assert contents[0] == contents[1]


def test_five_folds_without_other_sources(tmp_path):
    rows = [r for r in simulated_rows() if r["source"] == "train"]
    folds, post, unlabelled, _ = run(tmp_path, rows, n=5)
    assert len(folds) == 5
    assert (post, unlabelled) == ([], [])
    assert read_table(tmp_path / "unlabelled.parquet", FOLD_SCHEMA).num_rows == 0
    table = read_table(tmp_path / "fold4.parquet", FOLD_SCHEMA)
    assert table_targets(table).shape == (240, 3)


def shares_of(labels, bins, n_bins):
    return np.array(
        [np.bincount(labels[bins == b], minlength=3) for b in range(n_bins)]
    )


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=1, max_size=80
    ),
    n_folds=st.integers(2, 5),
    seed=st.integers(0, 3),
)
def test_groups_stay_together_in_any_order(rows, n_folds, seed):
    labels, groups = np.array(rows).T
    shares = bin_shares(replace(SETTINGS, n=n_folds))
    bins = assign_groups(labels, groups, shares, seed)
    assert set(bins) <= set(range(n_folds + 2))
    for group in set(groups):
        assert len(set(bins[groups == group])) == 1
    order = np.random.default_rng(seed).permutation(len(labels))
    assert np.array_equal(
        assign_groups(labels[order], groups[order], shares, seed), bins[order]
    )


def test_single_rows_meet_the_shares_to_the_row():
    labels = np.repeat([0, 1, 2], [500, 300, 200])
    shares = bin_shares(SETTINGS)
    bins = assign_groups(labels, np.arange(1000), shares, 0)
    wanted = np.outer(shares, [500, 300, 200])
    assert np.abs(shares_of(labels, bins, 5) - wanted).max() < 1


def test_grouped_rows_are_stratified_closely():
    rng = np.random.default_rng(0)
    groups = np.minimum(rng.zipf(1.6, 20_000), 5_000)
    labels = (rng.random(20_000) < rng.random(5_001)[groups]).astype(int)
    labels += rng.random(20_000) < 0.2
    shares = bin_shares(SETTINGS)
    small = groups > 5
    labels, groups = labels[small], groups[small]
    counts = shares_of(labels, assign_groups(labels, groups, shares, 0), 5)
    wanted = np.outer(shares, np.bincount(labels))
    assert (np.abs(counts - wanted) / wanted).max() < 0.02


def test_a_giant_group_does_not_starve_the_other_folds():
    groups = np.r_[np.zeros(600, int), np.arange(1, 1201)]
    labels = np.arange(1800) % 3
    counts = shares_of(
        labels, assign_groups(labels, groups, bin_shares(SETTINGS), 0), 5
    )
    assert counts.sum(axis=1).min() > 100
    assert counts[2:].sum(axis=1).max() == 600


def plan(n_rows, n_prompts, labels=None, **changes):
    labels = np.arange(n_rows) % 3 if labels is None else labels
    source = np.full(n_rows, "train")
    groups = np.arange(n_rows) % n_prompts
    return plan_folds(source, labels, groups, replace(SETTINGS, **changes))


def test_parts_test_every_row_once(tmp_path):
    rows, tested = simulated_rows(), []
    for part in range(4):
        folder = tmp_path / str(part)
        folder.mkdir()
        run(folder, rows, test_fraction=0.25, test_part=part)
        fold = read_table(folder / "fold0.parquet", FOLD_SCHEMA).to_pylist()
        groups = {
            split: {r["group"] for r in fold if r["split"] == split}
            for split in ("train", "dev", "select", "test")
        }
        assert not groups["test"] & (groups["train"] | groups["dev"] | groups["select"])
        tested += [r["id"] for r in fold if r["split"] == "test"]
        post_pretrain = (folder / "post_pretrain.parquet").read_bytes()
        assert post_pretrain == (tmp_path / "0/post_pretrain.parquet").read_bytes()
    assert sorted(tested) == sorted(r["id"] for r in rows if r["source"] == "train")


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (
            (40, 4),
            {},
            "3 folds with select and test need 5 different prompts, the train",
        ),
        ((90, 90), {"n": 100}, "100 folds .* need 102 different prompts"),
        ((60, 60), {"select_fraction": 0.0}, "select gets no rows; raise"),
        ((60, 60), {"test_fraction": 0.0}, r"folds\.test_fraction: test gets no rows"),
        (
            (60, 60, np.arange(60) % 2),
            {},
            "dev of fold 0 has .* rows and none of class tie; lower folds.n",
        ),
        ((60, 60, np.r_[2, np.arange(59) % 2]), {}, "none of class tie"),
    ],
)
def test_refuses_splits_that_cannot_be_used(arguments, changes, message):
    with pytest.raises(UserError, match=message):
        plan(*arguments, **changes)


def test_a_hundred_thousand_rows_take_a_moment():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 90_000, 100_000)
    labels = rng.integers(0, 3, 100_000)
    counts = shares_of(
        labels, assign_groups(labels, groups, bin_shares(SETTINGS), 0), 5
    )
    wanted = np.outer(bin_shares(SETTINGS), np.bincount(labels))
    assert np.abs(counts - wanted).max() < 2

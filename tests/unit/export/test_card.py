"""The card of a release."""

from collections import defaultdict
from dataclasses import replace

import pytest
import yaml
from hostile_texts import HOSTILE, Tags, github
from judge_samples import CALIBRATION, TEXT

from prefdistill.data.prompts import describe_truncation
from prefdistill.export.card import CardFacts, base_name, card_text
from prefdistill.export.judge_settings import write_judge_settings
from prefdistill.storage.records import read_json

TINY = {"source": "tiny", "architecture": "gemma2"}


def card_of(judge_folder, **changes):
    """The card of a judge's settings, with made-up facts, some of them changed."""
    calibration = {**CALIBRATION, "n_select": 9}
    for name in ("nll", "ece"):
        calibration |= {f"{name}_{when}": 0.5 for when in ("before", "after")}
    scores = defaultdict(float, stage="merged_calibrated", n=8)
    shares = {"a": 0.4, "b": 0.4, "tie": 0.2}
    splits = {
        split: {"n": 5, "class_shares": shares} for split in ("train", "select", "test")
    }
    facts = CardFacts(
        judge="merged",
        student=TINY,
        teachers={"one": TINY},
        settings=read_json(judge_folder / "judge.json"),
        scores=[scores],
        calibration=calibration,
        imported={"files": [{"file": "x.csv", "source": "train", "n_rows": 5}]},
        folds={"folds": {"0": splits}, "post_pretrain": {"n": 0}},
        simulated=False,
    )
    return card_text(replace(facts, **changes))


def front_matter(card):
    """The lines between the first two marks, which the hub reads."""
    start, lines, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(lines)


def test_the_card_tells_how_a_row_is_built(judge_folder, tmp_path):
    assert "The pair is shown in both orders" in card_of(judge_folder)
    assert describe_truncation(TEXT) in card_of(judge_folder)
    write_judge_settings(tmp_path, TEXT, ["BA"], "0" * 64)
    assert "The pair is shown in the order BA alone" in card_of(tmp_path)


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (TINY, "a tiny gemma2 made by this workflow"),
        ({"source": "hub", "repo": "google/gemma-2-9b-it"}, "google/gemma-2-9b-it"),
        ({"source": "package", "package": "one==1"}, "one==1"),
        ({"source": "path", "path": "models/one"}, "models/one"),
    ],
)
def test_a_base_model_has_a_name_of_its_source(base, name):
    assert base_name(base) == name


@pytest.mark.parametrize(
    ("judge", "relation"), [("merged", "finetune"), ("gptq4", "quantized")]
)
def test_the_hub_is_told_the_base_model_and_its_licence(judge_folder, judge, relation):
    scores = [defaultdict(float, stage=f"{judge}_calibrated", n=8)]
    student = {"source": "hub", "repo": "google/gemma-2-9b-it"}
    card = card_of(judge_folder, judge=judge, student=student, scores=scores)
    facts = front_matter(card)
    assert facts["license"] == "gemma"
    assert facts["base_model"] == student["repo"]
    assert facts["base_model_relation"] == relation
    assert "- student, google/gemma-2-9b-it: Gemma Terms of Use" in card
    assert ("Loading it needs `gptqmodel`" in card) == (judge == "gptq4")


def test_an_unknown_licence_is_left_to_the_reader(judge_folder):
    teachers = {
        "big": {"source": "hub", "repo": "meta-llama/Llama-3.1-70B"},
        "odd": {"source": "path", "path": "models/one"},
    }
    card = card_of(judge_folder, teachers=teachers)
    assert front_matter(card)["license"] == "other"
    assert "base_model" not in front_matter(card)
    assert "- teacher big, meta-llama/Llama-3.1-70B: Llama Community" in card
    assert "- teacher odd, models/one: see its own licence" in card
    assert "- student, a tiny gemma2 made by this workflow: no licence but" in card


def test_only_stages_about_this_judge_are_scored(judge_folder):
    stages = ("prior", "student", "merged", "merged_calibrated", "gptq4_calibrated")
    scores = [defaultdict(float, stage=name, n=8) for name in stages]
    text = card_of(judge_folder, scores=scores)
    section = text.partition("## Scores")[2].partition("## Calibration")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if "|" in line]
    assert rows[2:] == ["prior", "merged", "merged_calibrated"]
    assert "On 8 test pairs that nothing was fitted to" in section


def test_simulated_pairs_are_said_to_be_simulated(judge_folder):
    warning = "**These pairs are simulated.**"
    assert warning not in card_of(judge_folder)
    assert warning in card_of(judge_folder, simulated=True)


def test_the_test_pairs_are_not_listed_as_trained_on(judge_folder):
    files = [
        {"file": f"{source}.csv", "source": source, "n_rows": 5}
        for source in ("train", "pseudo", "test")
    ]
    card = card_of(judge_folder, imported={"files": files})
    assert "train.csv" in card
    assert "pseudo.csv" in card
    assert "test.csv" not in card


def test_the_template_is_quoted_on_one_line(judge_folder):
    card = card_of(judge_folder)
    quoted = TEXT.template.replace("\n", "\\n")
    assert f'```json\n"{quoted}"\n```' in card
    assert "row has at most 160 tokens" in card


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_holds_no_tag_and_no_field_of_others(text, judge_folder):
    def card(text):
        settings = read_json(judge_folder / "judge.json")
        settings["text"] |= {"template": text, "turn": text}
        return card_of(
            judge_folder,
            student={"source": "hub", "repo": text},
            teachers={"x": {"source": "path", "path": text}},
            imported={"files": [{"file": text, "source": text, "n_rows": 5}]},
            settings=settings,
        )

    fields, body = card(text).removeprefix("---\n").split("\n---\n\n# A judge", 1)
    known = yaml.safe_load(fields)
    assert known["base_model"] == text
    assert known["license"] == "other"
    plain = card("x").split("\n---\n\n# A judge", 1)[1]
    assert Tags(github(body)).tags == Tags(github(plain)).tags

"""Write a released judge's model card: its use, data, scores, limits and licences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from prefdistill.data.prompts import describe_truncation
from prefdistill.export.release import EXAMPLE
from prefdistill.report.markdown_tables import markdown_table, scores_markdown
from prefdistill.report.markdown_text import code_block, escape
from prefdistill.settings import TextSettings, read
from prefdistill.version import __version__

NULL_STAGES = ("prior", "length", "trees")
# By the beginning of a Hub repository's name: the licence's short name on the Hub, and
# what it demands from those who redistribute a model made from it.
LICENCES = {
    "google/gemma": (
        "gemma",
        "Gemma Terms of Use: hand on the terms and their use restrictions with the "
        "weights, say that the files were modified, and add a notice that Gemma is "
        "provided under those terms (ai.google.dev/gemma/terms).",
    ),
    "meta-llama/": (
        "other",
        "Llama Community Licence: a model that was trained with a Llama 3.1 or later "
        "model, or with its outputs (as a student is with a teacher's), and is handed "
        'on, must have "Llama" at the beginning of its name, and those who hand it on '
        'must show "Built with Llama" and the licence.',
    ),
    "Qwen/": (
        "other",
        "Apache-2.0 for most sizes of Qwen2.5, the Qwen licences for the others: see "
        "the model's own page.",
    ),
}


@dataclass(frozen=True)
class CardFacts:
    """The facts that the card states.

    Attributes:
        judge: The stage's name in the scores: merged, gptq8 or gptq4.
        student: Settings of the student's base model.
        teachers: Settings of each teacher's base model, by the teacher's name.
        settings: Content of ``judge.json``.
        scores: Rows of ``scores.csv`` on test, see ``markdown_tables.rows_on_test``.
        calibration: Content of ``calibration.json``.
        imported: Content of ``import.json``.
        folds: Content of ``folds.json``.
        simulated: Whether the training pairs are simulated.
    """

    judge: str
    student: Mapping[str, Any]
    teachers: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    scores: Sequence[Mapping[str, Any]]
    calibration: Mapping[str, Any]
    imported: Mapping[str, Any]
    folds: Mapping[str, Any]
    simulated: bool


def base_name(base: Mapping[str, Any]) -> str:
    """Return a base model's name: its repository, package, folder or architecture."""
    if base["source"] == "tiny":
        return f"a tiny {base['architecture']} made by this workflow"
    keys = {"hub": "repo", "package": "package", "path": "path"}
    return str(base[keys[base["source"]]])


def _licence(base: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the licence's name and demands, if the repository's name tells them."""
    name = str(base.get("repo", ""))
    return next((v for start, v in LICENCES.items() if name.startswith(start)), None)


def _front_matter(facts: CardFacts) -> str:
    """Write the metadata that the Hub reads."""
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "license": (_licence(facts.student) or ("other",))[0],
    }
    if facts.student["source"] == "hub":
        quantised = facts.judge.startswith("gptq")
        fields["base_model"] = facts.student["repo"]
        fields["base_model_relation"] = "quantized" if quantised else "finetune"
    fields["tags"] = ["preference", "judge", "calibrated"]
    # YAML quotes what needs it, so that a repository's name adds no field.
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _trained_on(facts: CardFacts) -> str:
    folds = facts.folds["folds"]
    train = [fold["train"]["n"] for fold in folds.values()]
    held_out = next(iter(folds.values()))
    rows = [
        [entry["file"], entry["source"], entry["n_rows"]]
        for entry in facts.imported["files"]
        if entry["source"] != "test"
    ]
    shares = next(iter(folds.values()))["train"]["class_shares"]
    parts = [
        markdown_table(["data", "used as", "pairs"], rows),
        f"After cleaning, {len(folds)} students learnt from {min(train)} to "
        f"{max(train)} pairs each and were averaged; "
        f"{facts.folds['post_pretrain']['n']} pairs served to post-pretrain. "
        f"{held_out['select']['n']} pairs (`select`) were kept to calibrate, "
        f"{held_out['test']['n']} (`test`) only to score. "
        f"Of the first student's pairs, A won {shares['a']:.0%}, B {shares['b']:.0%}, "
        f"{shares['tie']:.0%} were ties.",
    ]
    if facts.simulated:
        parts.append(
            "**These pairs are simulated.** The model shows that the workflow works; "
            "it says nothing about real answers."
        )
    return "\n\n".join(parts)


def _scores(facts: CardFacts) -> str:
    wanted = {*NULL_STAGES, facts.judge, f"{facts.judge}_calibrated"}
    rows = [row for row in facts.scores if row["stage"] in wanted]
    own = next(row for row in rows if row["stage"] == f"{facts.judge}_calibrated")
    return (
        f"On {int(own['n'])} test pairs that nothing was fitted to, in nats, with 95 % "
        f"intervals of a bootstrap over prompts:\n\n{scores_markdown(rows)}\n\n"
        f"`{facts.judge}_calibrated` is this model as it is meant to be used; `prior` "
        "knows the class shares alone, `length` the lengths of the answers, `trees` "
        "some features of their surface."
    )


def _calibration(record: Mapping[str, Any]) -> str:
    a, b = (", ".join(f"{value:.4f}" for value in record[key]) for key in ("a", "b"))
    return (
        f"Logits z become a z + b, a = ({a}), b = ({b}), fitted on "
        f"{record['n_select']} pairs to the average of both orders. Cross-fitted on "
        f"them, log loss went from {record['nll_before']:.4f} to "
        f"{record['nll_after']:.4f}, the expected calibration error from "
        f"{record['ece_before']:.4f} to {record['ece_after']:.4f}. "
        "`calibration.json` has the numbers."
    )


def _rows(settings: Mapping[str, Any]) -> str:
    text, views = settings["text"], settings["views"]
    both = len(views) > 1
    order = (
        "The pair is shown in both orders; after the classes of the second are turned "
        "back, the two probabilities are averaged."
        if both
        else f"The pair is shown in the order {escape(str(views[0]))} alone."
    )
    return (
        f"{code_block(json.dumps(text['template']), 'json')}\n\n"
        f"Turns from the second on follow the mark {escape(json.dumps(text['turn']))}. "
        "Literals "
        "and texts are tokenised apart, without special tokens but the first BOS. "
        f"{describe_truncation(read(TextSettings, text))} The classes are (first "
        "answer, second answer, tie) *as shown*, read at the last token. "
        f"{order} `judge.json` has all of this."
    )


def _limits() -> str:
    return "\n".join(
        [
            "- It predicts what the people who judged the data above preferred. That "
            "is not what is true, safe or useful, and other people differ.",
            "- The scores hold for prompts and answers like those; other languages, "
            "tasks or newer models' answers were not tested unless the data have them.",
            "- Long texts are cut (see *How a row is built*), so it does not see all "
            "of them.",
            "- Answers written to please a judge were not tested. Its verdict should "
            "not be the only reward of a training run.",
        ]
    )


def _licence_notes(facts: CardFacts) -> str:
    lines = []
    models = {"student": facts.student}
    models |= {f"teacher {name}": base for name, base in facts.teachers.items()}
    for role, base in models.items():
        if base["source"] == "tiny":
            note = "no licence but this workflow's."
        else:
            known = _licence(base)
            note = known[1] if known else "see its own licence before you hand this on."
        lines.append(f"- {escape(role)}, {escape(base_name(base))}: {note}")
    lines.append("- the data: see the licence of each data set above.")
    return "\n".join(lines)


def card_text(facts: CardFacts) -> str:
    """Write the whole card as Markdown."""
    quantised = facts.judge.startswith("gptq")
    kind = f"GPTQ, {facts.judge[4:]} bit" if quantised else "16 bit"
    teachers = ", ".join(escape(base_name(base)) for base in facts.teachers.values())
    needs = " Loading it needs `gptqmodel` and `optimum`." if quantised else ""
    return (
        "\n\n".join(
            [
                _front_matter(facts),
                f"# A judge of answer pairs ({kind})",
                "Given a prompt and two answers, it estimates the probabilities that a "
                "person prefers the first, the second, or neither. It is "
                f"{escape(base_name(facts.student))}, fine-tuned with LoRA and "
                f"distilled from {teachers}; made by prefdistill {__version__}.",
                "## Use",
                "With transformers alone, for texts short enough not to be cut "
                f"(`example.py`).{needs}",
                f"```python\n{EXAMPLE}```",
                "With prefdistill, also for long texts, several turns and many "
                "pairs at once:",
                "```python\nfrom prefdistill.judge import Judge\n\n"
                'judge = Judge.load("path/of/this/folder")\n'
                "judge.compare(prompt, answer_a, answer_b)  # Verdict(a=., b=., tie=.)"
                "\n```",
                "## Trained on",
                _trained_on(facts),
                "## Scores",
                _scores(facts),
                "## Calibration",
                _calibration(facts.calibration),
                "## How a row is built",
                _rows(facts.settings),
                "## Limits",
                _limits(),
                "## Licences",
                _licence_notes(facts),
            ]
        )
        + "\n"
    )

"""Write a finished judge's release folder: weights, settings, card and example.

The weights are a hard link and no declared output: Snakemake sets the time of declared
outputs, which would make the linked model newer than all that was made from it.
``judge.json``, which is declared, appears after everything else.
"""

from pathlib import Path
from typing import Any

from prefdistill.running.job import run_job


def main(
    model: Path,
    card: Path,
    scores: Path,
    imported: Path,
    folds: Path,
    bases: dict[str, dict[str, Any]],
    simulated: bool,
) -> None:
    """Write the card from the run's own reports, and fill the folder.

    Args:
        model: The finished judge's weights, its settings beside them.
        card: The card, in the release folder: merged, gptq8bit or gptq4bit.
        scores: ``scores.csv``.
        imported: ``import.json``.
        folds: ``folds.json``.
        bases: Settings of the base model of ``student`` and of each teacher.
        simulated: Whether the pairs are simulated.
    """
    from prefdistill.export.card import CardFacts, card_text
    from prefdistill.export.judge_settings import CALIBRATION_FILE, SETTINGS_FILE
    from prefdistill.export.release import write_release
    from prefdistill.report.markdown_tables import read_rows, rows_on_test
    from prefdistill.storage.records import read_json

    source, target = model.parent, card.parent
    judge = target.name.removesuffix("bit")  # the name of its stage in the scores
    facts = CardFacts(
        judge=judge,
        student=bases["student"],
        teachers={name: base for name, base in bases.items() if name != "student"},
        settings=read_json(source / SETTINGS_FILE),
        scores=rows_on_test(read_rows(scores), [judge]),
        calibration=read_json(source / CALIBRATION_FILE),
        imported=read_json(imported),
        folds=read_json(folds),
        simulated=simulated,
    )
    write_release(source, target, card_text(facts))


if __name__ == "__main__":
    run_job(snakemake, main)

"""Write a finished judge's release folder: weights, settings, card and example.

The weights are a hard link and no declared output: Snakemake sets the time of declared
outputs, which would make the linked model newer than all that was made from it.
``judge.json``, which is declared, appears after everything else.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(
    source: Path,
    target: Path,
    scores_path: Path,
    import_path: Path,
    folds_path: Path,
    judge: str,
    bases: dict[str, dict[str, Any]],
) -> None:
    """Write the card from the run's own reports, and fill the folder.

    Args:
        source: Folder of the finished judge.
        target: The release folder.
        scores_path: ``scores.csv``.
        import_path: ``import.json``.
        folds_path: ``folds.json``.
        judge: Name of the judge's stage: merged, gptq8 or gptq4.
        bases: Settings of the base model of ``student`` and of each teacher.
    """
    from prefdistill.export.card import CardFacts, card_text
    from prefdistill.export.judge_settings import CALIBRATION_FILE, SETTINGS_FILE
    from prefdistill.export.release import write_release
    from prefdistill.report.tables import read_rows, rows_on_test
    from prefdistill.storage.tables import read_json

    facts = CardFacts(
        judge=judge,
        student=bases["student"],
        teachers={name: base for name, base in bases.items() if name != "student"},
        settings=read_json(source / SETTINGS_FILE),
        scores=rows_on_test(read_rows(scores_path), [judge]),
        calibration=read_json(source / CALIBRATION_FILE),
        imported=read_json(import_path),
        folds=read_json(folds_path),
    )
    write_release(source, target, card_text(facts))


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            source=Path(snakemake.input.model).parent,
            target=Path(snakemake.output.settings).parent,
            scores_path=Path(snakemake.input.scores),
            import_path=Path(snakemake.input.imported),
            folds_path=Path(snakemake.input.folds),
            judge=Path(snakemake.output.settings).parent.name.removesuffix("bit"),
            bases=snakemake.params.bases,
        )

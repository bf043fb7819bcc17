"""Score a file of pairs with a finished judge: ``prefdistill predict``.

The command reads the workflow's formats (CSV, JSON lines, parquet) by the same rules,
and writes a CSV with the submission's columns. A stopped run resumes when the same
command is given again. If the file has labels, the command prints log loss and
accuracy. ``prefdistill-predict`` is the command's older name.
"""

import argparse
import hashlib
import logging
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.classes import VERDICTS
from prefdistill.data.cells import CellFault, parse_id, parse_label, parse_turns
from prefdistill.data.pairs import SCORED, TEXT_COLUMNS, ImportedFile
from prefdistill.data.readers import read_file_rows
from prefdistill.errors import (
    DamagedFile,
    Interrupted,
    UserError,
    disk_fault,
    printable,
)
from prefdistill.running.stopping import STOPPED, TERMINAL_SIGNALS, stop_on
from prefdistill.running.terminal import survive_lost_terminal
from prefdistill.storage.digests import file_digest, unchanged
from prefdistill.storage.tables import TARGET_COLUMNS
from prefdistill.storage.whole_files import (
    temporary_folder,
    write_csv_rows,
)
from prefdistill.version import __version__

logger = logging.getLogger(__name__)

OUTPUT_COLUMNS = ("id", *TARGET_COLUMNS, "verdict", "order_gap")


@dataclass(frozen=True)
class Pairs:
    """The rows of a file.

    Attributes:
        ids: One per row, unique.
        rows: The turns of prompt, answer A and answer B of each row.
        labels: ``(n,)`` int64 class 0 (A), 1 (B) or 2 (tie); -1 without a label.
    """

    ids: list[str]
    rows: list[list[list[str]]]
    labels: np.ndarray


def _label(values: Sequence[Any]) -> int:
    """Read the class from a row's three target cells.

    Returns:
        -1 if the cells are blank or name no single winner; such a row is scored too.

    Raises:
        CellFault: If a cell is not 0 or 1.
    """
    if all(value is None or value == "" for value in values):
        return -1
    hot = [parse_label(*each) for each in zip(values, TARGET_COLUMNS, strict=True)]
    return hot.index(1) if sum(hot) == 1 else -1


def _turns(value: Any, column: str, plain: bool, repaired: Counter[str]) -> list[str]:
    """Read the turns of a text cell.

    Args:
        value: The cell.
        column: Its column, for the message.
        plain: Whether the cell is a text, and not a JSON list of turns.
        repaired: Counts the repairs by kind.

    Raises:
        CellFault: If the cell is not of that form.
    """
    if plain and not isinstance(value, list):
        value = [value]  # a blank cell of a typed file is null, which is a valid turn
    try:
        return parse_turns(value, column, repaired)
    except CellFault as fault:
        if plain or not isinstance(value, str):
            raise
        raise CellFault(
            column, f"{fault}; if the cells are plain text, add --plain (make: PLAIN=1)"
        ) from fault


def read_pairs(path: Path, *, plain: bool) -> Pairs:
    """Read a file's pairs; a row without an id gets its number as id.

    Args:
        path: CSV, JSON lines or parquet, in the workflow's formats.
        plain: Whether a text cell is a text, and not a JSON list of turns.

    Raises:
        UserError: If a value cannot be read, an id occurs twice, or there are no rows.
    """
    counts = ImportedFile(str(path), SCORED)
    ids: dict[str, None] = {}
    rows, labels = [], []
    for row in read_file_rows(path, SCORED, counts):
        try:
            name = row.values[0]
            name = str(row.number) if name is None else parse_id(name, integer=False)
            if name in ids:
                raise CellFault(
                    "id", f"{printable(name)} is there twice; ids must be unique"
                )
            ids[name] = None
            texts = zip(row.values[1:4], TEXT_COLUMNS, strict=True)
            rows.append([_turns(*each, plain, counts.repaired) for each in texts])
            labels.append(_label(row.values[4:7]))
        except CellFault as fault:
            raise fault.located(str(path), row.where) from fault
    if not rows:
        raise UserError(f"{path}: has no data rows; check where it comes from")
    logger.info("%s: %d pairs, repaired %s", path, len(rows), dict(+counts.repaired))
    return Pairs(list(ids), rows, np.array(labels))


def write_scores(
    path: Path, ids: Iterable[str], probs: np.ndarray, order_gap: np.ndarray
) -> None:
    """Write one CSV row per pair, in the order of the input.

    Args:
        path: The CSV file.
        ids: One per row.
        probs: ``(n, 3)`` float probabilities of A, B and tie.
        order_gap: ``(n,)`` float, from ``Judge.order_gap``.
    """
    best = probs.argmax(axis=1).tolist()
    rows = (
        (name, *row, VERDICTS[top].lower(), f"{gap:.4f}")
        for name, row, top, gap in zip(
            ids, probs.tolist(), best, order_gap.tolist(), strict=True
        )
    )
    n_marked = write_csv_rows(path, OUTPUT_COLUMNS, rows)
    if n_marked:
        logger.warning(
            "%s: %d ids that a spreadsheet would run got an apostrophe before them",
            path, n_marked,
        )  # fmt: skip


def check_output(output: Path, inputs: Sequence[Path]) -> None:
    """Check that the output can be written, before hours are spent on it.

    Args:
        output: The CSV file.
        inputs: Files that it must not replace.

    Raises:
        UserError: If it is not a CSV file, or one of the inputs under any name.
        OSError: If its folder cannot be made or written to.
    """
    if output.suffix != ".csv":
        raise UserError(f"{output}: the output is a CSV; let its name end in .csv")
    if output.is_dir():
        raise UserError(f"{output}: is a folder; name a file in it")
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise UserError(
                f"{output}: is {path}, which is read; name another file for the output"
            )
    with temporary_folder(output.parent, output.name):
        pass


def score_text(probs: np.ndarray, pairs: Pairs) -> str | None:
    """Describe log loss in nats and accuracy, with 95 % intervals; None without labels.

    Args:
        probs: ``(n, 3)`` float probabilities of A, B and tie.
        pairs: The pairs.
    """
    from prefdistill.data.texts import prompt_group
    from prefdistill.scores.metrics import group_bootstrap, row_log_loss

    known = np.flatnonzero(pairs.labels >= 0)
    if not len(known):
        return None
    labels, probs = pairs.labels[known], probs[known]
    groups = np.array([prompt_group(pairs.rows[row][0]) for row in known])
    loss = group_bootstrap(row_log_loss(probs, labels), groups)
    hit = group_bootstrap((probs.argmax(axis=1) == labels).astype(float), groups)
    return (
        f"{len(known)} labelled pairs of {len(pairs.ids)}: "
        f"log loss {loss.mean:.4f} [{loss.low:.4f}, {loss.high:.4f}], "
        f"accuracy {hit.mean:.4f} [{hit.low:.4f}, {hit.high:.4f}]"
    )


def predict(
    judge_folder: Path,
    input_path: Path,
    output_path: Path,
    *,
    plain: bool = False,
    device: str | None = None,
    scratch: Path = Path("scratch"),
) -> str | None:
    """Score a file, and return its ``score_text``.

    Args:
        judge_folder: See ``Judge.load``.
        input_path: See ``read_pairs``.
        output_path: A CSV file; an existing one is replaced.
        plain: See ``read_pairs``.
        device: See ``Judge.load``.
        scratch: Folder for the logits of an unfinished run.

    Raises:
        UserError: If an input cannot be used.
        Interrupted: After SIGUSR1 or a terminal's signal; finished logits are kept.
    """
    judge_files = sorted(path for path in judge_folder.glob("*") if path.is_file())
    check_output(output_path, [input_path, *judge_files])
    if not input_path.is_file():
        raise UserError(f"{input_path}: is not a file; check the input's path")
    from prefdistill.export.judge_settings import read_judge_settings
    from prefdistill.judge import Judge, pairs_table
    from prefdistill.models.manifests import WEIGHTS
    from prefdistill.models.precision import find_device
    from prefdistill.storage.checkpoints import Checkpoints, identity_of

    found = find_device(device)
    settings = read_judge_settings(judge_folder)  # or it is no judge at all
    with unchanged(input_path):
        pairs = read_pairs(input_path, plain=plain)
        input_digest = file_digest(input_path)
    with unchanged(*judge_files):
        weights = judge_folder / WEIGHTS
        if settings.weights not in (None, file_digest(weights)):
            raise DamagedFile(weights, "is not the file that judge.json was made with")
        judge = Judge.load(judge_folder, found)
        identity = identity_of(
            [__version__, plain, str(judge.device), input_digest], *judge_files
        )
    table = pairs_table(pairs.ids, pairs.rows)
    place = hashlib.sha256(str(output_path.resolve()).encode()).hexdigest()[:12]
    checkpoints = Checkpoints(scratch / "predict" / place, identity)
    probs, order_gap = judge.score(table, checkpoints)
    write_scores(output_path, pairs.ids, probs, order_gap)
    checkpoints.remove()
    logger.info("%s: %d rows", output_path, len(pairs.ids))
    return score_text(probs, pairs)


def _import_libraries(folder: Path) -> None:
    """Import the libraries that this judge needs, and hide optional ones."""
    from prefdistill.models.quick_imports import import_model_libraries

    if (folder / "config.json").is_file():
        import_model_libraries("auto", folder)


def parse_arguments(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Score a file of answer pairs with a finished judge. A stopped run "
        "(exit status 143)\nresumes where it left off when the command is given again. "
        "An id that a\nspreadsheet would run as a formula gets an apostrophe before "
        "it.",
        epilog=f"example: {prog} results/gptq/4bit pairs.csv out.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("judge", type=Path, help="folder, such as results/gptq/4bit")
    parser.add_argument("input", type=Path, help=".csv, .jsonl (.gz, .zst) or .parquet")
    parser.add_argument("output", type=Path, help=".csv to write")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="cells are texts, not JSON lists of turns",
    )
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU if there is one")
    parser.add_argument(
        "--scratch", type=Path, default=Path("scratch"), help="state of unfinished runs"
    )
    return parser.parse_args(arguments)


def main(
    arguments: Sequence[str] | None = None, prog: str = "prefdistill-predict"
) -> None:
    """Run the command; an error is one line with exit status 1, a stop has 143.

    Args:
        arguments: The command's arguments; None takes those of the process.
        prog: Name of the command in its usage.
    """
    options = parse_arguments(arguments, prog)
    survive_lost_terminal()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stop_on(*TERMINAL_SIGNALS, signal.SIGUSR1)
    try:
        _import_libraries(options.judge)
        text = predict(
            options.judge,
            options.input,
            options.output,
            plain=options.plain,
            device=options.device,
            scratch=options.scratch,
        )
    except Interrupted as stop:
        print(f"stopped: {stop}; repeat the command to resume", file=sys.stderr)
        sys.exit(STOPPED)
    except MemoryError:
        files = printable(f"{options.judge} and {options.input}")
        print(
            f"error: {files}: the memory does not hold both; split the input, or use a "
            "smaller judge",
            file=sys.stderr,
        )
        sys.exit(1)
    except (UserError, OSError) as error:
        text = printable(str(disk_fault(error) or error))
        print(f"error: {text}", file=sys.stderr)
        sys.exit(1)
    if text:
        print(text)


if __name__ == "__main__":
    main()

"""Compare a server's answers (vLLM's /classify) with those of the judge's files.

Every row is compared in every view of the judge.
"""

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.data.prompts import EncodedPairs
from prefdistill.errors import UserError
from prefdistill.judge import Judge, pairs_table
from prefdistill.predict import read_pairs

ROWS_A_REQUEST = 32
TIMEOUT_S = 300


def ask(url: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """Send a GET request, or a POST if there is content, and return the JSON answer.

    Args:
        url: The address.
        content: JSON to post, or None.

    Raises:
        UserError: If the server does not answer, or not with JSON.
    """
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        text = " ".join(error.read(500).decode(errors="replace").split())
        raise UserError(f"{url}: answers {error.code} ({text})") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{url}: no answer ({error}); is the server up, and this its address?"
        ) from error


def served_logits(url: str, encoded: EncodedPairs, views: tuple[str, ...]) -> Any:
    """Ask a server for the logits of rows.

    Args:
        url: The server's address, without a path.
        encoded: The rows.
        views: Orders to show, of AB and BA.

    Returns:
        ``(n, n_views, 3)`` float64, classes as shown.

    Raises:
        UserError: If the server does not answer three numbers for each row.
    """
    model = ask(f"{url}/v1/models")["data"][0]["id"]
    # As token ids, because a row's literals and texts are tokenised separately.
    rows = [
        encoded.tokens(row, view).tolist()
        for row in range(len(encoded.ids))
        for view in views
    ]
    logits = []
    for start in range(0, len(rows), ROWS_A_REQUEST):
        part = rows[start : start + ROWS_A_REQUEST]
        # Logits and not probabilities, because calibration applies to logits.
        asked = {"model": model, "input": part, "use_activation": False}
        answer = ask(f"{url}/classify", asked)
        data = sorted(answer.get("data", []), key=lambda each: each["index"])
        found = [each["probs"] for each in data]
        if len(found) != len(part) or any(len(each) != 3 for each in found):
            raise UserError(
                f"{url}/classify: did not answer {len(part)} rows with three classes "
                "each; is this judge what it serves?"
            )
        logits += found
    return np.array(logits).reshape(len(encoded.ids), len(views), 3)


def compare(judge: Judge, url: str, encoded: EncodedPairs) -> tuple[str, float]:
    """Compare the server's logits and calibrated probabilities with the judge's own.

    Args:
        judge: The judge.
        url: The server's address.
        encoded: The rows to compare.

    Returns:
        The comparison in words, and the largest difference of a probability.

    Raises:
        UserError: If the server does not answer three numbers for each row.
    """
    served = served_logits(url, encoded, judge.settings.views)
    own = judge.logits(encoded)
    probs = [judge.probabilities(logits) for logits in (served, own)]
    worst = float(np.abs(probs[0] - probs[1]).max())
    same = (probs[0].argmax(axis=1) == probs[1].argmax(axis=1)).mean()
    return (
        f"{len(encoded.ids)} pairs in {' and '.join(judge.settings.views)}: logits "
        f"differ by at most {np.abs(served - own).max():.4f} (mean "
        f"{np.abs(served - own).mean():.5f}), calibrated probabilities by at most "
        f"{worst:.4f}; {same:.1%} of the verdicts are the same"
    ), worst


def main(arguments: Sequence[str], prog: str) -> None:
    """Run ``prefdistill check-served``.

    Args:
        arguments: The command's arguments.
        prog: Name of the command in its usage.

    Raises:
        UserError: If an input cannot be used, the server does not answer, or a
            calibrated probability differs by more than the tolerance.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compare a server's answers (vLLM's /classify) with those of the "
        "judge's files.\nThe exit status is 1 if a calibrated probability differs by "
        "more than the tolerance.",
        epilog=f"example: {prog} results/release/gptq4bit http://localhost:8000 p.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="the judge that the server has")
    parser.add_argument("url", help="such as http://localhost:8000")
    parser.add_argument("pairs", type=Path, help="a file as for `prefdistill predict`")
    parser.add_argument(
        "--plain", action="store_true", help="cells are texts, not JSON lists of turns"
    )
    parser.add_argument(
        "--rows", type=int, default=64, metavar="N", help="compare the first N (64)"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.02, metavar="P", help="0.02 by default"
    )
    options = parser.parse_args(arguments)
    pairs = read_pairs(options.pairs, plain=options.plain)
    table = pairs_table(pairs.ids[: options.rows], pairs.rows[: options.rows])
    judge = Judge.load(options.folder)
    text, worst = compare(judge, options.url.rstrip("/"), judge.encode(table))
    print(text)
    if not worst <= options.tolerance:
        raise UserError(
            f"{options.url}: a probability differs by {worst:.4f}, which is more than "
            f"the tolerance {options.tolerance}"
        )

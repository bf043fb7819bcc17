"""Compare the answers of a running server (vLLM's /classify) with this judge's own.

usage: check_served.py FOLDER URL PAIRS [--plain] [--rows N] [--tolerance P]

Rows are sent as token ids, as literals and texts of a row are tokenised apart, and
logits are asked for, as the calibration is applied to them. Ends with 1 if a calibrated
probability differs by more than the tolerance.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from prefdistill.data.prompts import EncodedPairs
from prefdistill.errors import UserError
from prefdistill.judge import Judge, pairs_table
from prefdistill.predict import read_pairs

ROWS_A_REQUEST = 32
TIMEOUT_S = 300


def ask(url: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON answer to a GET, or to a POST of some content.

    Raises:
        UserError: If there is no such answer.
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
    """The server's logits, ``(n, n_views, 3)`` float64, classes as shown.

    Raises:
        UserError: If an answer is not three numbers for each row.
    """
    model = ask(f"{url}/v1/models")["data"][0]["id"]
    rows = [
        encoded.tokens(row, view).tolist()
        for row in range(len(encoded.ids))
        for view in views
    ]
    logits = []
    for start in range(0, len(rows), ROWS_A_REQUEST):
        part = rows[start : start + ROWS_A_REQUEST]
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
    """What is said of the comparison, and the largest difference of a probability."""
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


def main(arguments: list[str] | None = None) -> None:
    """Run the command; errors are one line, exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the judge that the server has")
    parser.add_argument("url", help="such as http://localhost:8000")
    parser.add_argument("pairs", type=Path, help="a file as for `make predict`")
    parser.add_argument("--plain", action="store_true", help="cells are texts")
    parser.add_argument("--rows", type=int, default=64, help="compare the first N")
    parser.add_argument("--tolerance", type=float, default=0.02)
    options = parser.parse_args(arguments)
    try:
        pairs = read_pairs(options.pairs, plain=options.plain)
        table = pairs_table(pairs.ids[: options.rows], pairs.rows[: options.rows])
        judge = Judge.load(options.folder)
        text, worst = compare(judge, options.url.rstrip("/"), judge.encode(table))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(text)
    if not worst <= options.tolerance:
        sys.exit(f"error: {worst:.4f} is more than the tolerance {options.tolerance}")


if __name__ == "__main__":
    main()

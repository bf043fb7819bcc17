"""The check of a server, against one that plain transformers answers for."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from judge_samples import make_judge

from prefdistill.cli import main
from prefdistill.export.gptq_check import load_plain, row_logits


class Server(BaseHTTPRequestHandler):
    """As much of vLLM's server as the check asks, answering in reverse order."""

    model = None
    error = 0.0
    requests: list[dict] = []  # noqa: RUF012

    def log_message(self, *_arguments) -> None:
        pass

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "served-judge"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(asked)
        if asked["model"] != "served-judge":
            self.answer({"error": "no such model"}, 404)
            return
        logits = row_logits(self.model, [np.array(row) for row in asked["input"]])
        logits += [self.error, 0, 0]
        if asked["use_activation"] is not False:
            logits = torch.softmax(torch.tensor(logits), 1).numpy()
        data = [
            {"index": index, "label": None, "probs": row.tolist(), "num_classes": 3}
            for index, row in enumerate(logits)
        ]
        self.answer({"object": "list", "data": data[::-1]})

    def answer(self, content, status=200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def check(tmp_path_factory, tiny_model_folder):
    """Run the check of a served judge on 40 pairs."""
    folder = tmp_path_factory.mktemp("judge")
    scaling = {"method": "vector", "tied": True, "a": [1, 1, 1], "b": [0, 0, 0.3]}
    make_judge(folder, tiny_model_folder("qwen2"), scaling=scaling)
    lines = ["prompt,response_a,response_b\n"]
    lines += [f"ask {n},{'yes ' * n},{'no ' * (40 - n)}\n" for n in range(40)]
    (folder / "pairs.csv").write_text("".join(lines))
    Server.model = load_plain(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(*options, url=f"http://127.0.0.1:{server.server_port}/"):
        pairs = str(folder / "pairs.csv")
        main(["check-served", str(folder), url, pairs, "--plain", *options])

    yield run
    server.shutdown()


def test_equal_answers_pass(check, capsys):
    Server.error = 0.0
    Server.requests.clear()
    check("--tolerance", "0.0001")
    said = capsys.readouterr().out
    assert said.startswith("40 pairs in AB and BA: logits differ by at most 0.0000")
    assert "100.0% of the verdicts" in said
    assert [len(each["input"]) for each in Server.requests] == [32, 32, 16]
    check("--rows", "3")
    assert len(Server.requests[-1]["input"]) == 6


def test_other_answers_fail(check, capsys):
    Server.error = 1.0
    with pytest.raises(SystemExit, match=r"is more than the tolerance 0\.02"):
        check()
    assert "differ by at most 1.0000 (mean 0.3333" in capsys.readouterr().out


def test_a_server_that_is_not_there_is_one_line(check):
    with pytest.raises(SystemExit, match=r"error: http.*v1/models: no answer"):
        check(url="http://127.0.0.1:9")

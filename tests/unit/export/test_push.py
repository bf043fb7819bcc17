"""The upload of a release: shown by default, one commit, the token in no output."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from prefdistill.export.release import OPTIONAL_FILES, RELEASE_FILES

ROOT = Path(__file__).resolve().parents[3]
CANARY = "hf_canaryNeverToBeSeenAnywhere0123456789"
FILES = {name: f"{name}\n".encode() for name in RELEASE_FILES}
FILES |= {
    "model.safetensors": save({"score.weight": np.ones((3, 4), np.float32)}),
    "README.md": b"---\nlicense: other\n---\n\n# Card\n\n## Licences\n\n- a note\n",
    OPTIONAL_FILES[0]: b"{}",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files needs."""

    tokens: set[str | None] = set()  # noqa: RUF012
    created: list[dict] = []  # noqa: RUF012
    commits: list[dict[str, bytes]] = []  # noqa: RUF012
    refuse = False

    def log_message(self, *_arguments) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        type(self).tokens.add(self.headers.get("Authorization"))
        place = self.path.partition("?")[0]
        if self.refuse:
            self.answer({"error": "you may not write here"}, 403)
        elif place == "/api/repos/create":
            self.created.append(json.loads(body))
            self.answer({"url": f"http://{self.headers['Host']}/me/judge"})
        elif place.endswith("/preupload/main"):
            names = [each["path"] for each in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": name, **modes} for name in names]})
        elif place.endswith("/commit/main"):
            lines = [json.loads(line)["value"] for line in body.splitlines()]
            self.commits.append(
                {
                    line["path"]: base64.b64decode(line["content"])
                    for line in lines
                    if "path" in line
                }
            )
            url = f"http://{self.headers['Host']}/me/judge/commit/0123"
            self.answer({"commitUrl": url, "commitOid": "0123"})
        else:  # such as the check of the card's head
            self.answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.answer({"id": "me/judge", "sha": "0" * 40, "siblings": []})

    def answer(self, content, status=200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def push(hub, tmp_path):
    """Push the release in ``push.folder``."""
    folder = tmp_path / "release"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "private-notes.txt").write_text("no part of the release")
    Hub.tokens.clear()
    Hub.created.clear()
    Hub.commits.clear()
    Hub.refuse = False

    def run(*arguments, token=CANARY):
        environment = {k: v for k, v in os.environ.items() if "HF_" not in k}
        environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home")}
        if token:
            environment["HF_TOKEN"] = token
        return subprocess.run(
            [
                sys.executable, "-m", "prefdistill", "push", folder, "me/judge",
                *arguments,
            ],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    run.folder = folder
    return run


def test_by_default_an_upload_is_only_shown(push):
    done = push(token=None)
    assert done.returncode == 0, done.stderr
    assert "me/judge" in done.stdout
    for name, content in FILES.items():
        assert f"{len(content):>14,}  {name}" in done.stdout
    assert "private-notes" not in done.stdout
    assert "- a note" in done.stdout
    assert "nothing was uploaded" in done.stdout
    assert not Hub.tokens


def test_a_push_is_one_commit_of_exactly_these_files(push):
    done = push("--push")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("/me/judge/commit/0123\n")
    assert Hub.commits == [FILES]
    assert [each["visibility"] for each in Hub.created] == ["private"]
    assert Hub.tokens <= {f"Bearer {CANARY}", None}
    assert f"Bearer {CANARY}" in Hub.tokens
    assert CANARY not in done.stdout + done.stderr


def test_a_refusal_is_one_line_without_the_token(push):
    Hub.refuse = True
    done = push("--push")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: me/judge: not uploaded (")
    assert CANARY not in done.stdout + done.stderr
    assert not Hub.commits


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("calibration.json", "has no calibration.json, so it is not a whole release"),
        ("model.safetensors", "not a whole safetensors file"),
    ],
)
def test_an_unfinished_release_is_refused(name, message, push):
    path = push.folder / name
    if name == "model.safetensors":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        path.unlink()
    done = push("--push")
    assert done.returncode == 1
    assert message in done.stderr
    assert not Hub.tokens


def test_without_a_token_nothing_is_asked(push):
    done = push("--push", token=None)
    assert done.returncode == 1
    assert done.stderr.startswith("error: HF_TOKEN: is not set")
    assert not Hub.tokens

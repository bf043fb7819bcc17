"""The hub's token is sent to the hub, and is nowhere else."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from running import snakemake
from safetensors.numpy import save

from prefdistill.models.manifests import read_manifest
from prefdistill.pipeline.stale_files import KEPT_METADATA

CANARY = "hf_canaryNeverToBeSeenAnywhere0123456789"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = save({"model.norm.weight": np.zeros(4096, np.float32)})
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors": WEIGHTS,
}
# What the hub answers to each repository: a status and its code, or a fault.
REFUSALS = {
    "unknown": (401, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "absent": (404, "RepoNotFound"),
    "failing": (500, ""),
}
REPOSITORIES = (*REFUSALS, "truncated", "good")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as the client needs to fetch a model."""

    tokens: set[str | None] = set()  # noqa: RUF012

    def log_message(self, *_arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        type(self).tokens.add(self.headers.get("Authorization"))
        path = self.path.partition("?")[0].removeprefix("/api/models")
        _, _, name, *rest = path.split("/")
        if name in REFUSALS:
            status, code = REFUSALS[name]
            self.answer(status, b'{"error": "refused"}', {"X-Error-Code": code})
        elif rest and rest[0] == "resolve":
            data = FILES.get(rest[-1])
            if data is None:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            else:
                headers = {"ETag": f'"{len(data)}{rest[-1]}"', "X-Repo-Commit": COMMIT}
                self.answer(200, data, headers, whole=name == "good")
        elif rest and rest[0] == "tree":
            tree = [
                {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
                for path, data in FILES.items()
            ]
            self.answer(200, json.dumps(tree).encode(), {})
        else:
            siblings = [{"rfilename": path} for path in FILES]
            about = {"id": f"org/{name}", "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps(about).encode(), {})

    def answer(self, status, body, headers, *, whole=True) -> None:
        """Send an answer, or break off in the middle of its body."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if whole else body[: len(body) // 2])


@pytest.fixture(scope="module")
def hub():
    """The address of a hub on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class CommandLines:
    """Collects the arguments of all processes of this machine while it is open."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._collect)

    def _collect(self) -> None:
        while not self._stop.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:  # it has just ended
                    continue

    def __enter__(self) -> "CommandLines":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def fetched(hub, tmp_path_factory):
    """A run that fetches six models, of which five fail, and fails to import a file."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "broken.csv").write_text("id,prompt\n" + "1,2\n" * 9)
    settings = {
        "data": {"train": ["broken.csv"], "extra": [], "ultra": [], "test": None},
        "simulation": {f"n_{name}": 40 for name in ("train", "extra", "ultra", "test")},
        "base_models": {
            name: {
                "source": "hub",
                "repo": f"org/{name}",
                "revision": COMMIT,
                "billions": 1,
            }
            for name in REPOSITORIES
        },
    }
    overlay = folder / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(settings))
    targets = [f"results/base/{name}/manifest.json" for name in REPOSITORIES]
    targets += ["results/data/pairs.parquet", "results/simulated/truth.parquet"]
    with pytest.MonkeyPatch.context() as patch, CommandLines() as command_lines:
        patch.delenv("HF_HUB_OFFLINE")
        patch.setenv("HF_TOKEN", CANARY)
        patch.setenv("HF_ENDPOINT", hub)
        patch.setenv("HF_HOME", str(folder / "hf_home"))
        started = time.monotonic()
        result = snakemake(folder, "--keep-going", *targets, overlays=(overlay,))
        print(f"{time.monotonic() - started:.0f} s")
        report = snakemake(
            folder, "--report=report.html", targets[-1], overlays=(overlay,)
        )
    assert report.returncode == 0, report.stderr
    assert (folder / "report.html").stat().st_size > 10_000
    output = result.stdout + result.stderr + report.stdout + report.stderr
    return folder, output, command_lines.seen


def test_the_hub_gets_the_token_and_the_whole_model_arrives(fetched):
    folder, _, _ = fetched
    assert f"Bearer {CANARY}" in Hub.tokens
    manifest = read_manifest(folder / "results/base/good/manifest.json")
    assert manifest["revision"] == COMMIT
    assert (folder / "results/base/good/model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", [*REFUSALS, "truncated"])
def test_a_failed_fetch_is_one_line_and_leaves_no_manifest(fetched, name):
    folder, output, _ = fetched
    assert not (folder / f"results/base/{name}/manifest.json").exists()
    start = f"error: model org/{name} at revision {COMMIT}: "
    lines = [line for line in output.splitlines() if line.startswith(start)]
    assert len(lines) == 1, output
    assert len(lines[0]) > len(start)


def test_the_token_is_in_no_file(fetched):
    folder, _, _ = fetched
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).parts[0] for path in paths}
    assert {".snakemake", "logs", "results", "report.html"} <= names
    assert any(path.is_relative_to(folder / KEPT_METADATA) for path in paths)
    assert not [path for path in paths if CANARY.encode() in path.read_bytes()]


def test_the_token_is_in_no_output_and_no_command_line(fetched):
    _, output, command_lines = fetched
    assert CANARY not in output
    seen = b" ".join(command_lines)
    assert b"fetch_hub_model" in seen
    assert CANARY.encode() not in seen


PRINT_ENVIRONMENT = """
import json, os, sys, types
from prefdistill.running.job import run_job
from prefdistill.running.job import guarded
job = types.SimpleNamespace(
    log=sys.argv[1:2], threads=1, input=[], output=[], params={}
)
with guarded(job, online=sys.argv[2] == "online"):
    from huggingface_hub import constants, get_token
    print(json.dumps([dict(os.environ), constants.HF_HUB_OFFLINE, get_token()]))
"""


@pytest.mark.parametrize("kind", ["online", "offline"])
def test_only_an_online_job_has_the_token(kind, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_TOKEN": CANARY, "HUGGING_FACE_HUB_TOKEN": CANARY}
    environment |= {"HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_ENVIRONMENT, tmp_path / "log", kind],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    variables, offline, token = json.loads(done.stdout)
    assert offline is (kind == "offline")
    assert variables.get("TRANSFORMERS_OFFLINE") == ("1" if offline else None)
    assert token == (None if offline else CANARY)
    assert (CANARY in variables.values()) is not offline

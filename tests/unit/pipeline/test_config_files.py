"""Configuration files that cannot be used get one line; shipped ones are whole."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from configurations import ROOT
from wrong_configs import FILES

from prefdistill.pipeline.config_files import (
    MOST_BYTES,
    ConfigFault,
    check_given,
    read_config,
    read_config_file,
)


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_refused_in_its_one_line(name, tmp_path):
    content, line = FILES[name]
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigFault) as caught:
        read_config_file(tmp_path / "mine.yaml")
    assert str(caught.value).replace(f"{tmp_path}/", "") == line


def test_a_missing_file_is_refused_in_its_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigFault) as caught:
        read_config_file("mine.yaml")
    assert str(caught.value) == (
        f"config: mine.yaml: No such file or directory (seen from {tmp_path}); name a "
        "configuration file that is there"
    )


@pytest.mark.parametrize("name", ["config", "plan", "small", "demo"])
def test_shipped_files_are_whole(name):
    path = ROOT / f"config/{name}.yaml"
    assert read_config_file(path) == yaml.safe_load(path.read_text())


def aliases(first, make, n):
    """Lines that name each other: ``n`` lines stand for a number exponential in it."""
    lines = [f"x0: &x0 {first}", *[f"x{i}: &x{i} {make(i - 1)}" for i in range(1, n)]]
    return "\n".join(lines).encode()


BOMBS = {
    "mappings": aliases("{a: 1}", lambda i: f"{{a: *x{i}, b: *x{i}}}", 32),
    "lists": aliases("[l]", lambda i: "[" + ",".join([f"*x{i}"] * 10) + "]", 10),
    "merged": aliases("{a: 1}", lambda i: f"{{<<: [*x{i}, *x{i}], k{i}: 1}}", 32),
    "mapping in itself": b"a: &a {b: *a}\n",
    "list in itself": b"data: {train: &a [*a]}\n",
    "deep lists": b"a: " + b"[" * 40_000,
    "deep json": b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
    "deep blocks": b"".join(b" " * i + b"a:\n" for i in range(1200)),
    "utf-16": "scratch: x\n".encode("utf-16"),
    "utf-32": "scratch: x\n".encode("utf-32"),
    "latin-1": "scratch: é\n".encode("latin-1"),
    "nul": b"scratch: a\0b\n",
    "half a surrogate": b'scratch: "\xed\xa0\x80"\n',
    "long integer": b"folds: {n: " + b"9" * 5000 + b"}\n",
    "long integer in json": b'{"folds": {"n": ' + b"9" * 5000 + b"}}",
    "large": b"# " + b"x" * MOST_BYTES,
    "no date": b"a: 2026-99-99\n",
    "list as key": b"? [a, b]\n: 1\n",
    "python": b"a: !!python/object/apply:os.system [id]\n",
    "name of python": b"a: !!python/name:os.system\n",
    "unknown tag": b"a: !mine 1\n",
    "long list": b"a: [" + b"l," * 500_000 + b"]",
    "long list in json": b'{"a": [' + b"1," * 500_000 + b"1]}",
    "long list, deep": b"a: " + b"[" * 150 + b"l," * 500_000,
    "long text again and again": b"a: &a " + b"x" * 500_000 + b"\nb: [*a, *a, *a]\n",
    "half a character": b'scratch: "\\ud800"\n',
    "half a character in json": b'{"scratch": "\\ud800"}',
    "character beyond all": b'scratch: "\\UFFFFFFFF"\n',
    "number as key": b"a: {1: 2, true: 3, 1.0: 4}\n",
    "date as key": b"a: {2026-01-01: 2}\n",
    "set": b"!!set {a, b}\n",
    "long float": b"a: 1" + b":1" * 60_000 + b".0\n",
    "other version": b"%YAML 9.9\n---\na: 1\n",
    **{
        f"{kind} that is none": f"a: !!{kind} {value}\n".encode()
        for kind in ("bool", "int", "float", "timestamp", "map", "seq", "omap", "set")
        for value in ("abc", "''", "[[]]", "{=: 3}")
        if (kind, value) not in (("map", "{=: 3}"), ("seq", "[[]]"), ("set", "{=: 3}"))
    },
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_file_is_one_line(name):
    with pytest.raises(ConfigFault) as caught:
        read_config(BOMBS[name], "mine.yaml")
    assert str(caught.value).startswith("config: mine.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_value_of_config_is_one_line_or_text(name):
    value = BOMBS[name].decode("utf-8", "surrogateescape")
    try:
        check_given([f"folds={value}"])
    except ConfigFault as fault:
        found = str(fault)
    else:  # no YAML: it stays text, which the schema refuses
        found = "--config 'folds'"
    assert re.fullmatch(r"--config 'folds'.{,300}", found)


@pytest.mark.parametrize("entry", ["folds", "folds.n=3", "=3", "f\nn=3"])
def test_config_without_a_key_is_one_line(entry):
    with pytest.raises(ConfigFault, match=r"^--config .*: write 'key=value', or"):
        check_given([entry])


def test_a_name_that_does_not_print_stays_in_its_line(tmp_path):
    for name in ("a\nb.yaml", "a\x1b[31mb.yaml", "a\udce9.yaml"):
        with pytest.raises(ConfigFault) as caught:
            read_config_file(tmp_path / name)
        assert ascii(name)[1:-1] in str(caught.value)
        str(caught.value).encode()


def test_json_may_be_indented_with_tabs():
    assert read_config(b'{\n\t"a": "\\t\\ud83d\\ude00"\n}', "a") == {
        "a": "\t\U0001f600"
    }


def test_aliases_within_bounds_and_merged_keys_are_fine():
    text = b"a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n"
    assert read_config(text, "mine.yaml")["b"] == {"x": 1, "y": 2}
    with_mark = b"\xef\xbb\xbf" + text
    assert read_config(with_mark, "mine.yaml") == read_config(text, "mine.yaml")


# Each holds code that YTE would run.
TEMPLATES = {
    "definitions": '{"__use_yte__": true, "__definitions__": ["import os", '
    "\"os.mkdir('CANARY')\"]}",
    "expression": '{"__use_yte__": true, "scratch": "?__import__(\'os\').mkdir'
    "('CANARY')\"}",
    "variables": '{"__use_yte__": true, "__variables__": {"a": "?__import__(\'os\')'
    ".mkdir('CANARY')\"}}",
    "inside": '{"data": {"__use_yte__": true}}',
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("as_yaml", [True, False], ids=["yaml", "json"])
def test_a_key_of_templates_is_refused(name, as_yaml):
    text = TEMPLATES[name]
    if as_yaml:
        text = yaml.safe_dump(json.loads(text))
    with pytest.raises(ConfigFault, match="is one of YTE's, which runs code"):
        read_config(text.encode(), "mine.yaml")


WAYS = {
    "run": ["-m", "prefdistill", "run", "-n"],
    "plan": ["-m", "prefdistill", "plan"],
    "status": ["-m", "prefdistill", "status"],
    "snakemake": ["-m", "snakemake", "-n"],
    "snakemake with a profile": ["-m", "snakemake", "-n"],
    "snakemake with a profile of the environment": ["-m", "snakemake", "-n"],
    "snakemake, one word": ["-m", "snakemake", "-n"],
    "snakemake, short": ["-msnakemake", "-n"],
    "snakemake with options of python": [
        "-X",
        "utf8",
        "-W",
        "ignore",
        "-m",
        "snakemake",
    ],
    "snakemake by its file": [str(Path(sys.executable).with_name("snakemake")), "-n"],
    "run, one word": ["-m", "prefdistill", "run", "-n"],
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_in_runs_code_of_a_configuration(way, tmp_path):
    # What `make setup` puts into the environment, as a sitecustomize here.
    scripts = ROOT / "workflow/scripts"
    copy = (scripts / "prefdistill/pipeline/config_files.py").read_text()
    (tmp_path / "prefdistill_config_files.py").write_text(copy)
    start = (scripts / "prefdistill_guard.pth").read_text()
    (tmp_path / "sitecustomize.py").write_text(start)
    evil = tmp_path / "evil.yaml"
    evil.write_text(TEMPLATES["definitions"].replace("CANARY", f"{tmp_path}/CANARY"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").write_text(f"configfile: [{evil}]\n")
    profile = str(tmp_path / "mine")
    given, added = ["--configfile", str(ROOT / "config/demo.yaml"), str(evil)], {}
    if "of the environment" in way:
        given, added = [], {"SNAKEMAKE_PROFILE": profile}
    elif "profile" in way:
        given = ["--profile", profile]
    elif "one word" in way:
        given = [f"--configfile={evil}"]
    run = subprocess.run(
        [sys.executable, *WAYS[way], *given, "--directory", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)} | added,
    )  # fmt: skip
    text = run.stdout + run.stderr
    assert run.returncode == 1
    assert f"error: config: {evil}, line 1: the key '__use_yte__'" in text
    assert "Traceback" not in text
    assert not (tmp_path / "CANARY").exists()


def test_another_program_does_not_import_the_guard(tmp_path):
    start = (ROOT / "workflow/scripts/prefdistill_guard.pth").read_text()
    (tmp_path / "sitecustomize.py").write_text(start)
    code = "import sys; print('prefdistill_config_files' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert run.stdout == "False\n"
    assert run.stderr == ""


def test_a_bomb_takes_neither_memory_nor_time():
    code = "; ".join([
        "import sys",
        "from prefdistill.pipeline.config_files import read_config",
        "read_config(sys.stdin.buffer.read(), 'mine.yaml')",
    ])  # fmt: skip
    scripts = str(Path(ROOT, "workflow/scripts"))
    run = subprocess.run(
        [sys.executable, "-c", code], input=BOMBS["mappings"], capture_output=True,
        env=os.environ | {"PYTHONPATH": scripts}, check=False, timeout=20,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
    )  # fmt: skip
    assert run.returncode == 1
    assert b"is too large" in run.stderr

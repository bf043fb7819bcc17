"""Names that a shell would act on are refused, or reach a job as they are."""

import os
import re
import subprocess

import pytest
from configurations import SCHEMA, configured, overlaid, shipped
from snakemake_interface_executor_plugins.utils import format_cli_arg

from prefdistill.errors import UserError
from prefdistill.pipeline.config_schema import validate_config
from prefdistill.pipeline.path_checks import BARE_SIGNS, check_cluster, check_path

SIGNS = [
    *("$(touch CANARY)", "`touch CANARY`", "${HOME}", "$HOME", "\\", "\\\\", '"', "'"),
    *(";touch CANARY;", "&touch CANARY&", "|touch CANARY", ">CANARY", "<", "#", "!"),
    *("*", "?", "~", "%j", "{x}", "{", "}}", "(", ")", "[a]", " ", "\t", "\n", "\r"),
    *(
        "\x1b[31m",
        "\udce9",
        "\u3000",
        "é",
        "=",
        ",",
        "-",
        "''",
        "' '",
        "'x'; touch CANARY; '",
    ),
    *("';touch CANARY;\"", "\"';touch CANARY;'\""),
]
TEXTS = [text for sign in SIGNS for text in (f"a{sign}b", sign, f"{sign}b")]


def refused(check):
    """Return the one line that a check refuses with; None if it does not."""
    try:
        check()
    except UserError as error:
        return str(error)
    return None


def reaches(text, folder, wrapped):
    """Tell whether a job gets a text as it is: once quoted, or in sbatch's --wrap."""
    (folder / "show").write_text('printf %s "$1"')
    line = f"sh show {format_cli_arg('', [text])}"
    if wrapped:  # as snakemake_executor_plugin_slurm writes it
        escaped = line.replace('"', '\\"')
        line = f'exec sh -c "{escaped}"'
    shown = subprocess.run(
        ["sh", "-c", line], cwd=folder, capture_output=True, check=False
    )
    assert not (folder / "CANARY").exists()
    return shown.stdout == os.fsencode(text)


@pytest.mark.parametrize("wrapped", [False, True], ids=["script", "wrap"])
def test_a_path_is_refused_or_reaches_a_job_as_it_is(tmp_path, monkeypatch, wrapped):
    files = tmp_path / "files"
    files.mkdir()
    monkeypatch.chdir(files)
    accepted = 0
    for text in TEXTS:
        name = f"{text}.csv"
        (files / name).write_text("id,prompt\n" + "1,p\n" * 10)
        line = refused(lambda n=name: configured("demo", data={"train": [n]}))
        if line:
            assert re.fullmatch(r"config: data\.train: .* in its name, .*", line)
        else:
            accepted += 1
            assert reaches(name, tmp_path, wrapped), text
    assert accepted > len(TEXTS) / 3


# A configuration for every string that ends in a command line or a path.
STRINGS = {
    "data.train": lambda text: {"data": {"train": [text]}},
    "data.extra": lambda text: {"data": {"extra": [text]}},
    "data.ultra": lambda text: {"data": {"ultra": [text]}},
    "data.test": lambda text: {"data": {"test": text}},
    "data.unlabelled": lambda text: {"data": {"unlabelled": [text]}},
    "scratch": lambda text: {"scratch": text},
    "path": lambda text: {"base_models": {"x": {"source": "path", "path": text}}},
    "package": lambda text: {
        "base_models": {"x": {"source": "package", "package": text, "version": "1"}}
    },
    "version": lambda text: {
        "base_models": {"x": {"source": "package", "package": "x", "version": text}}
    },
    "base": lambda text: {"base_models": {text: {"source": "path", "path": "x"}}},
    "teacher": lambda text: {"teachers": {text: {"base": "tiny_llama"}}},
}
BAD = [
    *("$(touch CANARY)", "`touch CANARY`", "a$b", 'a"b', "a\\b", "a\nb", "a\x1bb"),
    *("{a}", "-a", "'x'; touch CANARY; '", "a\udce9", "a" * 5000, "loop", "loop/a"),
]


@pytest.mark.parametrize("key", STRINGS)
def test_a_string_that_would_be_acted_on_is_one_line(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for text in BAD:
        if key in ("package", "version", "base", "teacher") and text == "loop":
            continue  # a name that is fine
        with pytest.raises(UserError, match=r"\Aconfig: .{,400}\Z"):
            validate_config(overlaid(shipped("demo"), STRINGS[key](text)), SCHEMA)


# pip would build these, and so run them.
@pytest.mark.parametrize("name", ["x @ file:///x.tar.gz#", "./x", "-rx", "x[y]", "x y"])
def test_a_package_is_named_not_placed(name):
    for key in ("package", "version"):
        overlay = overlaid(shipped("demo"), STRINGS[key](name))
        with pytest.raises(UserError, match="then letters, digits and any of _"):
            validate_config(overlay, SCHEMA)


@pytest.mark.parametrize("text", TEXTS)
def test_a_cluster_gets_words_and_paths_as_they_are(text, tmp_path):
    for paths, given in ([f"/a/{text}"], []), ([], [f"scratch={text}"]):
        line = refused(lambda p=paths, g=given: check_cluster(p, g))
        if line:
            assert re.fullmatch(r"on a cluster: .*, which a command line .*", line)
        else:
            for wrapped in False, True:
                assert reaches((paths or given)[0], tmp_path, wrapped)


@pytest.mark.parametrize("sign", [" ", ";touch x;", "&", "(", "'", "*", "$x", "~", "#"])
def test_an_interpreter_needs_no_quotes(sign):
    with pytest.raises(UserError, match=r"the interpreter: .*/python. has"):
        check_path("the interpreter", f"/a{sign}/.venv/bin/python", BARE_SIGNS)
    check_path("the interpreter", "/home/é_x+1/v-3.11/bin/python", BARE_SIGNS)

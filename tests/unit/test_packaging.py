"""The pins, the Makefile and the profiles agree with each other and with the rules."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def pins_of(text):
    return {line for line in map(str.strip, text.splitlines()) if re.match(r"\w", line)}


@pytest.fixture(scope="module")
def lock():
    return pins_of((ROOT / "requirements.lock").read_text())


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Run make in a copy of what set-up needs; the copy's folder is ``make.folder``."""
    for name in (*COMMANDS, "ARGS", "PYTHON"):  # of a make around the tests, or yours
        monkeypatch.delenv(name, raising=False)
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)

    def run(*arguments):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        return subprocess.run(
            ["make", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    run.folder = tmp_path
    return run


def test_the_lock_pins_exactly_and_each_package_once(lock):
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][\w.]*", pin) for pin in lock)
    names = [re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in lock]
    assert len(set(names)) == len(names)
    assert "torch==2.13.0" in lock


def test_conda_users_get_the_same_pins(lock):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    after = (ROOT / "environment.post-deploy.sh").read_text()
    added = set(re.findall(r"pip install --no-deps (\S+)", after))
    assert conda == ["python=3.11", "pip"]
    assert set(pip["pip"]) | added == lock
    assert not set(pip["pip"]) & added


def test_what_is_installed_here_is_the_lock(lock):
    from importlib.metadata import version

    installed = {pin: version(pin.split("==")[0]).split("+")[0] for pin in lock}
    assert installed == {pin: pin.split("==")[1] for pin in lock}


def test_only_the_known_pin_conflict_is_reported():
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True
    )
    assert re.fullmatch(r"gptqmodel 7\.6\.0 .*numpy.*\n", done.stdout), done.stdout


@pytest.mark.slow
def test_the_heavy_packages_import_together():
    code = "import torch, bitsandbytes, gptqmodel, peft, snakemake"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_public_target(make):
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: ([\w-]+)", text, re.MULTILINE)) - {"install"}
    listed = re.findall(r"^  ([\w-]+) {2,}\w", make("help").stdout, re.MULTILINE)
    assert sorted(listed) == sorted(targets)
    wanted = "setup demo run plan dag report test lint clean unlock help"
    assert targets >= set(wanted.split())


def test_set_up_does_nothing_when_it_is_done(make):
    venv = make.folder / ".venv"
    venv.mkdir()
    shutil.copy(ROOT / "requirements.lock", venv / "installed.lock")
    os.utime(make.folder / "requirements.lock")
    done = make("setup", "PYTHON=/bin/false")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_set_up_runs_again_when_the_lock_has_changed(make):
    (make.folder / ".venv").mkdir()
    (make.folder / ".venv/installed.lock").write_text("numpy==1.0\n")
    done = make("--dry-run", "install", f"PYTHON={sys.executable}")
    steps = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert "-c requirements.lock" in steps[0]
    assert "^torch==" in steps[0]
    assert "--no-deps -r requirements.lock" in steps[1]
    assert make("setup", "PYTHON=/bin/false").returncode != 0


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("raise SystemExit(1)", "the pins are for Python 3.11"),
        ("", "has no venv module: apt-get install python3.11-venv"),
    ],
)
def test_another_python_is_refused_in_one_line(make, version, message):
    python = make.folder / "python3"
    python.write_text(
        "#!/bin/sh\n"
        'case "$2" in *version_info*) '
        + ("exit 1" if version else "exit 0")
        + ";; *ensurepip*) exit 1;; esac\necho Python 3.12.0\n"
    )
    python.chmod(0o755)
    done = make("setup", f"PYTHON={python}")
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert done.returncode == 2
    assert message in errors[0]
    assert not (make.folder / ".venv").exists()


@pytest.fixture
def command(make):
    """Run make where everything is installed; return the words of its command."""
    venv = make.folder / ".venv/bin"
    venv.mkdir(parents=True)
    shutil.copy(make.folder / "requirements.lock", venv.parent / "installed.lock")
    (venv / "python").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\" > words\n")
    (venv / "python").chmod(0o755)
    words = make.folder / "words"

    def run(*arguments):
        words.unlink(missing_ok=True)
        done = make(*arguments)
        assert done.returncode == 0, done.stderr
        return words.read_text().splitlines()[2:]  # without -m prefdistill

    return run


def test_run_passes_configurations_target_and_profile(command):
    slurm = command(
        "run", "CONFIG=a.yaml b.yaml", "PROFILE=slurm", "TARGET=all", "ARGS=-q 'a b'"
    )
    named = [
        "run",
        "all",
        "--configfile",
        "a.yaml",
        "b.yaml",
        "--profile",
        "slurm",
        "-q",
    ]
    assert slurm == [*named, "a b"]
    local = command("run", "CORES=3", "TARGET=teachers")
    assert local[:2] == ["run", "teachers"]
    assert local[2:6] == ["--profile", "profiles/default", "--cores", "3"]


@pytest.mark.parametrize(
    ("model", "judge", "release"),
    [
        ("merged", "results/merged", "results/release/merged"),
        ("gptq8", "results/gptq/8bit", "results/release/gptq8bit"),
    ],
)
def test_a_judge_is_found_by_its_model(command, make, model, judge, release):
    files = ("INPUT=my pairs.csv", "OUTPUT=out.csv", "PLAIN=1", f"MODEL={model}")
    said = command("predict", *files)
    assert said == ["predict", judge, "my pairs.csv", "out.csv", "--plain"]
    said = command("push", "REPO=me/judge", f"MODEL={model}")
    assert said == ["push", release, "me/judge"]
    said = command("push", "REPO=me/judge", "PUSH=1")
    assert said == ["push", "results/release/gptq4bit", "me/judge", "--push"]
    assert "INPUT and OUTPUT are needed" in make("predict").stderr


def test_a_key_in_both_profiles_has_one_value():
    """Snakemake lays profiles/default over any other profile, key by key."""
    default, slurm = (
        yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())
        for name in ("default", "slurm")
    )
    assert {key: slurm[key] for key in default} == default


def test_the_slurm_link_leads_to_the_profile():
    assert os.readlink(ROOT / "slurm") == "profiles/slurm"
    assert (ROOT / "slurm/config.yaml").exists()


def test_the_prefdistill_link_leads_to_the_package():
    assert os.readlink(ROOT / "prefdistill") == "workflow/scripts/prefdistill"
    assert (ROOT / "prefdistill/__main__.py").exists()


def test_the_slurm_profile_names_exactly_the_rules_that_use_a_gpu():
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    on_gpus = set()
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        for name, body in re.findall(
            r"^rule (\w+):\n((?:[ \t].*\n|\n)*)", path.read_text(), re.MULTILINE
        ):
            if re.search(r"^\s+gpu=", body, re.MULTILINE):
                on_gpus.add(name)
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        for base, name in re.findall(
            r"^[ \t]*use rule (\w+) as (\w+)", path.read_text(), re.M
        ):
            if base in on_gpus:
                on_gpus.add(name)
    assert set(profile["set-resources"]) == on_gpus


def test_the_slurm_profile_holds_each_choice_of_the_site_once():
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    first, *others = profile["set-resources"].values()
    assert all(each is first for each in others)
    estimated = {"gpu", "mem_mb", "runtime"}
    assert not estimated & (first.keys() | profile["default-resources"].keys())
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
    assert profile["config"].keys() <= schema["properties"].keys()


def test_every_rule_with_a_script_states_memory_and_minutes():
    silent = [
        name
        for path in (ROOT / "workflow/rules").glob("*.smk")
        for name, body in re.findall(
            r"^rule (\w+):\n((?:[ \t].*\n|\n)*)", path.read_text(), re.MULTILINE
        )
        if "    script:\n" in body
        and not re.search(
            r"    threads: .*\n    resources:\n(?: +gpu=.*\n)?"
            r" +mem_mb=memory_of\(.*\n +runtime=minutes_of\(",
            body,
        )
    ]
    assert not silent


def test_without_graphviz_dag_says_what_to_install(make):
    (make.folder / ".venv").mkdir()
    shutil.copy(make.folder / "requirements.lock", make.folder / ".venv/installed.lock")
    commands = make.folder / "bin"
    commands.mkdir()
    for name in ("bash", "make", "cmp", "nproc"):
        (commands / name).symlink_to(shutil.which(name))
    done = make("dag", f"PATH={commands}")
    (line,) = [line for line in done.stderr.splitlines() if "make: ***" not in line]
    assert done.returncode == 2
    assert line.startswith("error: no Graphviz found")
    assert "apt-get install graphviz" in line


SIGNS = [
    *("`touch CANARY`", "$(touch CANARY)", "$(shell touch CANARY)", "${x}", "$x"),
    *("$$", "'", '"', "\\", "#", "*", "?", "~", "!", "{a,b}", ";touch CANARY;"),
    *("&touch CANARY&", "|touch CANARY", ">CANARY", "<", "%", "(", "=", "$(error a)"),
]
# Arguments of make, and the words that the command must get.
COMMANDS = {
    "INPUT": (["predict", "OUTPUT=o.csv"], ["predict", "results/gptq/4bit", "{}"]),
    "OUTPUT": (
        ["predict", "INPUT=i.csv"],
        ["predict", "results/gptq/4bit", "i.csv", "{}"],
    ),
    "MODEL": (["predict", "INPUT=i.csv", "OUTPUT=o.csv"], []),
    "JUDGE": (["predict", "INPUT=i.csv", "OUTPUT=o.csv"], ["predict", "{}", "i.csv"]),
    "PLAIN": (
        ["predict", "INPUT=i.csv", "OUTPUT=o.csv"],
        ["predict", "results/gptq/4bit", "i.csv", "o.csv", "--plain"],
    ),
    "PUSH": (["push", "REPO=r"], ["push", "results/release/gptq4bit", "r", "--push"]),
    "RELEASE": (["push", "REPO=r"], ["push", "{}", "r"]),
    "REPO": (["push"], ["push", "results/release/gptq4bit", "{}"]),
    "CONFIG": (["run"], ["run", "all", "--configfile", "{}", "--profile"]),
    "TARGET": (["run"], ["run", "{}", "--profile", "profiles/default"]),
    "PROFILE": (["run"], ["run", "all", "--profile", "{}"]),
    "CORES": (["run"], ["run", "all", "--profile", "profiles/default", "--cores"]),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("by_environment", [False, True], ids=["argument", "environ"])
def test_what_is_given_to_make_is_taken_as_it_is_written(
    make, command, name, by_environment, monkeypatch
):
    arguments, wanted = COMMANDS[name]
    for sign in SIGNS:
        text = f"a{sign}b"
        if by_environment:
            monkeypatch.setenv(name, text)
        words = command(*arguments, *([] if by_environment else [f"{name}={text}"]))
        assert not (make.folder / "CANARY").exists(), sign
        several = text.split() if name in ("CONFIG", "TARGET") else [text]
        expected = [
            part for word in wanted for part in (several if word == "{}" else [word])
        ]
        assert words[: len(expected)] == expected, sign


def test_setup_keeps_the_environments_reader_of_configurations_current(make, command):
    site = make.folder / ".venv/lib/python3.11/site-packages"
    scripts = make.folder / "workflow/scripts"
    site.mkdir(parents=True)
    (scripts / "prefdistill/pipeline").mkdir(parents=True)
    for text in "first", "second":
        (scripts / "prefdistill/pipeline/config_files.py").write_text(text)
        (scripts / "prefdistill_guard.pth").write_text(text)
        assert make("setup").returncode == 0
        for name in "prefdistill_config_files.py", "prefdistill_guard.pth":
            assert (site / name).read_text() == text

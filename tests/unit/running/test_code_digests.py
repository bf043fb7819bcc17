import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefdistill.running.code_digests import SCRIPTS, code_digest

OBJECTIVES = "prefdistill.training.objectives"
SCRIPT = """
'''Train.'''
from pathlib import Path
from prefdistill.training.trainer import train

def main(path: Path):
    from prefdistill.training.objectives import mix as blend
    return blend(train(path))

if __name__ == "__main__":
    main(Path(snakemake.input[0]))
"""
TRAINING = """
'''The loop.'''
import math
from prefdistill.training.objectives import cross_entropy, hinge

RATE = 0.1
UNUSED = 3

def train(path):
    '''Train.'''
    return [step(x) for x in path]

def step(x):
    return RATE * Schedule().at(cross_entropy(x))

def unrelated(x):
    return hinge(x) + math.pi

class Schedule:
    '''A schedule.'''
    FIRST = 1

    def at(self, x):
        return _curve(x)

@math.log
def _curve(x):
    return x
"""
LOSSES = """
EPSILON = 1e-6
LIMITS = {}
LIMITS["ce"] = 3

def cross_entropy(x):
    return x + EPSILON

def mix(x):
    return cross_entropy(x) / 2

def hinge(x):
    return 0
"""


@pytest.fixture
def digest(tmp_path):
    """The digest of the small project with texts of one of its files replaced."""
    counter = iter(range(100))

    def digest_of(file=None, old="", new=""):
        scripts = tmp_path / str(next(counter))
        files = {
            "train.py": SCRIPT,
            "prefdistill/__init__.py": "",
            "prefdistill/training/trainer.py": TRAINING,
            "prefdistill/training/objectives.py": LOSSES,
        }
        if file:
            assert old in files[file]
            files[file] = files[file].replace(old, new)
        for name, text in files.items():
            path = scripts / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return code_digest("train.py", scripts)

    return digest_of


T, L = "prefdistill/training/trainer.py", "prefdistill/training/objectives.py"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param("train.py", "blend(train(path))", "train(path)", id="script"),
        pytest.param(
            "train.py", "main(Path(snakemake", "print(Path(snakemake", id="if"
        ),
        pytest.param("train.py", "mix as", "hinge as", id="alias of another name"),
        pytest.param(T, "[step(x)", "[-step(x)", id="function"),
        pytest.param(T, "return RATE *", "return 2 * RATE *", id="helper"),
        pytest.param(T, "RATE = 0.1", "RATE = 0.2", id="constant"),
        pytest.param(T, "FIRST = 1", "FIRST = 2", id="class attribute"),
        pytest.param(T, "return _curve(x)", "return x", id="method"),
        pytest.param(T, "@math.log", "@math.exp", id="decorator"),
        pytest.param(T, "import math", "import cmath as math", id="foreign import"),
        pytest.param(T, "import cross_entropy, h", "import mix as cross_entropy, h"),
        pytest.param(T, "UNUSED = 3", "print(3)", id="statement run on import"),
        pytest.param(T, "UNUSED = 3", "if RATE:\n    RATE = 3", id="conditional"),
        pytest.param(T, "UNUSED = 3", "RATE += 3", id="augmented assignment"),
        pytest.param(L, "return x + EPSILON", "return x - EPSILON", id="other module"),
        pytest.param(L, "1e-6", "1e-7", id="constant of the other module"),
        pytest.param(L, 'LIMITS["ce"] = 3', 'LIMITS["ce"] = 4', id="changed object"),
        pytest.param("prefdistill/__init__.py", "", "print()", id="package"),
    ],
)
def test_code_that_is_reached_counts(digest, file, old, new):
    assert digest(file, old, new) != digest()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param("train.py", "'''Train.'''", "", id="docstring of the script"),
        pytest.param(T, "'''Train.'''", "'''Train a model.'''", id="of a function"),
        pytest.param(T, "'''A schedule.'''", "'''S.'''", id="of a class"),
        pytest.param(T, "RATE = 0.1", "RATE  =  (0.1)  # a comment", id="layout"),
        pytest.param(T, "hinge(x) +", "2 +", id="unrelated"),
        pytest.param(T, "UNUSED = 3", "UNUSED = 4", id="unused constant"),
        pytest.param(T, "UNUSED = 3\n", "", id="unused constant removed"),
        pytest.param(
            L, "return 0", "return 1", id="function only reached by unrelated"
        ),
        pytest.param(L, "def hinge", "def new(x):\n    pass\n\ndef hinge", id="added"),
    ],
)
def test_other_edits_do_not_count(digest, file, old, new):
    assert digest(file, old, new) == digest()


def test_the_order_of_definitions_does_not_count(digest):
    mix = "def mix(x):\n    return cross_entropy(x) / 2\n"
    head, tail = LOSSES.split(mix)
    assert digest(L, LOSSES, mix + head + tail) == digest()


def test_a_local_variable_of_that_name_still_counts_as_a_use(digest):
    base = digest(L, "return cross_entropy(x) / 2", "hinge = x; return hinge")
    edited = LOSSES.replace("return 0", "return 1")
    edited = edited.replace("return cross_entropy(x) / 2", "hinge = x; return hinge")
    assert digest(L, LOSSES, edited) != base


def test_modules_may_import_each_other(digest):
    cycle = (
        "def cross_entropy(x):\n    from prefdistill.training.trainer import train\n"
    )
    assert len(digest(L, "def cross_entropy(x):\n", cycle)) == 12


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "train.py",
            "from prefdistill.training.objectives import mix as blend",
            imported,
            message,
        )
        for imported, message in [
            (
                "import prefdistill.training.objectives",
                "cannot follow `import prefdistill.training.objectives`",
            ),
            ("import prefdistill", "cannot follow `import prefdistill`"),
            (
                "from prefdistill import losses",
                "cannot follow `from prefdistill import",
            ),
            ("from .losses import mix", "cannot follow `from .losses import mix`"),
            ("from prefdistill.gone import mix", "cannot find `from prefdistill.gone"),
            (
                "from prefdistill.training.objectives import gone",
                "cannot find .* import gone`",
            ),
            ("import train", "imports the script train.py"),
        ]
    ]
    + [(T, "import cross_entropy, hinge", "import *", r"import \*`: write")],
)
def test_an_import_that_cannot_be_followed_is_refused(digest, file, old, new, message):
    with pytest.raises(ValueError, match=message) as error:
        digest(file, old, new)
    assert Path(file).name in str(error.value)


def test_a_missing_script_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.py"):
        code_digest("absent.py", tmp_path)


@pytest.fixture
def copied_scripts(tmp_path):
    """A copy of the real scripts, and what another process says of them."""
    scripts = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import time; started = time.perf_counter();"
        "from prefdistill.running.code_digests import SCRIPTS, code_digest;"
        "print(*[code_digest(p.name) for p in sorted(SCRIPTS.glob('*.py'))]);"
        "print(time.perf_counter() - started)"
    )

    def run():
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=scripts,
            capture_output=True,
            text=True,
            check=True,
        )
        digests, seconds = done.stdout.splitlines()
        return digests.split(), float(seconds)

    return scripts, run


def test_kept_digests_are_used_until_a_byte_changes(copied_scripts):
    scripts, run = copied_scripts
    store = scripts / "prefdistill/__pycache__/code_digests.json"
    first, seconds_to_read = run()
    assert store.exists()
    again, seconds = run()
    assert again == first
    assert seconds < seconds_to_read / 2  # a twentieth on an idle machine
    with open(scripts / "prefdistill/storage/whole_files.py", "a") as handle:
        handle.write("\nlen('changed')\n")
    changed, _ = run()
    assert len(changed) == len(first)
    assert not set(changed) & set(first)
    store.write_text("{")
    assert run()[0] == changed


def test_how_jobs_run_is_not_what_they_make(copied_scripts):
    scripts, run = copied_scripts
    first, _ = run()
    for module in ("running/job", "running/slurm", "storage/checkpoints"):
        with open(scripts / f"prefdistill/{module}.py", "a") as handle:
            handle.write("\nlen('changed')\n")
    assert run()[0] == first


@pytest.mark.parametrize("script", sorted(p.name for p in SCRIPTS.glob("*.py")))
def test_every_script_has_a_digest(script):
    assert int(code_digest(script), 16) >= 0

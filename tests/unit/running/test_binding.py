"""Scripts and rules agree: ``main``'s parameters are what their rules name."""

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import snakemake.api  # noqa: F401 (before snakemake.dag, which needs it)
from snakemake.cli import main as run_snakemake
from snakemake.dag import DAG

from prefdistill.running.binding import (
    JOB_NAMES,
    BindingError,
    bind,
    check_names,
    convert,
)
from prefdistill.settings import SampleWeightSettings, ScoringSettings

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = {"online", "processes", "libraries"}  # of run_job


def call_of(script: Path) -> ast.Call | None:
    """The script's ``run_job(snakemake, main, ...)``."""
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "run_job":
            return node if len(node.args) == 2 else None
    return None


@pytest.fixture(scope="module")
def workflow():
    """The demo's workflow: its rules, and its jobs from raw data to the report."""
    found = {}

    async def keep(dag, detailed=False):
        found["rules"], found["jobs"] = list(dag.workflow.rules), list(dag.jobs)
        yield ""

    patch = pytest.MonkeyPatch()
    patch.setattr(DAG, "summary", keep)
    patch.chdir(ROOT)
    command = ["--summary", "--configfile", "config/demo.yaml", "--quiet", "all"]
    with pytest.raises(SystemExit) as ended:
        run_snakemake([*command, "--snakefile", "workflow/Snakefile", "--nolock"])
    patch.undo()
    assert ended.value.code == 0
    return SimpleNamespace(**found)


def script_of(rule) -> Path | None:
    return ROOT / "workflow/scripts" / Path(rule.script).name if rule.script else None


def main_of(script: Path):
    return importlib.import_module(script.stem).main


def test_every_rule_names_what_its_script_asks_for(workflow):
    n_checked = 0
    for rule in workflow.rules:
        script = script_of(rule)
        call = call_of(script) if script else None
        if call is None:
            continue
        named = [dict(part.items()) for part in (rule.input, rule.output, rule.params)]
        given = {keyword.arg for keyword in call.keywords} - OPTIONS
        known = {*JOB_NAMES, *given, *rule.wildcard_names}
        check_names(main_of(script), *named, known=known)
        n_checked += 1
    assert n_checked >= 20


def test_the_values_of_the_demo_s_jobs_fit_the_annotations(workflow):
    bound = set()
    for job in workflow.jobs:
        script = script_of(job.rule)
        call = call_of(script) if script else None
        if call is None:
            continue
        snakemake = SimpleNamespace(
            input=job.input, output=job.output, params=job.params, log=job.log,
            wildcards=job.wildcards, rule=job.rule.name,
            config=workflow.rules[0].workflow.globals["config"],
        )  # fmt: skip
        given = {each.arg: 1 for each in call.keywords if each.arg not in OPTIONS}
        main = main_of(script)
        arguments = bind(main, snakemake, given)
        assert set(arguments) <= set(main.__annotations__)
        bound.add(script.stem)
    assert len(bound) >= 10, bound


class Named(list):
    """Stands in for Snakemake's named lists."""

    def __init__(self, **named: Any) -> None:
        super().__init__(named.values())
        self.named = named

    def items(self):
        return self.named.items()


def job_of(**parts):
    parts = {name: Named(**parts.get(name, {})) for name in
             ("input", "output", "params", "wildcards")}  # fmt: skip
    return SimpleNamespace(
        **parts, log=["logs/r/a.log"], rule="r", config={"scratch": "scratch"}
    )


@dataclass(frozen=True)
class Files:
    table: Path
    folds: list[Path]
    extra: Path | None


def test_parameters_are_bound_by_name_and_converted():
    def main(
        table: Path, folds: list[Path], extra: Path | None, out: Path, seed: int,
        views: list[str], text: dict[str, Any], fold: int, scratch: Path, log: Path,
        config: dict[str, Any], inputs: Files, outputs: dict[str, Path], budget: int,
        other: str = "left",
    ) -> None: ...  # fmt: skip

    job = job_of(
        input={"table": "t", "folds": ["a", "b"], "extra": []},
        output={"out": "o"},
        params={"seed": 3, "views": ["AB"], "text": {"a": 1}, "code": "x"},
        wildcards={"fold": "7"},
    )
    assert bind(main, job, {"budget": 5}) == {
        "table": Path("t"),
        "folds": [Path("a"), Path("b")],
        "extra": None,
        "out": Path("o"),
        "seed": 3,
        "views": ["AB"],
        "text": {"a": 1},
        "fold": 7,
        "scratch": Path("scratch/r/7"),
        "log": Path("logs/r/a.log"),
        "config": {"scratch": "scratch"},
        "inputs": Files(Path("t"), [Path("a"), Path("b")], None),
        "outputs": {"out": Path("o")},
        "budget": 5,
    }


def test_a_name_that_is_there_twice_is_refused():
    def main(pairs: Path) -> None: ...

    job = job_of(input={"pairs": "a"}, output={"pairs": "b"})
    with pytest.raises(BindingError, match=r"test_binding\.py: parameter 'pairs' .* 2"):
        bind(main, job)


def test_a_parameter_that_nothing_names_is_refused():
    def main(pairs: Path) -> None: ...

    with pytest.raises(BindingError, match=r"parameter 'pairs' of main is not named"):
        bind(main, job_of(input={"pair": "a"}))


def test_a_field_that_no_input_names_is_refused():
    def main(inputs: Files) -> None: ...

    with pytest.raises(BindingError, match="'folds'"):
        bind(main, job_of(input={"table": "t", "extra": []}))


@pytest.mark.parametrize(
    ("value", "annotation"), [(["a", "b"], Path), ("x", int), (1, str), ("a", bool)]
)
def test_a_value_of_another_kind_is_refused(value, annotation):
    def main(x: Any) -> None: ...

    main.__annotations__["x"] = annotation
    with pytest.raises(BindingError, match="parameter 'x'"):
        bind(main, job_of(params={"x": value}))


@dataclass(frozen=True)
class Group:
    table: Path
    fold: int
    seed: int
    extra: Path | None = None


def test_a_parameter_that_nothing_names_groups_what_its_fields_name():
    def main(group: Group) -> None: ...

    job = job_of(input={"table": "t"}, params={"seed": 3}, wildcards={"fold": "7"})
    assert bind(main, job) == {"group": Group(Path("t"), 7, 3)}
    job = job_of(input={"table": "t"}, wildcards={"fold": "7"})
    with pytest.raises(BindingError, match="parameter 'seed' of main is not named"):
        bind(main, job)


def test_settings_become_their_dataclass():
    sample = {"beta": 0.5, "low": 0.1, "high": 2.0}
    expected = SampleWeightSettings(**sample)
    assert convert(sample, SampleWeightSettings) == expected
    assert convert(None, SampleWeightSettings | None) is None


def test_how_a_job_runs_comes_from_the_section_of_the_configuration():
    def main(scoring: ScoringSettings) -> None: ...

    params = {"scoring": {"precision": "nf4"}, "section": ["teachers", "llama"]}
    job = job_of(params=params)
    running = {"token_budget": 7, "progress_batches": 2, "seed": 9}
    job.config["teachers"] = {"llama": running}
    assert bind(main, job) == {
        "scoring": ScoringSettings("nf4", token_budget=7, progress_batches=2)
    }

"""No code and no pickle is taken from outside; hub models are pinned by commit."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "workflow").rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal"}
UNSAFE_CALLS = {"torch.load", "torch.save", "eval", "exec", "pd.read_pickle"}
# Jobs that ask the hub: one for models, one for data sets.
ONLINE = {"fetch_hub_model.py", "import_pairs.py"}


def problems(tree: ast.AST) -> list[str]:
    """What in a module would run or unpickle what comes from outside."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names.append(getattr(node, "module", None) or "")
            found += [n for n in names if n.partition(".")[0] in UNSAFE_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in UNSAFE_CALLS:
            found.append(name)
        if name == "np.load" and given.get("allow_pickle") != "False":
            found.append("np.load without allow_pickle=False")
        if given.get("trust_remote_code", "False") != "False":
            found.append("trust_remote_code")
        # PEFT runs no code of an adapter, and knows no such keyword.
        automatic = name.endswith(".from_pretrained") and "Peft" not in name
        if automatic and "trust_remote_code" not in given:
            found.append(f"{name} without trust_remote_code=False")
        if given.get("use_safetensors", "True") != "True":
            found.append("use_safetensors")
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path)",
        "load(path, trust_remote_code=settings.trust)",
        "load(path, trust_remote_code=False, use_safetensors=False)",
    ],
)
def test_what_is_unsafe_is_found(text):
    assert problems(ast.parse(text))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_unsafe_is_in_the_workflow(path):
    assert not problems(ast.parse(path.read_text()))


def test_only_two_jobs_are_online():
    online = {path.name for path in SOURCES if "online=True" in path.read_text()}
    assert online == ONLINE


def test_the_token_is_read_from_the_environment_alone():
    """Only where a hub is asked, never from a configuration or a parameter."""
    users = {path.name for path in SOURCES if "HF_TOKEN" in path.read_text()}
    assert users == {"hub_models.py", "hub_rows.py", "job.py", "push.py"}
    settings = [*(ROOT / "config").iterdir(), *(ROOT / "profiles").rglob("*.yaml")]
    texts = [path.read_text() for path in settings if path.suffix == ".yaml"]
    texts += [path.read_text() for path in (ROOT / "workflow").rglob("*.smk")]
    assert len(texts) > 10
    assert not [text for text in texts if re.search("token *:|HF_TOKEN", text)]


@pytest.mark.parametrize("name", ["config", "plan"])
def test_hub_models_are_pinned_by_commit(name):
    config = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
    models = config["base_models"].values()
    revisions = [model["revision"] for model in models if model["source"] == "hub"]
    assert len(revisions) >= 3
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in revisions)

"""The documentation says what the code says: messages, targets, links, pages."""

import ast
import re
from pathlib import Path

import pytest
import wrong_configs
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
NOTES = sorted((ROOT / "docs/lab").glob("*.md"))
LIBRARY = ROOT / "workflow/scripts/prefdistill"
PAGES_OF_CODE = [
    f"docs/{name}.md" for name in ("architecture", "extending", "clusters", "method")
]
GAP = "…"


def literals(node):
    """The strings of a syntax tree, a formatted value as a gap."""
    if isinstance(node, ast.JoinedStr):
        parts = [v.value if isinstance(v, ast.Constant) else GAP for v in node.values]
        yield "".join(parts)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from literals(child)


@pytest.fixture(scope="module")
def said():
    """All that the scripts and the Makefile can say, white space folded."""
    texts = [(ROOT / "Makefile").read_text("utf-8")]
    for path in sorted((ROOT / "workflow/scripts").rglob("*.py")):
        texts += literals(ast.parse(path.read_text("utf-8")))
    return " ".join("\n".join(texts).split())


def test_messages_are_those_of_the_code(said):
    text = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    messages += re.findall(r"^- \*`([^`]+)`", text, re.MULTILINE)
    assert len(messages) > 30
    for message in messages:
        for part in re.split(f"{GAP}|; ", message):
            words = part.strip(" .:,;()")
            assert words in said, f"{message!r}: nothing says {words!r}"


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for path in [*DOCS, ROOT / "README.md"]:
        code = re.findall(r"`([^`]+)`|^(make .*)$", path.read_text("utf-8"), re.M)
        for line in ("".join(each) for each in code):
            found = re.match(r"make ([a-z-]+)", line)
            if found:
                assert f"\n{found[1]}: " in makefile, f"{path.name}: {line}"


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize(
    "path",
    [*DOCS, *NOTES, ROOT / "README.md"],
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_links_lead_to_files_and_headings(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name) if name else path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), re.M)
            assert anchor in map(slug, headings), target


def test_every_page_is_in_the_site():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    pages = {page for entry in settings["nav"] for page in entry.values()}
    others = {"config-reference.md", "changelog.md", "lab/README.md"}
    assert {path.name for path in DOCS} | others == pages


def test_the_laboratory_notes_are_listed_in_their_contents():
    contents = (ROOT / "docs/lab/README.md").read_text("utf-8")
    links = sorted(re.findall(r"^\| \[[^\]]+\]\(([^)]+)\)", contents, re.MULTILINE))
    assert links == [path.name for path in NOTES if path.name != "README.md"]


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md"])
def test_the_tree_names_every_part_of_the_library(name):
    text = (ROOT / name).read_text("utf-8")
    parts = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in LIBRARY.iterdir()
        if not path.name.startswith("__")
    }
    assert not {part for part in parts if part not in text}


@pytest.mark.parametrize("name", ["README.md", *PAGES_OF_CODE])
def test_files_of_code_exist(name):
    text = (ROOT / name).read_text("utf-8")
    paths = set(re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|smk|yaml))`", text))
    places = [ROOT, LIBRARY]
    assert paths
    assert not {p for p in paths if not any((at / p).exists() for at in places)}


def test_results_fit_on_one_page():
    assert len((ROOT / "docs/results.md").read_text("utf-8").splitlines()) <= 200


def test_wrong_configurations_are_counted():
    tables = ("VALUES", "KEYS", "SETTINGS", "BASE_MODELS", "FILES")
    # One more: a file that is missing.
    n_cases = 1 + sum(len(getattr(wrong_configs, name)) for name in tables)
    text = (ROOT / "docs/reliability.md").read_text("utf-8")
    assert f"{n_cases} wrong configurations" in " ".join(text.split())

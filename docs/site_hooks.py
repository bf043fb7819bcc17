"""Let the site show the pages of docs/ as they are in the repository.

They link to files outside docs/, which the site does not have. Two of these become
pages; a link to any other becomes its text.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"config/README.md": "config-reference.md", "CHANGELOG.md": "changelog.md"}
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(#[^)]*)?\)")
INSIDE = re.compile(r"\]\((?:\.\./)?docs/")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for source, page in PAGES.items():
        content = INSIDE.sub("](", (ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at those pages, and leave the text of links to other files."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def replaced(link: re.Match[str]) -> str:
        text, target, anchor = link.groups(default="")
        path = (folder / ".." / target).resolve()
        if not path.exists():
            raise FileNotFoundError(f"link to ../{target}, which does not exist")
        if path.is_relative_to(ROOT / "docs"):
            return link[0]
        name = PAGES.get(path.relative_to(ROOT).as_posix())
        return f"[{text}]({name}{anchor})" if name else text

    return OUTSIDE.sub(replaced, markdown)

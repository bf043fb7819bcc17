"""Lets pages of docs/ stand in the site as they stand in the repository.

They link to files outside docs/, which a site does not have. Two of these become pages;
a link to another one becomes its text.
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


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links at those pages, and leave the text of links to other files."""

    def replaced(link: re.Match[str]) -> str:
        text, target, anchor = link.groups(default="")
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"link to ../{target}, which does not exist")
        page = PAGES.get(target)
        return f"[{text}]({page}{anchor})" if page else text

    return OUTSIDE.sub(replaced, markdown)

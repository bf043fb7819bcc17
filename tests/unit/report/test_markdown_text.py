"""Texts of others stay text in pages, tables and cards."""

import pytest
import yaml
from hostile_texts import HOSTILE, Tags, github

from prefdistill.report.comparisons import ablation_page
from prefdistill.report.markdown_tables import markdown_table
from prefdistill.report.markdown_text import code_block, escape
from prefdistill.report.pages import html_page, run_page

ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table"),
    *("thead", "tbody", "tr", "th", "td", "pre", "code", "em", "strong", "ul", "li"),
    *("hr",),
}


def visible(text):
    """What a reader sees of a text: its control characters as escapes."""
    return text.encode("unicode_escape").decode().replace("\\\\", "\\")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_stays_one_cell_of_text(text):
    table = markdown_table([text, "n"], [[text, 1], ["plain", 2]])
    found = Tags(github(table))
    clean = Tags(github(markdown_table(["x", "n"], [["x", 1], ["plain", 2]])))
    assert found.tags == clean.tags
    assert visible(text).strip() in "".join(found.texts)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_stays_text(text):
    found = Tags(github(f"- file: {escape(text)} and more"))
    assert found.tags == ["ul", "li"]
    assert visible(text) in "".join(found.texts)
    # Bare addresses would become links on GitHub.
    assert "://" not in escape(text)
    assert "www." not in escape(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_block_of_code_cannot_be_closed(text):
    found = Tags(github(f"{code_block(text, 'yaml')}\n\nafter"))
    assert found.tags == ["pre", "code", "p"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_holds_no_tag_of_others(text):
    settings = yaml.safe_dump({"scratch": text, text: 1}, sort_keys=False)
    page = run_page(
        [(text, 1, 1.0, 1.0, 1.0, 1.0, 1.0)], {text: text}, {text: "ab"}, settings
    )
    found = Tags(page)
    assert set(found.tags) <= ALLOWED
    assert found.attributes <= {
        *("lang", "charset", "http-equiv", "content", "class", "style"),
    }
    assert "default-src 'none'" in page


def test_markdown_that_someone_forgot_to_escape_makes_no_html_and_no_link():
    found = Tags(html_page("<b>", "\n\n".join(HOSTILE)))
    assert not {"script", "img", "svg", "a", "b"} & set(found.tags)
    assert not {"href", "src", "onerror", "onload"} & found.attributes


@pytest.mark.parametrize("text", HOSTILE)
def test_an_ablation_stays_one_page(text):
    page = ablation_page(text, [], {text: {text: text}}, 1, 1)
    clean = ablation_page("x", [], {"x": {"x": "x"}}, 1, 1)
    assert Tags(github(page)).tags == Tags(github(clean)).tags

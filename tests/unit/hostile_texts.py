"""Texts that try to become HTML, Markdown or YAML, and a parser that finds it."""

from html.parser import HTMLParser

from markdown_it import MarkdownIt

HOSTILE = [
    "<script>document.title=1337</script>",
    "<img src=x onerror=alert(1)>.csv",
    "x\n```\n\n<script>canary()</script>\n\n```",
    "``````\n<b>",
    "~~~\n<b>",
    "a | b\\| c",
    "\\",
    "[x](javascript:alert(1)) ![x](http://canary)",
    "<http://canary> https://canary www.canary.org",
    "[x]: http://canary\n\n[x]",
    "`code` *a* __b__ ~~c~~ $d$",
    "&lt;script&gt; &#60;b&#62;",
    "<!-- a --> --> <![CDATA[",
    "# a\n---\nlicense: mit\n---\n",
    "\u202egpj.exe\u2066 \u200b\u2028 \x1b[31m \x00 \r",
    "</pre></code></td></style><style>",
    '"><svg onload=alert(1)>',
]


class Tags(HTMLParser):
    """Collect the tags, attributes and texts of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts = [], set(), []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        self.tags.append("comment")


def github(markdown):
    """Render Markdown with HTML, links and tables, as other viewers do."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)

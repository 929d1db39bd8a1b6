"""What a page makes of a model's text: nothing of it runs, nothing of it is lost.

pytest tests/test_annotate_rendering.py
"""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from posttrain.annotate.rendering import as_html, changes

OURS = {
    *("p br hr strong em s code pre ul ol li blockquote table thead tbody tr th td".split()),
    *("h1 h2 h3 h4 h5 h6".split()),
}
XSS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "<javascript:alert(1)>",
    "[x]: javascript:alert(1)\n\n[x]",
    "```html\n</code></pre><script>alert(1)</script>\n```",
    "`</code><script>alert(1)</script>`",
    "| a |\n|---|\n| <iframe src=javascript:alert(1)> |",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    '" onmouseover="alert(1)',
    "</textarea><script>alert(1)</script>",
    "<style>body{display:none}</style>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "```js onload=alert(1)\nx\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "\x00<scr\x00ipt>alert(1)</script>",
]


class Tags(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember what stands there."""
        self.tags.add(tag)
        self.attributes |= set(attrs)


def seen(text: str) -> Tags:
    tags = Tags()
    tags.feed(as_html(text))
    return tags


@pytest.mark.parametrize("text", XSS)
def test_no_tag_and_no_address_of_a_model_gets_into_the_page(text: str) -> None:
    tags = seen(text)
    assert tags.tags <= OURS
    assert {name for name, _ in tags.attributes} <= {"start", "style"}
    for name, value in tags.attributes:
        if name == "style":
            assert re.fullmatch(r"text-align:(left|right|center)", value or "")


@settings(max_examples=300, deadline=None)
@given(st.text("<>&\"'`|[]()!*_#-~ \nabjs:/=\\x", max_size=60))
@example("<script>")
def test_whatever_a_model_writes_makes_tags_of_ours_alone(text: str) -> None:
    tags = seen(text)
    assert tags.tags <= OURS
    assert {name for name, _ in tags.attributes} <= {"start", "style"}


def test_code_tables_and_lines_are_shown_as_people_expect() -> None:
    assert "<pre><code" in as_html("```python\nx = 1\n```")
    assert "<table>" in as_html("| a | b |\n|---|---|\n| 1 | 2 |")
    assert as_html("one\ntwo").count("<br") == 1
    assert "שלום" in as_html("שלום") and "你好" in as_html("你好")


@settings(max_examples=200, deadline=None)
@given(st.text("ab \n", max_size=40), st.text("ab \n", max_size=40))
def test_a_diff_holds_both_texts(before: str, after: str) -> None:
    found = changes(before, after)
    assert "".join(text for kind, text in found if kind != "new") == before
    assert "".join(text for kind, text in found if kind != "gone") == after


def test_a_long_edit_is_shown_whole() -> None:
    assert changes("a " * 20_000, "b " * 20_000) == [
        ("gone", "a " * 20_000),
        ("new", "b " * 20_000),
    ]

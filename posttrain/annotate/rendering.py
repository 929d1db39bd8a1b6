"""Responses as a page shows them: Markdown without anything that could run, and edits as a diff.

A response is untrusted text. HTML in it is shown as text, links and images are not made, so that
what comes out holds no tag and no attribute of the model's own.

    as_html("**a** <script>")        # <p><strong>a</strong> &lt;script&gt;</p>
    changes("a b c", "a x c")        # [("same", "a "), ("gone", "b"), ("new", "x"), …]
"""

import re
from difflib import SequenceMatcher
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml

Change = tuple[Literal["same", "gone", "new"], str]
LONGEST_DIFF = 6_000
"""Words of two texts together beyond which an edit is shown whole, as gone and new."""
_MARKDOWN = (
    MarkdownIt("commonmark", {"html": False, "breaks": True})
    .enable(["table", "strikethrough"])
    .disable(["html_block", "html_inline", "link", "image", "autolink", "reference", "entity"])
)
# The name of a block's language would be an attribute of the model's own words.
_MARKDOWN.add_render_rule(
    "fence",
    lambda self, tokens, place, options, env: (
        f"<pre><code>{escapeHtml(tokens[place].content)}</code></pre>\n"
    ),
)
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def as_html(text: str) -> str:
    """A response as HTML of our own tags alone: paragraphs, lists, tables, code."""
    return str(_MARKDOWN.render(text))


def changes(before: str, after: str) -> list[Change]:
    """What an edit changes, word by word; the texts of `same` and `new` together are the edit."""
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    if before == after:
        return [("same", before)] if before else []
    if len(old) + len(new) > LONGEST_DIFF:
        return [("gone", before), ("new", after)]
    found: list[Change] = []
    for kind, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(("same", "".join(old[i:j])))
            continue
        if j > i:
            found.append(("gone", "".join(old[i:j])))
        if m > k:
            found.append(("new", "".join(new[k:m])))
    return found

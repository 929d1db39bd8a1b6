"""Cleaning rules: plain functions, one row a call, switched on by name in `pipeline.yaml`.

A rule answers with the row as it came (kept), a changed row (modified) or `Drop(reason)`. It
changes assistant turns only. To add one, write a function here and list its name under
`clean: rules:`. Code between backticks is left as it is by the rules that change style.

    strip_emoji(row)
"""

import functools
from collections.abc import Callable
from pathlib import Path

import regex
import yaml

from posttrain.curation import Drop, map_assistant
from posttrain.rows import Example

OPENINGS = Path(__file__).with_name("openings.yaml")

CODE = regex.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", regex.DOTALL)
EMOJI = regex.compile(
    r"[ \t]?(?:\p{Regional_Indicator}{2}"
    r"|[0-9#*]\uFE0F?\u20E3"
    r"|(?:\p{Emoji_Presentation}|\p{Emoji}\uFE0F)\p{Emoji_Modifier}?"
    r"(?:\u200D\p{Extended_Pictographic}\uFE0F?\p{Emoji_Modifier}?)*)"
)
# Two letters before the mark: `n!` and `5!` are factorials.
EXCLAMATION = regex.compile(r"(?<=\p{L}{2})!+(?=\s|$)")
CONTROL_TOKEN = regex.compile(r"<\|[a-zA-Z0-9_]+\|>")
# How two, three and four bytes of UTF-8 look then; the second class is every byte above 7F.
TAIL = r"[\u0080-\u00BF\u0152-\u2122]"
MOJIBAKE = regex.compile(rf"(?:[\u00C2\u00C3]{TAIL}|\u00E2{TAIL}{{2}}|\u00F0{TAIL}{{3}})+")

# What names or opens up a person's accounts. Cards are checked by their last digit, so that a long
# number of another kind stays.
EMAIL = regex.compile(r"\b[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,4}[a-zA-Z]{2,24}\b")
PHONE = regex.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]\d{2,8}){1,4}"
    r"|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"
)
KEY = regex.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
)
KEY_STARTS = ("sk-", "AKIA", "eyJ")
CARD = regex.compile(r"(?<![\w.-])(?:\d{4}[ -]?){3}\d{1,7}(?![\w-])")
TWO_DIGITS = regex.compile(r"\d\d")
PARTED_DIGITS = regex.compile(r"\d\d[ .-]\d\d")


def strip_emoji(row: Example) -> Example:
    """Remove emoji, with the blank before each, from prose."""
    return map_assistant(row, lambda text: text if text.isascii() else _in_prose(text, _no_emoji))


def calm_exclamations(row: Example) -> Example:
    """Leave each answer its first exclamation mark; later ones become full stops."""
    return map_assistant(row, _calm)


def drop_boilerplate_opening(row: Example) -> Example:
    """Remove an opening that says nothing (`openings.yaml`), unless it is the whole answer."""
    return map_assistant(row, _without_opening)


def fix_mojibake(row: Example) -> Example:
    """Undo UTF-8 that was read as Windows-1252."""
    return map_assistant(
        row, lambda text: text if text.isascii() else MOJIBAKE.sub(_decode_again, text)
    )


def mask_pii(row: Example) -> Example:
    """Put a label in the place of e-mail addresses, phone and card numbers, and keys, in prose."""
    return map_assistant(row, lambda text: _in_prose(text, _masked))


def drop_control_tokens(row: Example) -> Example | Drop:
    """Drop dialogs that hold a chat template's control token as text, in any turn."""
    if any("<|" in m.content and CONTROL_TOKEN.search(m.content) for m in row.messages):
        return Drop("control token in the text")
    return row


def drop_empty(row: Example) -> Example | Drop:
    """Drop dialogs with an assistant turn that neither says nor calls anything."""
    if any(
        m.role == "assistant" and not m.content.strip() and not m.tool_calls for m in row.messages
    ):
        return Drop("empty answer")
    return row


def _in_prose(text: str, change: Callable[[str], str]) -> str:
    if "`" not in text:
        return change(text)
    parts = CODE.split(text)
    return "".join(part if place % 2 else change(part) for place, part in enumerate(parts))


def _no_emoji(prose: str) -> str:
    return EMOJI.sub("", prose)


def _without_opening(text: str) -> str:
    found = _opening_pattern().match(text)
    return text[found.end() :] if found else text


def _masked(prose: str) -> str:
    # What each of them cannot do without is looked for first: that takes next to no time.
    numbers = TWO_DIGITS.search(prose) is not None
    if numbers:
        prose = CARD.sub(lambda one: "[card]" if _is_card(one.group()) else one.group(), prose)
    if "@" in prose:
        prose = EMAIL.sub("[email]", prose)
    if numbers and PARTED_DIGITS.search(prose):
        prose = PHONE.sub("[phone]", prose)
    if any(start in prose for start in KEY_STARTS) or ("gh" in prose and "_" in prose):
        prose = KEY.sub("[key]", prose)
    return prose


def _is_card(text: str) -> bool:
    """The checksum that every card number has (Luhn's)."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = (2 * d if place % 2 else d for place, d in enumerate(reversed(digits)))
    return 13 <= len(digits) <= 19 and sum(d // 10 + d % 10 for d in doubled) % 10 == 0


def _calm(text: str) -> str:
    if "!" not in text:
        return text
    num_seen = 0

    def calm_one(match: regex.Match[str]) -> str:
        nonlocal num_seen
        num_seen += 1
        return "!" if num_seen == 1 else "."

    return _in_prose(text, lambda prose: EXCLAMATION.sub(calm_one, prose))


@functools.cache
def _opening_pattern() -> regex.Pattern[str]:
    phrases = sorted(yaml.safe_load(OPENINGS.read_text()), key=len, reverse=True)
    either = "|".join(regex.escape(phrase) for phrase in phrases)
    return regex.compile(rf"\A\s*(?:(?:{either})[!.,:]+\s+(?=\S))+", regex.IGNORECASE)


def _decode_again(match: regex.Match[str]) -> str:
    text: str = match.group()
    try:
        # Windows-1252 leaves five bytes undefined; readers map those to the same code point.
        raw = b"".join(
            character.encode("latin-1" if "\x80" <= character <= "\x9f" else "cp1252")
            for character in text
        )
        return raw.decode()
    except UnicodeError:
        return text

"""Where prompts come from: files, recipes' hooks, and texts cut into pieces. Loads nothing heavy.

parse(TextSource, {"type": "texts", "recipe": "code", "path": "stdlib", "num": 500}, "a plan")
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from posttrain.settings.base import Settings

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]

STDLIB = "stdlib"
"""In place of a path: the standard library of the running Python."""


class FileSource(Settings):
    """Rows of a file in the workspace."""

    type: Literal["file"] = "file"
    path: str
    """A .jsonl or .parquet file."""


class HookSource(Settings):
    """Prompts that a recipe's `prompts` hook yields."""

    type: Literal["hook"]
    recipe: Name
    num: Annotated[int, Field(ge=1)]
    """How many prompts to ask for, before any are held out."""
    options: dict[str, Any] = {}
    """Passed to the hook as they stand."""


class TextSource(Settings):
    """Random pieces of texts, for a recipe's `synthesize` to make something of: each piece is a
    row whose user turn and `reference.text` it is.
    """

    type: Literal["texts"]
    recipe: Name
    path: str
    """A .jsonl or .parquet file of `{"text": …}`, a text file, a folder of such files, or `stdlib`:
    the standard library of the running Python."""
    num: Annotated[int, Field(ge=1)]
    """Most pieces, before any are held out."""
    unit: Literal["passage", "function", "document", "repository"] = "passage"
    """Words in a row, a function or class of Python, a whole text, or a whole package of Python:
    a folder right below the path, whose files are `reference.files`."""
    longest: Annotated[int, Field(ge=1)] = 300
    """Words of a passage, at most. A function, document or repository of more is left out."""


def _source_type(value: Any) -> str:
    """A source without a type is a file."""
    if isinstance(value, FileSource | HookSource | TextSource):
        return value.type
    return str(value.get("type", "file")) if isinstance(value, dict) else "file"


Source = Annotated[
    Annotated[FileSource, Tag("file")]
    | Annotated[HookSource, Tag("hook")]
    | Annotated[TextSource, Tag("texts")],
    Discriminator(_source_type),
]

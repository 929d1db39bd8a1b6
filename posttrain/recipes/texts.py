"""Pieces of texts, drawn at random: passages, Python functions, whole documents.

Knows files, folders and the standard library, and how a text is cut; a draw depends on the seed and
the texts alone.

    drawn(TextSource(type="texts", recipe="code", path="stdlib", num=9, unit="function"), path, 1)
"""

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from posttrain.errors import BadInput
from posttrain.rows import Document, Message, Prompt
from posttrain.settings.sources import STDLIB, TextSource
from posttrain.tables import read_table

TABLES = (".jsonl", ".parquet")
PER_FILE = 6
"""Functions taken of one file of a folder: more would be near each other."""
LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "turtledemo")
"""Folders of the standard library without code worth a look."""


def drawn(source: TextSource, path: Path, seed: int) -> list[Prompt]:
    """At most `source.num` different pieces, each a row that only `synthesize` reads.

    Args:
        source: What is wanted.
        path: Where the texts lie; of the standard library `standard_library()`.
        seed: Of the draw.

    Raises:
        BadInput: there is no text, or none that is short enough.
    """
    rng = random.Random(f"texts/{seed}")
    if source.unit == "repository":
        return _repositories(path, source, rng)
    found: dict[str, str] = {}
    for place, text in _texts(path, source, rng):
        for number, piece in enumerate(_pieces(text, source, rng)):
            if piece.strip():
                found.setdefault(piece, f"{place}#{number}")
        # Folders of code hold far more functions than are wanted; their files come in random order.
        if source.unit == "function" and len(found) >= source.num:
            break
    if not found:
        raise BadInput(f"{path}: no {source.unit} of at most {source.longest} words in it")
    chosen = list(found.items())
    if source.unit != "function":
        rng.shuffle(chosen)
    return [
        Prompt(
            prompt=(Message(role="user", content=text),),
            capability=source.recipe,
            source=f"texts/{place}",
            reference={"text": text},
        )
        for text, place in chosen[: source.num]
    ]


def standard_library() -> Path:
    """The folder of the running Python's own modules."""
    return Path(sysconfig.get_paths()[STDLIB])


def passages(text: str, longest: int) -> list[str]:
    """A text cut after every `longest` words."""
    words = text.split(" ")
    return [" ".join(words[at : at + longest]) for at in range(0, len(words), longest)]


def functions(code: str) -> list[str]:
    """The source of each function and class on a Python file's top level; of none that cannot
    be parsed.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    lines = code.splitlines(keepends=True)
    return [
        "".join(lines[node.lineno - 1 : node.end_lineno]).rstrip()
        for node in tree.body
        if isinstance(node, kinds)
    ]


def _repositories(path: Path, source: TextSource, rng: random.Random) -> list[Prompt]:
    """Folders of Python files right below a path, short enough and in random order."""
    found = []
    for folder in sorted(child for child in path.iterdir() if child.is_dir()):
        if source.path == STDLIB and folder.name in LEFT_OUT:
            continue
        files = {
            file.relative_to(path).as_posix(): _read(file) for file in sorted(folder.rglob("*.py"))
        }
        if files and sum(len(code.split()) for code in files.values()) <= source.longest:
            found.append((folder.name, files))
    if not found:
        raise BadInput(f"{path}: no folder of Python files of at most {source.longest} words in it")
    rng.shuffle(found)
    return [
        Prompt(
            prompt=(Message(role="user", content=f"the repository {name}"),),
            capability=source.recipe,
            source=f"texts/{name}",
            reference={"text": f"the repository {name}", "files": files},
        )
        for name, files in found[: source.num]
    ]


def _texts(path: Path, source: TextSource, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Texts with a name; files of a folder come in random order."""
    if path.is_file() and path.suffix in TABLES:
        table = read_table(path, Document)
        table.check_share(0.0, "fix them")
        yield from ((row.id, row.text) for row in table.rows)
        return
    if path.is_file():
        yield path.name, _read(path)
        return
    library = source.path == STDLIB
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".pyc")
    if source.unit == "function":
        files = [file for file in files if file.suffix == ".py"]
    if library:
        files = [f for f in files if not set(f.relative_to(path).parts) & set(LEFT_OUT)]
    rng.shuffle(files)
    for file in files:
        name = file.relative_to(path).as_posix()
        if file.suffix in TABLES and not library:
            yield from ((f"{name}:{row.id}", row.text) for row in read_table(file, Document).rows)
        elif text := _read(file):
            yield name, text


def _read(path: Path) -> str:
    """The text of a file; empty where it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def _pieces(text: str, source: TextSource, rng: random.Random) -> list[str]:
    if source.unit == "passage":
        return passages(text, source.longest)
    whole = functions(text) if source.unit == "function" else [text]
    short = [piece for piece in whole if len(piece.split()) <= source.longest]
    if source.unit == "function" and len(short) > PER_FILE:
        return rng.sample(short, PER_FILE)
    return short

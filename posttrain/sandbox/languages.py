"""Languages that programs may be written in, and how one is run or checked inside.

Knows interpreters and their flags. Knows nothing of namespaces and limits.

    spoken("perl", check=True, python=Path("/usr/bin/python3"))
"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from posttrain.errors import BadInput


class Language(NamedTuple):
    """How programs of a language are run and checked."""

    interpreter: str
    check: tuple[str, ...] = ()
    """Arguments that check the syntax alone."""
    suffix: str = ""
    """That the program's file must have."""
    reserves: bool = False
    """Whether it reserves more address space than it uses, so that a limit on that would end it."""


LANGUAGES = {
    "bash": Language("bash", check=("-n",)),
    "javascript": Language("node", check=("--check",), suffix=".js", reserves=True),
    "perl": Language("perl", check=("-c",)),
    "php": Language("php", check=("-l",)),
    "python": Language(
        "", check=("-c", "import ast, sys; ast.parse(open(sys.argv[1]).read())"), suffix=".py"
    ),
    "ruby": Language("ruby", check=("-c",)),
}
"""Python is the interpreter that posttrain runs with, or `sandbox.python`; the others are those on
the PATH."""
PYTHON_FLAGS = ("-s", "-P", "-B", "-X", "utf8")
LIBRARIES = ("/usr/share/perl", "/usr/share/ruby", "/usr/share/php", "/etc/alternatives")


class Spoken(NamedTuple):
    """A language as it is spoken on this machine."""

    command: tuple[str, ...]
    """What runs inside."""
    program: str
    """Where it finds the program."""
    bound: tuple[str, ...]
    """Words for bubblewrap that show the interpreter inside."""
    reserves: bool
    """See `Language`."""


def spoken_outside(language: str, check: bool, python: Path, program: str) -> list[str] | None:
    """The command that runs a program without bubblewrap; None where the interpreter is missing."""
    how = spoken(language, check, python)
    if how is None:
        return None
    name = LANGUAGES[language].interpreter
    interpreter = str(python) if language == "python" else shutil.which(name) or name
    return [interpreter, *how.command[1:-1], program]


def spoken(language: str, check: bool, python: Path) -> Spoken | None:
    """How a program is run, or only checked; None where the interpreter is missing.

    Raises:
        BadInput: an unknown language.
    """
    known = LANGUAGES.get(language)
    if known is None:
        raise BadInput(f"sandbox: no language {language!r}; known: {', '.join(LANGUAGES)}")
    program = f"/program{known.suffix}"
    if language == "python":
        flags = (*PYTHON_FLAGS, *known.check) if check else PYTHON_FLAGS
        return Spoken((f"/python/bin/{python.name}", *flags, program), program, (), False)
    found = shutil.which(known.interpreter)
    if found is None:
        return None
    inside = f"/interpreter/{known.interpreter}"
    bound = ["--dir", "/interpreter", "--ro-bind", os.path.realpath(found), inside]
    for folder in LIBRARIES:
        bound += ["--ro-bind-try", folder, folder]
    flags = known.check if check else ()
    return Spoken((inside, *flags, program), program, tuple(bound), known.reserves)

"""The house is in order: no hidden import of our own, no overlong file, a true file tree."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def sources() -> list[Path]:
    return sorted((ROOT / "posttrain").rglob("*.py"))


def test_no_import_of_our_own_stands_inside_a_function() -> None:
    hidden = []
    for path in sources():
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                hidden += [f"{path}:{name}" for name in names if name.startswith("posttrain")]
    assert not hidden


def test_every_file_says_what_it_is_and_none_is_too_long() -> None:
    for path in sources():
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert text.count("\n") <= 400, f"{path} has more than 400 lines"


def test_the_readme_names_every_module_and_folder() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = readme.partition("## What is where")[2]
    for path in sorted((ROOT / "posttrain").iterdir()):
        if path.name.startswith("__") or path.name == "py.typed":
            continue
        name = f"{path.name}/" if path.is_dir() else path.name
        assert name in tree, f"README's tree lacks posttrain/{name}"
    for name in re.findall(r"([\w]+\.py)", tree):
        assert (ROOT / "posttrain" / name).is_file(), f"README's tree names {name}"

"""Which file of a repository imports which, by Python's own grammar.

importers({"a.py": "import b", "b.py": ""})["b.py"]
"""

import ast
from collections.abc import Mapping
from pathlib import PurePosixPath


def importers(files: Mapping[str, str]) -> dict[str, list[str]]:
    """Each file with the others that import it, by path; one that cannot be parsed imports none."""
    modules = {_module(path): path for path in files}
    found: dict[str, set[str]] = {path: set() for path in files}
    for path, code in files.items():
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for name in _imported(tree, path):
            target = modules.get(name)
            if target is not None and target != path:
                found[target].add(path)
    return {path: sorted(others) for path, others in found.items()}


def _module(path: str) -> str:
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.Module, path: str) -> set[str]:
    """Every module that a file may import: of `from a import b` both a and a.b."""
    package = PurePosixPath(path).parent.parts
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*up, *(node.module.split(".") if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)}
    return names

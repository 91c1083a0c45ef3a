"""The package's own files as syntax trees, and what they import."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "atoll"


def python_files(*folders: Path) -> list[Path]:
    """Our Python files under these folders, generated ones left out."""
    found = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [path for path in found if not path.stem.endswith("_pb2")]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    """`src/atoll/core/rng.py` is `atoll.core.rng`; a package is named after its folder."""
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: ast.AST, name: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in `module`, whose own name is `name`.

    `from a import b` counts as `a.b`, since b may be a module.
    """
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - is_package
                above = name.split(".")[: len(name.split(".")) - up]
                base = ".".join([*above, base] if base else above)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def is_stdlib(dotted: str) -> bool:
    return dotted.partition(".")[0] in sys.stdlib_module_names

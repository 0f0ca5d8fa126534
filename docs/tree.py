"""Writes the tree of packages: README.md has a line a package, docs/architecture.md their modules too.

make docs
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
README, ARCHITECTURE = ROOT / "README.md", ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree: written by docs/tree.py -->", "<!-- end of tree -->"
# As one uses them, then what they build on; a new package comes last.
ORDER = (
    "searching",
    "training",
    "deploying",
    "measuring",
    "reporting",
    "sweeping",
    "importing",
    "network",
    "datasets",
    "modelfile",
    "native",
)
WIDTH = 120  # of a line
COLUMN = 20  # where descriptions begin: behind the longest name, indented twice


def with_tree(text: str, *, modules: bool) -> str:
    """A page with its tree written again."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    tree = "\n".join(describe(ROOT / "dmsflow", modules=modules))
    return f"{before}{BEGIN}\n\n```text\n{tree}\n```\n\n{END}{after}"


def describe(folder: Path, depth: int = 0, *, modules: bool) -> Iterator[str]:
    """Lines on a package and those inside it: its name and purpose, and its modules but for `_private` ones."""
    purpose = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    yield f"{'  ' * depth}{folder.name}/".ljust(COLUMN) + purpose.partition("\n")[0].removesuffix(".")
    if modules:
        names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
        indent = " " * COLUMN
        yield from textwrap.wrap("  ".join(names), WIDTH, initial_indent=indent, subsequent_indent=indent)
    for path in sorted(folder.glob("*/__init__.py"), key=_place):
        yield from describe(path.parent, depth + 1, modules=modules)


def _place(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


if __name__ == "__main__":
    for page in (README, ARCHITECTURE):
        page.write_text(with_tree(page.read_text("utf-8"), modules=page == ARCHITECTURE), encoding="utf-8")

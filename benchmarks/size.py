"""Lines and lines of code of each package of dmsflow, and of its core, which has a limit.

make size     # prints the table
make check    # fails where the core is larger than its limit
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

import script

PACKAGE = Path(__file__).parent.parent / "dmsflow"
CORE = ("root", "network", "datasets", "deploying", "training", "searching")
# Lines of code. It was 5,400 when the packages were made; the recipe, many processes, Python functions, file
# sizes, slopes, what keeps damaged and hostile files out, six hundred lines of operations, weights of 8 bits, a fault of
# oneDNN's, the names that users' modules have, runs that go on from other files than before, groups, plug-ins and
# arrays that break their contract, and times of int8 stems came after.
CORE_LIMIT = 8_040
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="print nothing, and fail where the core is too large")
    lines, code = count_packages(PACKAGE)
    core = sum(code[name] for name in CORE)
    if parser.parse_args().check:
        sys.exit(describe_excess(core))
    rows = [(name, lines[name], code[name]) for name in sorted(lines)]
    rows += [("sum", lines.total(), code.total()), ("core", sum(lines[name] for name in CORE), core)]
    print(f"{'package':12} {'lines':>7} {'code':>7}")
    for name, *counts in rows:
        print(f"{name:12} {counts[0]:7,} {counts[1]:7,}")
    print(f"core: {', '.join(CORE)}; at most {CORE_LIMIT:,} lines of code")


def describe_excess(core: int) -> str | None:
    """What `make check` says of a core of so many lines of code; None where it is within the limit."""
    if core <= CORE_LIMIT:
        return None
    return (
        f"core: {core:,} lines of code, {core - CORE_LIMIT:,} more than the {CORE_LIMIT:,} allowed; "
        "shorten it, or say why it must be larger (make size)"
    )


def count_packages(package: Path) -> tuple[Counter[str], Counter[str]]:
    """Lines, and lines of code, of each package in a folder; `root` is the folder's own files."""
    lines, code = Counter[str](), Counter[str]()
    for path in package.rglob("*.py"):
        name, *rest = path.relative_to(package).parts
        text = path.read_text(encoding="utf-8")
        lines[name if rest else "root"] += len(text.splitlines())
        code[name if rest else "root"] += count_code(text)
    return lines, code


def count_code(text: str) -> int:
    """Lines of Python with a token on them that is neither a comment nor part of a docstring."""
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            code.difference_update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return len(code)


if __name__ == "__main__":
    script.run(main)

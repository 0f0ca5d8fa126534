"""What `make size` counts, and what `make check` says of a core that is too large."""

from __future__ import annotations

import runpy
from pathlib import Path

from studies import BENCHMARKS

SIZE = runpy.run_path(str(BENCHMARKS / "size.py"))
SOURCE = '''\
"""A module.

Its docstring is no code.
"""
# nor is a comment

def add(a, b):  # one line of code
    """Nor is this."""
    text = """a string
    is code"""
    return (
        a + b
    )
'''


def test_code_is_what_is_neither_blank_nor_comment_nor_docstring() -> None:
    assert SIZE["count_code"](SOURCE) == 6


def test_every_file_counts_for_its_package(tmp_path: Path) -> None:
    for name in ("cli.py", "deploying/check.py", "deploying/exporters/lce.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SOURCE)
    lines, code = SIZE["count_packages"](tmp_path)
    assert lines == {"root": 13, "deploying": 26}
    assert code == {"root": 6, "deploying": 12}


def test_a_core_that_is_too_large_is_one_line() -> None:
    describe, limit = SIZE["describe_excess"], SIZE["CORE_LIMIT"]
    assert describe(limit) is None
    assert describe(limit + 12) == (
        f"core: {limit + 12:,} lines of code, 12 more than the {limit:,} allowed; "
        "shorten it, or say why it must be larger (make size)"
    )


def test_the_core_is_packages_that_exist() -> None:
    assert set(SIZE["CORE"]) <= set(SIZE["count_packages"](SIZE["PACKAGE"])[0])

"""What holds for every line of the sources: which environment variables they read, and how they are formatted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SLOW

from dmsflow.plugin import FOLDERS

ROOT = Path(__file__).parent.parent
PYTHON = [ROOT / "hatch_build.py", *sorted((ROOT / "dmsflow").rglob("*.py"))]
CPP = sorted(path for path in (ROOT / "dmsflow").rglob("*") if path.suffix in (".c", ".cc", ".h"))


def variables_read(text: str) -> Iterator[str]:
    """Names of the environment variables that Python code reads, each of them a constant of the code."""
    tree = ast.parse(text)
    values: dict[str, ast.expr] = {}  # constants, and what a comprehension goes through
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = node.value
        elif isinstance(node, ast.comprehension) and isinstance(node.target, ast.Name):
            values[node.target.id] = node.iter
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=mapping, slice=name, ctx=ast.Load()) if is_environ(mapping):
                pass
            case ast.Call(func=ast.Attribute(value=mapping, attr="get"), args=[name, *_]) if is_environ(mapping):
                pass
            case ast.Compare(left=name, ops=[ast.In() | ast.NotIn()], comparators=[mapping]) if is_environ(mapping):
                pass
            case ast.Call(func=ast.Attribute(attr="getenv") | ast.Name(id="getenv"), args=[name, *_]):
                pass
            case _:
                continue
        while isinstance(name, ast.Name) and name.id in values:
            name = values[name.id]
        found = ast.literal_eval(name)  # ValueError: the code does not say which variable is read
        yield from [found] if isinstance(found, str) else found


def is_environ(node: ast.expr) -> bool:
    return getattr(node, "attr", getattr(node, "id", None)) == "environ"


def test_every_way_to_read_a_variable_is_found() -> None:
    text = """
import os
from os import environ, getenv
PASSED_ON = ("C", "D")
NAME = "E"
os.environ["WRITTEN"] = "1"
everything = {**os.environ, "GIVEN": "1"}
read = os.environ.get("A"), os.environ["B"], {n: os.environ[n] for n in PASSED_ON}, NAME in os.environ
read = os.getenv("F", "default"), getenv("G"), environ["H"]
"""
    assert set(variables_read(text)) == set("ABCDEFGH")
    with pytest.raises(ValueError):
        list(variables_read("import os\n\ndef read(name):\n    return os.environ[name]\n"))


def test_every_environment_variable_is_documented() -> None:
    read: dict[str, set[str]] = {}
    for path in (*PYTHON, *CPP):
        text = path.read_text("utf-8")
        names = variables_read(text) if path in PYTHON else re.findall(r'getenv\((?:"(\w+)")?', text)
        room = path.relative_to(ROOT).with_suffix("").parts[:2]
        for name in names:
            read.setdefault(name, set()).add(room[-1])
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", (ROOT / "docs" / "environment.md").read_text("utf-8"), re.M)
    assert {name: set(re.findall(r"\w+", rooms)) for name, rooms in rows} == read, "docs/environment.md names others"


def test_the_formatter_skips_no_line() -> None:
    marker = re.compile(r"#\s*fmt:\s*(skip|off)")
    for folder in ("dmsflow", "tests", "benchmarks", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not marker.search(path.read_text("utf-8")), path


@pytest.mark.parametrize("name", SLOW)
def test_what_is_slow_is_there(name: str) -> None:
    path, _, test = name.partition("::")
    assert (ROOT / "tests" / path).exists()
    assert not test or f"\ndef {test}(" in (ROOT / "tests" / path).read_text("utf-8")


def test_no_function_of_two_packages_has_a_name_that_says_nothing() -> None:
    """Plug-ins of a kind share their contract's names; nothing else is called just `of`, `run` or `load`."""
    folders = [ROOT / "dmsflow" / folder for folder in FOLDERS.values()]
    found = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in PYTHON[1:]
        if path.parent not in folders and path.stem != "api"  # whose names are read behind the package's
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name in ("of", "run", "load")
    ]
    assert found == []

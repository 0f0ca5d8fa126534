"""Imports go down the floors, a stage never imports another, and each framework has its home."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import dmsflow

PACKAGE = Path(dmsflow.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Lowest first: packages, and modules of the root.
FLOORS = (
    ("errors", "files", "terminal", "environment", "settings", "preset", "plugin", "native"),
    ("network", "datasets", "modelfile"),
    ("manifest", "importing"),
    ("deploying",),
    ("training", "measuring"),
    ("searching",),
    ("reporting", "doctor"),
    ("options",),
    ("sweeping",),
    ("api", "cli", "__main__"),
)
STAGES = ("searching/search", "training/train", "deploying/export", "measuring/bench")
HOMES = {
    # datasets/_torchvision imports torchvision's readers, which bring torch; sweeping/claims has torchrun's store.
    "torch": {
        "training",
        "searching",
        "importing/module",
        "importing/steps",
        "importing/binarised",
        "datasets/_torchvision",
        "sweeping/claims",
    },
    "torchvision": {"datasets/_torchvision"},
    "onnx": {"deploying/exporters/_onnx_graph", "modelfile/onnx_reader", "modelfile/runners/onnxruntime"},
    "onnxruntime": {"modelfile/runners/onnxruntime", "deploying/exporters/onnx_int8"},
    "flatbuffers": {"deploying/exporters/_flatbuffer"},
    "tensorflow": {"deploying/exporters/official/child"},
    "larq_compute_engine": {"deploying/exporters/official/child"},
    "click": {"cli", "options", "sweeping/command"},
    "matplotlib": {"reporting/figures"},
    "rich": {"terminal"},
    "sklearn": {"datasets/digits"},
    "submitit": {"sweeping/launch"},
    # environment asks git for the commit; doctor tries native libraries where they can crash alone.
    "subprocess": {
        "environment",
        "doctor",
        "deploying/exporters/official/convert",
        "measuring/devices",
        "modelfile/runners/_witness",
        "sweeping/work",
    },
}


def short(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def room(path: Path) -> str:
    """The floor table's word for a file."""
    return short(path).partition("/")[0]


def floor(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, with its full name."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} has a relative import: write the whole name"
            if node.module == "dmsflow" or (PACKAGE.parent / node.module.replace(".", "/")).is_dir():
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def rooms_read(path: Path) -> set[str]:
    """Rooms of dmsflow that a file imports from, other than its own."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("dmsflow.")}
    return {name for name in names if name != room(path) and not name.startswith("__")}


def test_every_file_has_a_floor() -> None:
    assert {room(path) for path in FILES} - {"__init__"} == {name for names in FLOORS for name in names}


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports_go_down(path: Path) -> None:
    if room(path) == "__init__":
        loaded = [node for node in ast.parse(path.read_text("utf-8")).body if not isinstance(node, ast.If)]
        assert not any(
            "dmsflow" in ast.unparse(node) for node in loaded if isinstance(node, ast.Import | ast.ImportFrom)
        )
        return
    upward = {name for name in rooms_read(path) if floor(name) > floor(room(path))}
    assert not upward, f"{short(path)} imports {sorted(upward)}, which stand on higher floors"
    beside = {name for name in rooms_read(path) if floor(name) == floor(room(path)) and (PACKAGE / name).is_dir()}
    assert not beside, f"{short(path)} imports {sorted(beside)}, which stand beside it"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other(stage: str) -> None:
    others = {f"dmsflow.{other.replace('/', '.')}" for other in STAGES if other != stage}
    assert not others & set(imports(PACKAGE / f"{stage}.py"))


@pytest.mark.parametrize("framework", HOMES)
def test_frameworks_stay_at_home(framework: str) -> None:
    found = {short(path) for path in FILES if any(name.split(".")[0] == framework for name in imports(path))}
    assert {name for name in found if not any(f"{name}/".startswith(f"{home}/") for home in HOMES[framework])} == set()


def test_the_walk_sees_imports_inside_functions(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    import torch.nn\n    from dmsflow import cli\n    from dmsflow.errors import DmsflowError\n"
    )
    assert list(imports(path)) == ["torch.nn", "dmsflow.cli", "dmsflow.errors"]


def test_no_broad_except() -> None:
    """A user's plug-in may raise anything, imported or called, and the command line has a last resort."""
    broad = [
        short(path)
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or {"Exception", "BaseException"} & set(re.findall(r"\w+", ast.unparse(node.type))))
    ]
    assert sorted(set(broad)) == ["cli", "importing/steps", "plugin"]


def test_the_architecture_page_has_the_same_floors() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8")
    written = [
        tuple(re.findall(r"`(\w+)`", row.split("|")[2])) for row in page.splitlines() if re.match(r"\| \d+ \|", row)
    ]
    assert written == [tuple(rooms) for rooms in FLOORS]

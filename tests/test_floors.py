"""Imports go down the floors, a stage never imports another, and each framework has its home."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dmsflow

PACKAGE = Path(dmsflow.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Lowest first. A folder stands for all its files; its __init__ holds only the contract of its files.
FLOORS = (
    ("errors", "progress", "table"),
    ("plugin", "network", "target", "manifest", "settings", "profile", "native"),
    (
        "cost",
        "cycles",
        "probes",
        "deploy",
        "folding",
        "tflite",
        "modelfile",
        "doctor",
        "networks",
        "runners",
        "devices",
        "exporters",
        "datasets",
        "subject",
    ),
    ("binary", "convolution", "cpp", "pooling", "width", "lint", "top1"),
    ("model", "budget", "stopwatch", "prediction", "fitting"),
    ("loss", "checkpoint", "alignment"),
    ("training",),
    ("supernetwork",),
    ("descent", "evolution"),
    ("search", "train", "export", "bench", "profiling", "show", "report", "options"),
    ("cli",),
    ("__main__",),
)
STAGES = ("search", "train", "export", "bench", "profiling")
HOMES = {
    # datasets/_torchvision imports torchvision's readers, which bring torch; search and train only use it.
    "torch": {
        "binary",
        "convolution",
        "cpp",
        "pooling",
        "width",
        "model",
        "budget",
        "loss",
        "checkpoint",
        "training",
        "supernetwork",
        "descent",
        "evolution",
        "search",
        "train",
        "datasets/_torchvision",
    },
    "torchvision": {"datasets/_torchvision"},
    "onnx": {"exporters/_onnx_graph"},
    "onnxruntime": {"runners/onnxruntime"},
    "flatbuffers": {"exporters/_flatbuffer"},
    "tensorflow": {"exporters/_official_child"},
    "larq_compute_engine": {"exporters/_official_child"},
    "click": {"cli", "options"},
    "matplotlib": {"report/figures"},
    "rich": {"progress", "table"},
    "sklearn": {"datasets/digits"},
    # manifest asks git for the commit; doctor tries native libraries where they can crash alone; cycles calls LLVM;
    # TensorFlow stays in a process of its own.
    "subprocess": {
        "manifest",
        "doctor",
        "cycles",
        "exporters/_official",
        "devices/local",
        "devices/_shell",
        "devices/adb",
        "devices/qemu",
        "devices/_emulated",
    },
}


def room(path: Path) -> str:
    """The floor table's word for a file."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def short(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def floor(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, with its full name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import: write the whole name"
            if node.module == "dmsflow" or node.module in {f"dmsflow.{folder}" for folder in folders()}:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                assert node.module
                yield node.module


def folders() -> list[str]:
    return [path.parent.name for path in PACKAGE.glob("*/__init__.py")]


def rooms_read(path: Path) -> set[str]:
    """Rooms of dmsflow that a file imports from, other than its own."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("dmsflow.")}
    return {name for name in names if name != room(path) and any(name in rooms for rooms in FLOORS)}


def test_every_file_has_a_floor() -> None:
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms <= {name for names in FLOORS for name in names}


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports_go_down(path: Path) -> None:
    if room(path) == "__init__":
        assert not list(imports(path)) or set(imports(path)) == {"__future__"}
        return
    upward = {name for name in rooms_read(path) if floor(name) > floor(room(path))}
    assert not upward, f"{short(path)} imports {sorted(upward)}, which stand on higher floors"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other(stage: str) -> None:
    assert not rooms_read(PACKAGE / f"{stage}.py") & (set(STAGES) - {stage})


@pytest.mark.parametrize("framework", HOMES)
def test_frameworks_stay_at_home(framework: str) -> None:
    found = {short(path) for path in FILES if any(name.split(".")[0] == framework for name in imports(path))}
    assert found <= HOMES[framework]


def test_the_walk_sees_imports_inside_functions(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    import torch.nn\n    from dmsflow import cli\n    from dmsflow.errors import DmsflowError\n"
    )
    assert list(imports(path)) == ["torch.nn", "dmsflow.cli", "dmsflow.errors"]


def test_no_broad_except() -> None:
    """A user's plug-in may raise anything, imported or called; nowhere else is every error caught."""
    broad = [
        short(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
    ]
    assert set(broad) == {"plugin"}


def test_the_architecture_page_has_the_same_floors() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8")
    written = [
        tuple(re.findall(r"`(\w+)`", row.split("|")[2])) for row in page.splitlines() if re.match(r"\| \d+ \|", row)
    ]
    assert written == [tuple(rooms) for rooms in FLOORS[:-1]]

"""What is installed, and what each target still lacks."""

from __future__ import annotations

import ast
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dmsflow import __version__, native, plugin
from dmsflow.deploying import target
from dmsflow.environment import EXTRAS, INSTEAD, extra_of, is_installed, version
from dmsflow.errors import DmsflowError
from dmsflow.plugin import PACKAGE

BASE = ("click", "msgspec", "numpy", "rich", "safetensors")


def needed(path: Path) -> list[str]:
    """Modules of extras that a plug-in's file imports, or names in order to look for them.

    What it imports from its own folder is read as well.
    """
    known = {module for modules in EXTRAS.values() for module in modules}
    names = set(_names(path))
    folder = f"dmsflow.{path.parent.relative_to(PACKAGE).as_posix().replace('/', '.')}."
    private = {name.removeprefix(folder).partition(".")[0] for name in names if name.startswith(f"{folder}_")}
    beside = [path.parent / f"{name}.py" for name in sorted(private)]
    found = {name.split(".")[0] for name in names} & known
    return sorted(found.union(*map(needed, beside)))


def _names(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, and its strings."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def lacking(aim: target.Target) -> list[str]:
    """Modules that are missing here for writing the files of a target, and for running them by one of its runners."""
    return [*_absent("exporters", aim.exporter), *min((_absent("runners", name) for name in aim.runners), key=len)]


def _absent(folder: str, name: str) -> list[str]:
    path = plugin.path_of(folder, name)
    modules = needed(path) if path.is_file() else []
    spare = {other for module in modules for other in INSTEAD.get(module, ())}
    return [
        module
        for module in modules
        if module not in spare and not any(map(is_installed, (module, *INSTEAD.get(module, ()))))
    ]


def report() -> tuple[list[tuple[str, str, str]], bool]:
    """Rows (what, state, what to do), and whether all that is installed also works."""
    rows = [("python", platform.python_version(), ""), ("dmsflow", __version__, "")]
    rows += [(module, version(module) or "installed", "") for module in BASE]
    for extra, modules in EXTRAS.items():
        for module in modules:
            if is_installed(module):
                rows.append((f"{module} [{extra}]", version(module) or "installed", ""))
            else:
                rows.append((f"{module} [{extra}]", "absent", f"pip install 'dmsflow[{extra}]'"))
    rows.append(_delegate())
    checks = [_torch_and_torchvision(), _training(), _lce_interpreter()]
    rows += [check for check in checks if check]
    rows += [_target_row(name) for name in target.names()]
    return rows, not any(state == "broken" for _, state, _ in rows)


def _delegate() -> tuple[str, str, str]:
    """LCE's operations for LiteRT, and the kernels that this processor gets; tried in a process of its own."""
    what = "LCE delegate for LiteRT"
    try:
        native.library()
    except DmsflowError as error:
        return what, "absent", str(error).partition("; ")[2]
    done = _run("from dmsflow import native; print(native.kernels())")
    if done.returncode:
        return what, "broken", _last_line(done)
    return what, f"works, {done.stdout.strip()} kernels", ""


def _target_row(name: str) -> tuple[str, str, str]:
    absent = lacking(target.load(name))
    if not absent:
        return f"target {name}", "ready", ""
    extras = ",".join(sorted({extra_of(module) or module for module in absent}))
    return f"target {name}", f"lacks {', '.join(absent)}", f"pip install 'dmsflow[{extras}]'"


def _torch_and_torchvision() -> tuple[str, str, str] | None:
    """A CUDA build of torchvision beside a CPU build of torch fails on import."""
    if not (is_installed("torch") and is_installed("torchvision")):
        return None
    return _works(
        "torch and torchvision together",
        "from dmsflow.datasets import _torchvision; _torchvision.import_torchvision()",
        "install both from the same place, at matching versions",
    )


def _training() -> tuple[str, str, str] | None:
    """The C++ part of training, without which torch's operations do the same, more slowly."""
    if not is_installed("torch"):
        return None
    what = "C++ part of training"
    try:
        native.training()
    except DmsflowError as error:
        return what, "absent", str(error).partition("; ")[2]
    return _works(
        what,
        "from dmsflow.training import fast_ops; assert fast_ops.library()",
        "install dmsflow again, for this system",
    )


def _lce_interpreter() -> tuple[str, str, str] | None:
    if not is_installed("larq_compute_engine"):
        return None
    if int((version("numpy") or "0").split(".")[0]) >= 2:
        return "LCE interpreter", "broken", "it needs NumPy 1: pip install 'numpy<2'"
    return _works(
        "LCE interpreter",
        "from dmsflow.modelfile.runners import lce; lce._interpreter()",
        "pip install --force-reinstall larq-compute-engine",
    )


def _works(what: str, program: str, right: str) -> tuple[str, str, str]:
    done = _run(program)
    if done.returncode == 0:
        return what, "work" if " and " in what else "works", ""
    return what, "broken", f"{_last_line(done)}; {right}"


def _run(program: str) -> subprocess.CompletedProcess[str]:
    """Try a line of Python in a process of its own: a broken native library may take the process along."""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=PACKAGE.parent
    )


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[-1]

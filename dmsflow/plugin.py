"""A plug-in is a file: its name is the file's stem, and listing the folder lists the plug-ins."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from dmsflow.errors import DmsflowError

PACKAGE = Path(__file__).parent
# The folder of each kind.
FOLDERS = {
    "networks": "network/architectures",
    "datasets": "datasets",
    "exporters": "deploying/exporters",
    "runners": "modelfile/runners",
    "devices": "measuring/devices",
}

# What a file of each kind defines (docs/adding.md).
DEFINES = {
    "networks": ("build(channels, resolution, classes) -> Network",),
    "datasets": ("load(argument, data, download) -> Dataset",),
    "exporters": ("write(graph, path)", "count_ops(path)", "layer_bytes(path)", "FLOAT_CONV", "PACKED_CONV"),
    "runners": ("open(path, threads) -> Session", "version() -> str"),
    "devices": ("connect(address, access)",),
}


def list_plugins(kind: str) -> list[str]:
    """Plug-ins of a kind, as the user writes them (dashes for underscores)."""
    return sorted(path.stem.replace("_", "-") for path in (PACKAGE / FOLDERS[kind]).glob("[!_]*.py"))


def path_of(kind: str, name: str) -> Path:
    """The file of a plug-in by its name, or a user's own by its path; it may be missing."""
    return Path(name) if name.endswith(".py") else PACKAGE / FOLDERS[kind] / f"{name.replace('-', '_')}.py"


# --- whose code runs ----------------------------------------------------------------------------

_trusting: ContextVar[bool] = ContextVar("trusting", default=False)


@contextlib.contextmanager
def trusting() -> Iterator[None]:
    """Run whatever code a manifest names, inside the block."""
    token = _trusting.set(True)
    try:
        yield
    finally:
        _trusting.reset(token)


def check_trusted(where: Path, name: str) -> None:
    """Raise DmsflowError if a file names code that this user has never run, unless it is trusted."""
    file, colon, _ = name.rpartition(":")
    name = file if colon and file.endswith(".py") else name
    if _trusting.get() or os.environ.get("DMSFLOW_TRUST") or not (name.endswith(".py") and Path(name).is_file()):
        return
    if not _mark_of(Path(name)).exists():
        what = f"names {name}, and you have not run that code before"
        raise DmsflowError(where, what, "read it; if you trust it, use --trust or set DMSFLOW_TRUST=1")


def _mark_of(path: Path) -> Path:
    """The empty file that says that the user has run this code; its name is the hash of the code."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state, "dmsflow", "trusted", hashlib.sha256(path.read_bytes()).hexdigest())


def load_plugin(kind: str, name: str, *, remember: bool = True, defines: tuple[str, ...] | None = None) -> ModuleType:
    """Import a plug-in by name, or a user's own by the path of its `.py` file.

    Who calls it has the user's word for such a file: a command line or Python call, or `check_trusted`.

    Args:
        remember: that this code was run, for `check_trusted`.
        defines: what a file must define; without it what its kind does.

    Raises:
        DmsflowError: no such plug-in, or its file cannot be imported.
    """
    path = path_of(kind, name)
    if not name.endswith(".py"):
        if name not in list_plugins(kind):
            right = f"use one of {', '.join(list_plugins(kind))}, or the path of a .py file"
            raise DmsflowError(f"{kind.rstrip('s')} {name}", "is unknown", right)
        return importlib.import_module(f"dmsflow.{FOLDERS[kind].replace('/', '.')}.{path.stem}")
    if not path.is_file():
        raise DmsflowError(path, "no such file", "give the path of an existing .py file")
    if remember:
        with contextlib.suppress(OSError):  # a home that cannot be written: --trust is needed each time
            mark = _mark_of(path)
            mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark.touch()
    spec = importlib.util.spec_from_file_location(f"dmsflow_user_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        raise DmsflowError(path, f"{type(error).__name__} on import: {error}", "correct the file") from error
    for signature in DEFINES[kind] if defines is None else defines:
        word, function, _ = signature.partition("(")
        if not hasattr(module, word) or (function and not callable(getattr(module, word))):
            raise DmsflowError(path, f"has no {word}{function and '()'}", f"define {signature}")
        if function:
            setattr(module, word, functools.partial(call, str(path), getattr(module, word)))
    return module


def call(where: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call what a plug-in's file defines.

    Raises:
        DmsflowError: it raises one, or anything else, which then names the error.
    """
    try:
        return function(*arguments, **named)
    except DmsflowError:
        raise
    except (Exception, SystemExit) as error:  # a user's file may raise anything, as when it is imported
        what = f"{type(error).__name__} in {getattr(function, '__name__', 'a call')}(): {error}"
        raise DmsflowError(where, what, "correct the file") from error


def shipped_folder(name: str) -> Path:
    """The folder of the files of a kind that come with dmsflow: inside the package in a wheel, beside it in a checkout."""
    packed = PACKAGE / name
    return packed if packed.is_dir() else PACKAGE.parent / name

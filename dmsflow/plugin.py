"""A plug-in is a file: its name is the file's stem, and listing the folder lists the plug-ins."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
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


def list_plugins(kind: str) -> list[str]:
    """Plug-ins of a kind, as the user writes them (dashes for underscores)."""
    return sorted(path.stem.replace("_", "-") for path in (PACKAGE / FOLDERS[kind]).glob("[!_]*.py"))


def path_of(kind: str, name: str) -> Path:
    """The file of a plug-in by its name, or a user's own by its path; it may be missing."""
    return Path(name) if name.endswith(".py") else PACKAGE / FOLDERS[kind] / f"{name.replace('-', '_')}.py"


def load_plugin(kind: str, name: str) -> ModuleType:
    """Import a plug-in by name, or a user's own by the path of its `.py` file.

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
    spec = importlib.util.spec_from_file_location(f"dmsflow_user_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything; the line it names is the one to correct
        raise DmsflowError(path, f"{type(error).__name__} on import: {error}", "correct the file") from error
    return module


def call(where: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call what a plug-in's file defines.

    Raises:
        DmsflowError: it raises one, or anything else, which then names the error.
    """
    try:
        return function(*arguments)
    except DmsflowError:
        raise
    except Exception as error:  # a user's file may raise anything, as when it is imported
        what = f"{type(error).__name__} in {function.__name__}(): {error}"
        raise DmsflowError(where, what, "correct the file") from error


def shipped_folder(name: str) -> Path:
    """The folder of the files of a kind that come with dmsflow: inside the package in a wheel, beside it in a checkout."""
    packed = PACKAGE / name
    return packed if packed.is_dir() else PACKAGE.parent / name

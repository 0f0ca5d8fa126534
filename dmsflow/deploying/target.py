"""What to build for: which exporter writes the file, and which runners check and measure it.

A target is a TOML file, its name is the file's stem: `targets/*.toml` of a checkout,
`dmsflow/targets/*.toml` of a wheel, or a user's own by its path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from dmsflow.errors import DmsflowError
from dmsflow.plugin import shipped_folder
from dmsflow.preset import read_toml


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One target.

    Attributes:
        name: the stem of its file.
        description: one line for `dmsflow list targets`.
        exporter: a file of `exporters/` that writes the model.
        runner: a file of `runners/` that runs the model.
        reference_runner: another one, which checks a written file, and measures where the runner's
            runtime is not installed; None: there is only the one. Earlier files call it `witness`.
        suffix: of the model file, ".tflite" or ".onnx".
    """

    name: str
    description: str
    exporter: str
    runner: str
    reference_runner: str | None = None
    suffix: Annotated[str, Meta(pattern=r"^\.[a-z]+$")]

    @property
    def runners(self) -> tuple[str, ...]:
        """The runner, then the reference runner."""
        return (self.runner, self.reference_runner) if self.reference_runner else (self.runner,)


PLUGINS = ("exporter", "runner", "reference_runner")


def _beside(path: Path, name: object) -> object:
    """A file that a target's file names: in its folder, or else in the current one."""
    beside = path.parent / str(name)
    return str(beside) if str(name).endswith(".py") and beside.is_file() else name


def list_targets() -> list[str]:
    return sorted(path.stem for path in shipped_folder("targets").glob("*.toml"))


def load_target(name: str) -> Target:
    """Read a target by its name, or by the path of its `.toml` file.

    Raises:
        DmsflowError: no such target, or its file is not one.
    """
    path = Path(name) if name.endswith(".toml") else shipped_folder("targets") / f"{name}.toml"
    if not name.endswith(".toml") and name not in list_targets():
        right = f"use one of {', '.join(list_targets())}, or the path of a .toml file"
        raise DmsflowError(f"target {name}", "is unknown", right)
    try:
        table = read_toml(path)
        if "name" in table:
            raise DmsflowError(path, "has a field 'name'", "remove it: a target has the name of its file")
        if "witness" in table:  # the key of earlier versions
            table = {"reference_runner": table.pop("witness"), **table}
        table |= {key: _beside(path, table[key]) for key in PLUGINS if key in table}
        return msgspec.convert({**table, "name": path.stem}, Target)
    except OSError as error:
        raise DmsflowError(path, error.strerror or str(error), "give the path of an existing .toml file") from error
    except msgspec.ValidationError as error:
        fields = ", ".join(field for field in Target.__struct_fields__ if field != "name")
        raise DmsflowError(path, f"is not a target ({error})", f"give exactly {fields}") from error

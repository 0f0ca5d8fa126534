"""What `dmsflow bench` measures: the file of a chain, or a bare one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dmsflow import manifest
from dmsflow.deploying import target
from dmsflow.deploying.target import Target
from dmsflow.errors import DmsflowError
from dmsflow.manifest import Manifest


@dataclass(frozen=True)
class Subject:
    """The file to measure, the target that it is for, and the export it comes from (None: a bare file)."""

    path: Path
    aim: Target
    export: Manifest | None


def subject_of(source: Path) -> Subject:
    """The file that a path stands for.

    Raises:
        DmsflowError: neither an export.json nor a model file, or a damaged one.
    """
    aims = {one.suffix: one for one in map(target.load, target.names())}
    if source.suffix == ".json":
        export = manifest.load(source, "export")
        path = manifest.verify(source, export.artifacts["model"])
        return Subject(path, target.load(export.settings["target"]), export)
    if source.suffix not in aims:
        raise DmsflowError(
            source,
            "is neither a manifest nor a model file",
            f"give an export.json, or a {' or '.join(sorted(aims))} file",
        )
    if not source.is_file():
        raise DmsflowError(source, "no such file", "give the path of an existing file")
    return Subject(source, aims[source.suffix], None)

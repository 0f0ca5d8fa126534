"""The file that `dmsflow bench` measures: that of an export.json, or one without a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dmsflow import manifest
from dmsflow.deploying.target import Target, list_targets, load_target
from dmsflow.errors import DmsflowError
from dmsflow.manifest import Manifest, load_manifest
from dmsflow.modelfile import onnx_reader


@dataclass(frozen=True)
class Benched:
    """A model file, the target it is for, the export that wrote it (None: a bare file), and files with its weights."""

    path: Path
    target: Target
    export: Manifest | None
    beside: tuple[Path, ...] = ()

    @property
    def file_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.path, *self.beside))


def find_benched(source: Path) -> Benched:
    """The file of an export.json, or the model file itself.

    Raises:
        DmsflowError: neither an export.json nor a model file, or a damaged one, or one with weights out of its folder.
    """
    if source.suffix == ".json":
        export = load_manifest(source, "export")
        if "model" not in export.artifacts:  # as in a folder of models/
            raise DmsflowError(
                source, "names no model file", "run dmsflow export on its train.json, and give the export.json"
            )
        path = manifest.verify(source, export.artifacts["model"])
        return Benched(path, load_target(export.settings["target"]), export)
    targets = {each.suffix: each for each in map(load_target, list_targets())}
    if source.suffix not in targets:
        right = f"give an export.json, or a {' or '.join(sorted(targets))} file"
        raise DmsflowError(source, "is neither a manifest nor a model file", right)
    if not source.is_file():
        raise DmsflowError(source, "no such file", "give the path of an existing file")
    beside = onnx_reader.data_files(source) if source.suffix == ".onnx" else ()
    return Benched(source, targets[source.suffix], None, beside)

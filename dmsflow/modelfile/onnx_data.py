"""Weights of an .onnx file that lie in a file beside it: from the same folder, and only inside that file's length."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from dmsflow.errors import DmsflowError
from dmsflow.modelfile.inputs import plain
from dmsflow.modelfile.tflite import Damaged


class DataFiles:
    """The files beside a model that hold its weights.

    Attributes:
        found: of each that was named so far, its path and how many bytes it has.
    """

    def __init__(self, model: Path) -> None:
        self.model = model
        self.found: dict[str, tuple[Path, int]] = {}

    def locate(self, proto: Any, expected: int | None) -> tuple[Path, int, int]:
        """The file with the numbers of a constant, their first byte, and how many bytes they are.

        Args:
            expected: bytes that the constant's type and shape take; None where that is not fixed.

        Raises:
            Damaged: the numbers are not inside the file, or not as many as the constant has.
            DmsflowError: the file is missing, or is not one beside the model.
        """
        entries = {
            one.key: one.value if isinstance(one.value, str) else "\0" for one in proto.external_data
        }  # no UTF-8
        path, size = self._find(plain(proto.name), entries.get("location", ""))
        offset, length = entries.get("offset", "0"), entries.get("length", str(expected))
        if not (offset + length).isascii() or not offset.isdigit() or length != str(expected):
            raise Damaged(f"{plain(proto.name)} does not fit its shape {list(proto.dims)}")
        if len(offset) > 18 or int(offset) + int(length) > size:
            raise Damaged(f"{plain(proto.name)} ends behind the {size} bytes of {path.name}")
        return path, int(offset), int(length)

    def _find(self, name: str, location: str) -> tuple[Path, int]:
        if location in self.found:
            return self.found[location]
        folder, place = self.model.parent, plain(location)
        right = "put everything into one file: onnx.save_model(onnx.load(PATH), OTHER_PATH)"
        if not location or {*location} & {*"/\\\0"} or location in (".", ".."):
            what = f"keeps {name} in {place or 'a file without a name'}, which is no file of the same folder"
            raise DmsflowError(self.model, what, right)
        path = folder / location
        try:
            status = path.stat()
            leads_out = path.resolve().parent != folder.resolve()
        except OSError as error:
            what = f"keeps {name} in {place} beside it, which cannot be read ({error.strerror})"
            raise DmsflowError(self.model, what, f"copy {place} to the same folder") from error
        if leads_out or not stat.S_ISREG(status.st_mode):
            what = f"keeps {name} in {place} beside it, which is {'a link out of' if leads_out else 'no file of'} the folder"
            raise DmsflowError(self.model, what, f"copy {place} itself to the same folder")
        self.found[location] = path, status.st_size
        return self.found[location]


def read_bytes(place: tuple[Path, int, int]) -> bytes:
    """What `locate` found; Damaged if the file has become shorter since, or cannot be read any more."""
    path, offset, length = place
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(length)
    except OSError as error:
        raise Damaged(f"{plain(path.name)} beside it cannot be read: {error.strerror}") from error
    if len(content) != length:
        raise Damaged(f"{plain(path.name)} beside it has become shorter")
    return content

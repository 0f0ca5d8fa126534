"""Runtimes; each file has `open(path, threads) -> Session` and `version() -> str`.

NumPy only, no torch.

    open(path, threads) -> Session    a missing runtime or a damaged file is a DmsflowError
    version() -> str                  the runtime's name and version

A Session is a loaded file with one float32 input of `input_shape` [1, H, W, C]; its `run(images)` gives the logits
[1, classes] of raw pixels 0..255 in that shape. A Session of files that others made, which take several inputs or
other types, has `inputs` instead, a tuple of modelfile.inputs.Port, and `run` takes an array for each.

    REQUIRES: tuple[str, ...] = ("onnxruntime",)

names the top-level modules of dmsflow's extras that a runner of this folder needs; a user's own may leave it out.
A runner also runs on devices that have no dmsflow: it imports no more of it than `environment`, `errors`, `plugin`,
`native`, `modelfile.inputs` and `modelfile.tflite` (measuring/devices/_python.py ships these). If its runtime may be in
another Python, it also has `python() -> str`, the path of the one that measures on this machine. If its runtime has a
profiler, a Session also has

    operations(images, runs, *more) -> [(kind, name, median ms), ...] in the order of execution

If the runtime invents names, the runner also has a function that runs on this machine, never on the device:

    operation_names(path) -> {name that the runtime invents: name to show instead}
"""

from __future__ import annotations

from collections.abc import Sequence

from dmsflow.errors import DmsflowError
from dmsflow.plugin import load_plugin


def first_usable(names: Sequence[str]) -> tuple[str, DmsflowError | None]:
    """The first runner whose runtime works on this machine; and why the first of the list does not, if it is another.

    Raises:
        DmsflowError: none works; the error is that of the first.
    """
    lacks: list[DmsflowError] = []
    for name in names:
        try:
            load_plugin("runners", name).version()
        except DmsflowError as error:
            lacks.append(error)
        else:
            return name, lacks[0] if lacks else None
    raise lacks[0]

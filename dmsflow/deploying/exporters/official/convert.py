"""Writes .tflite files with larq-compute-engine's own converter, which needs TensorFlow: the witness.

The integer graph becomes a program of TensorFlow operations that a child process
(`child.py`) builds and converts; TensorFlow's memory and start-up stay in there.

The converter packs what it recognises, so the program is written in the forms that it does. Bits are
signs, -1 where the activation is on, of floats that are below 0 there. Where these are the sums of a
binary convolution they are odd whole numbers, hence exact and never 0:

    Σ sign s = Σ sign - 2 sum,   and   sum >= T   is   Σ sign s + (2 T - Σ sign - 1) < 0

A convolution in front of a max pool has the opposite sums, of which a maximum is an OR.

The converter takes padding by as much on all sides for SAME, at stride 2 as well, where SAME pads an
even image on one side only: such a file is wrong, and no error says so. So at stride 2 only those
pixels are padded that are read.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.deploying.integer_graph import (
    Add,
    AveragePool,
    BinaryConv,
    Dense,
    GraphOp,
    IntegerGraph,
    MaxPool,
    Quantize,
    Relu,
    Scale,
    Stem,
)
from dmsflow.errors import DmsflowError
from dmsflow.files import writing
from dmsflow.network.network import INPUT

CHILD = f"{__package__}.child"  # in two parts: doctor takes whole names for what every export needs
INSTEAD = "or leave out --converter official"
LOWEST = float(np.finfo(np.float32).min)


def write(form: IntegerGraph, path: Path) -> None:
    """Convert the integer graph to a .tflite file, whole or not at all.

    Raises:
        DmsflowError: larq-compute-engine or TensorFlow is missing or fails, or the file cannot be written.
    """
    content = convert([program(form)])[0]
    with writing(path) as partial:
        partial.write_bytes(content)


# --- the program ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One operation of the child's table.

    Attributes:
        op: its name there.
        layer: whose it is; tensors of the file are named after it.
        inputs: numbers of the values that it takes. 0 is the image, n what step n - 1 gives.
        constants: what else it takes; float32 in the file.
        options: whole numbers, lists of them, and floats.
    """

    op: str
    layer: str
    inputs: tuple[int, ...]
    constants: tuple[NDArray[Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Program:
    """Granularity in the order of their computation; the last one gives the logits.

    Attributes:
        shape: of the image, [1, H, W, C].
    """

    shape: tuple[int, ...]
    steps: list[Step] = field(default_factory=list)
    numbers: dict[object, int] = field(default_factory=dict)

    def add(self, op: str, layer: str, *inputs: int, constants: Sequence[Any] = (), **options: Any) -> int:
        """The number of the new step's value; a step that is there already is not added again."""
        step = Step(op, layer, inputs, tuple(map(np.asarray, constants)), options)
        key = repr(step) if all(one.ndim == 0 for one in step.constants) else len(self.numbers)
        if key not in self.numbers:
            self.steps.append(step)
            self.numbers[key] = len(self.steps)
        return self.numbers[key]

    def dumps(self) -> bytes:
        """As the child reads it: an .npz without pickles."""
        arrays = {f"{n}.{i}": one for n, step in enumerate(self.steps) for i, one in enumerate(step.constants)}
        steps = [
            {
                "op": step.op,
                "layer": step.layer,
                "inputs": step.inputs,
                "constants": len(step.constants),
                "options": step.options,
            }
            for step in self.steps
        ]
        content = io.BytesIO()
        np.savez(content, program=np.array(json.dumps({"shape": self.shape, "steps": steps})), **arrays)
        return content.getvalue()


@dataclass(frozen=True)
class _Value:
    """A tensor of the integer graph in a program.

    Attributes:
        number: of the floats.
        layer: that computes them.
        on: for bits, which of the floats stand for 1: those "below" 0, or those "from" 0 on.
        odd: the floats are odd whole numbers.
    """

    number: int
    layer: str
    on: str = ""
    odd: bool = False


def program(form: IntegerGraph) -> Program:
    """What the child is to build."""
    lowering = _Lowering(form)
    for op in form.ops:
        lowering.values[op.name] = lowering.lower(op, *(lowering.values[name] for name in op.inputs))
    return lowering.program


class _Lowering:
    """From deploy ops to steps."""

    def __init__(self, form: IntegerGraph) -> None:
        self.form = form
        self.shapes = form.shapes()
        self.program = Program((1, *self.shapes[INPUT]))
        self.values = {INPUT: _Value(0, INPUT)}

    def lower(self, op: GraphOp, x: _Value, *others: _Value) -> _Value:
        """Add what computes `op`."""
        add, name = self.program.add, op.name
        match op:
            case Stem():
                return self.stem(op, x)
            case BinaryConv():
                return self.binary_conv(op, x)
            case MaxPool():
                fill = LOWEST if not op.binary else -1.0
                padded = self.padded(op, x.number, op.kernel, fill)
                number = add("max_pool", name, padded, kernel=op.kernel, stride=op.stride)
                return _Value(number, name, x.on, x.odd)
            case Scale():
                scaled = add("multiply", name, x.number, constants=[op.multiplier])
                return _Value(add("add", name, scaled, constants=[op.bias]), name)
            case Quantize():  # the converter knows this form, and not threshold - x
                minus = add("multiply", name, x.number, constants=[np.float32(-1)])
                return _Value(add("add", name, minus, constants=[op.threshold]), name, "below")
            case Add():
                return _Value(add("add", name, x.number, others[0].number), name)
            case Relu():
                return _Value(add("relu", name, x.number), name)
            case AveragePool():
                size = self.shapes[op.inputs[0]][0]
                return x if size == 1 else _Value(add("average_pool", name, x.number, size=size), name)
            case Dense():
                return _Value(add("dense", name, x.number, constants=[op.weight, op.bias]), name)

    def stem(self, op: Stem, x: _Value) -> _Value:
        add, name, weight = self.program.add, op.name, op.weight
        pooled = self.pooled(op)
        if op.thresholds is not None and not pooled:
            weight = 0 - weight
        centred = add("subtract", name, x.number, constants=[op.mean])
        padded = self.padded(op, centred, weight.shape[1])
        sums = add("conv", name, padded, constants=[weight.transpose(1, 2, 3, 0)], stride=op.stride)
        if op.thresholds is None:
            scaled = any(isinstance(reader, Scale) for reader in self.form.consumers(name))
            # They are whole already; but without it the converter folds the factors into the weights.
            return _Value(add("floor", name, sums) if scaled else sums, name)
        bias = -op.thresholds if pooled else op.thresholds - 1
        return _Value(add("add", name, sums, constants=[bias]), name, "from" if pooled else "below")

    def binary_conv(self, op: BinaryConv, x: _Value) -> _Value:
        add, name, signs = self.program.add, op.name, op.signs
        pooled = op.thresholds is not None and self.pooled(op)
        if pooled:
            signs = -signs
        padded = self.padded_signs(op, x)
        sums = add("conv", name, padded, constants=[signs.transpose(1, 2, 3, 0)], stride=op.stride)
        if op.thresholds is not None:
            bias = 2 * op.thresholds - op.signs.sum((1, 2, 3), dtype=np.int32) - 1
            number = add("add", name, sums, constants=[-bias if pooled else bias])
            return _Value(number, name, "from" if pooled else "below", odd=True)
        assert op.multiplier is not None and op.bias is not None
        scaled = add("multiply", name, sums, constants=[-op.multiplier])
        return _Value(add("add", name, scaled, constants=[op.bias]), name)

    def pooled(self, op: GraphOp) -> bool:
        return any(isinstance(reader, MaxPool) for reader in self.form.consumers(op.name))

    def padded_signs(self, op: BinaryConv, x: _Value) -> int:
        """The signs that a convolution reads; padding is +1, off.

        At stride 1 the converter makes padding of the signs part of the convolution, if SAME pads
        so; any other is of the floats in front of the sign, for it packs none behind it.
        """
        add, kernel = self.program.add, op.signs.shape[1]
        floats = self.below(x)
        if op.stride == 1 and 2 * op.padding == kernel - 1:
            return self.padded(op, add("sign", x.layer, floats), kernel, 1.0)
        padded = self.padded(op, floats, kernel)
        return add("sign", x.layer if padded == floats else op.name, padded)

    def below(self, x: _Value) -> int:
        """Floats that are below 0 where the bits are 1."""
        if x.on == "below":
            return x.number
        minus = self.program.add("multiply", x.layer, x.number, constants=[np.float32(-1)])
        return minus if x.odd else self.program.add("add", x.layer, minus, constants=[np.float32(-0.5)])

    def padded(self, op: Stem | BinaryConv | MaxPool, x: int, kernel: int, fill: float = 0.0) -> int:
        """An image with those pixels around it that are read."""
        before, inside = op.padding, self.shapes[op.inputs[0]][0]
        after = max((self.shapes[op.name][0] - 1) * op.stride + kernel - inside - before, 0)
        return self.program.add("pad", op.name, x, amounts=[before, after], fill=fill) if before or after else x


# --- the child --------------------------------------------------------------------------------


def convert(programs: Sequence[Program]) -> list[bytes]:
    """The .tflite files of some programs, all converted by one child process.

    Raises:
        DmsflowError: larq-compute-engine or TensorFlow is missing, NumPy is too new for them, the
            converter fails, or there is no room for what it is given.
    """
    if int(np.__version__.partition(".")[0]) >= 2:
        raise DmsflowError(f"numpy {np.__version__}", "larq-compute-engine needs NumPy 1", "pip install 'numpy<2'")
    try:
        with tempfile.TemporaryDirectory(prefix="dmsflow-convert-") as folder:
            paths = [Path(folder, f"{index:05}.npz") for index in range(len(programs))]
            for path, one in zip(paths, programs, strict=True):
                path.write_bytes(one.dumps())
            done = _in_child(folder)
            if done.returncode:
                raise _failure(done)
            return [path.with_suffix(".tflite").read_bytes() for path in paths]
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise DmsflowError(tempfile.gettempdir(), what, "free some space or set TMPDIR") from error


def _in_child(folder: str) -> subprocess.CompletedProcess[bytes]:
    """An interrupt ends the child: `subprocess.run` kills it, and its stdin ends when this process does."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(Path(__file__).parents[4]), *(os.path.abspath(path) for path in inherited if path)]
    reading, writing = os.pipe()
    try:
        return subprocess.run(
            [sys.executable, "-m", CHILD, folder],
            stdin=reading,
            capture_output=True,
            cwd=folder,  # where nothing lies that an import could take for a package
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            check=False,
        )
    finally:
        os.close(reading)
        os.close(writing)


def _failure(done: subprocess.CompletedProcess[bytes]) -> DmsflowError:
    """What the child's end means to the user."""
    import os as _o

    sys.stderr.write(done.stderr.decode()) if _o.environ.get("DBG") else None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    if missing := re.search(r"No module named '(\w+)", last):
        package = missing[1].replace("_", "-")
        if package.startswith("larq") and not _has_wheel():
            system = f"{platform.system()} {platform.machine()}"
            return DmsflowError(package, f"has no package for {system}", "leave out --converter official")
        return DmsflowError(package, "is not installed", f"pip install 'dmsflow[lce,tensorflow]', {INSTEAD}")
    status = f"exit status {done.returncode}"
    if done.returncode < 0:
        status = signal.Signals(-done.returncode).name
    return DmsflowError("larq-compute-engine", f"its converter failed ({status}: {last})", f"report this, {INSTEAD}")


def _has_wheel() -> bool:
    """Whether larq-compute-engine has wheels for this system, as pyproject.toml has it."""
    return platform.system() != "Linux" or platform.machine() in ("x86_64", "AMD64")

"""Writes .tflite files with larq-compute-engine's own converter, which needs TensorFlow: a second opinion.

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

The environment variable TMPDIR is read: programs and files lie there meanwhile.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmsflow import environment
from dmsflow.deploying import integer_graph
from dmsflow.deploying.integer_graph import IntegerGraph
from dmsflow.errors import DmsflowError
from dmsflow.network.network import INPUT

INSTEAD = "or leave out --converter official"
LOWEST = float(np.finfo(np.float32).min)


class Value(NamedTuple):
    """A tensor of the integer graph in a program."""

    number: int  # of the floats
    layer: str  # that computes them
    on: str = ""  # for bits, which of the floats stand for 1: those "below" 0, or those "from" 0 on
    odd: bool = False  # the floats are odd whole numbers


class Program:
    """What the child is to build: steps in the order of their computation; the last one gives the logits.

    Values are called by number: 0 is the image, n what step n - 1 gives.
    """

    def __init__(self, graph: IntegerGraph) -> None:
        self.graph, self.shapes = graph, graph.shapes()
        self.steps: list[dict[str, Any]] = []
        self.arrays: dict[str, Any] = {}  # constants of the steps; float32 in the file
        self.numbers: dict[str, int] = {}  # of steps that may be shared
        self.values = {INPUT: Value(0, INPUT)}
        for op in graph.ops:
            self.values[op.name] = self.lower(op, *(self.values[name] for name in op.inputs))

    def step(self, op: str, layer: str, *inputs: int, constants: Sequence[Any] = (), **options: Any) -> int:
        """Add an operation of the child's table; the number of its value.

        A step that is there already is not added again. Tensors of the file are named after the layer.
        """
        arrays = [np.asarray(one) for one in constants]
        step = {"op": op, "layer": layer, "inputs": inputs, "constants": len(arrays), "options": options}
        key = repr((step, arrays)) if all(one.ndim == 0 for one in arrays) else f"step {len(self.steps)}"
        if key not in self.numbers:
            self.arrays |= {f"{len(self.steps)}.{index}": one for index, one in enumerate(arrays)}
            self.steps.append(step)
            self.numbers[key] = len(self.steps)
        return self.numbers[key]

    def dumps(self) -> bytes:
        """As the child reads it: an .npz without pickles."""
        content = io.BytesIO()
        program = json.dumps({"shape": (1, *self.shapes[INPUT]), "steps": self.steps})
        np.savez(content, program=np.array(program), **self.arrays)
        return content.getvalue()

    def lower(self, op: integer_graph.GraphOp, x: Value, *others: Value) -> Value:
        """Add what computes `op`."""
        step, name = self.step, op.name
        match op:
            case integer_graph.Stem():
                return self.stem(op, x)
            case integer_graph.BinaryConv():
                return self.binary_conv(op, x)
            case integer_graph.FloatConv():
                padded, weight = self.padded(op, x.number), op.weight.transpose(1, 2, 3, 0)
                kind = "depthwise_conv" if isinstance(op, integer_graph.DepthwiseConv) else "conv"
                weight = weight.transpose(0, 1, 3, 2) if kind == "depthwise_conv" else weight
                sums = step(kind, name, padded, constants=[weight], stride=op.stride)
                return Value(step("add", name, sums, constants=[op.bias]), name)
            case integer_graph.MaxPool():
                padded = self.padded(op, x.number, -1.0 if op.binary else LOWEST)
                return Value(step("max_pool", name, padded, kernel=op.kernel, stride=op.stride), name, x.on, x.odd)
            case integer_graph.Scale():
                scaled = step("multiply", name, x.number, constants=[op.multiplier])
                return Value(step("add", name, scaled, constants=[op.bias]), name)
            case integer_graph.Quantize():  # the converter knows this form, and not threshold - x
                minus = step("multiply", name, x.number, constants=[np.float32(-1)])
                return Value(step("add", name, minus, constants=[op.threshold]), name, "below")
            case integer_graph.Add():
                return Value(step("add", name, x.number, others[0].number), name)
            case integer_graph.Concat():
                return Value(step("concat", name, x.number, *(other.number for other in others)), name)
            case integer_graph.Multiply():
                return Value(step("multiply", name, x.number, others[0].number), name)
            case integer_graph.Sigmoid():
                return Value(step("sigmoid", name, x.number), name)
            case integer_graph.HardSigmoid():
                return Value(step("hard_sigmoid", name, x.number), name)
            case integer_graph.Relu():
                return Value(step("relu6" if isinstance(op, integer_graph.Relu6) else "relu", name, x.number), name)
            case integer_graph.PRelu():
                moved = step("subtract", name, self.apart(x.number, name), constants=[op.before])
                bent = step("prelu", name, moved, constants=[op.slope[None, None]])
                return Value(self.apart(step("add", name, bent, constants=[op.after]), name), name)
            case integer_graph.AveragePool():
                size = op.kernel or self.shapes[op.inputs[0]][0]
                stride = op.stride if op.kernel else size
                return x if size == 1 else Value(step("average_pool", name, x.number, size=size, stride=stride), name)
            case integer_graph.Dense():
                return Value(step("dense", name, x.number, constants=[op.float_weight, op.bias]), name)

    def apart(self, x: int, layer: str) -> int:
        """A maximum that changes nothing; without it the converter adds up constants before and after it."""
        return self.step("maximum", layer, x, constants=[np.float32(LOWEST)])

    def stem(self, op: integer_graph.Stem, x: Value) -> Value:
        step, name, weight = self.step, op.name, op.weight.astype(np.float32)
        pooled = self.graph.feeds_max_pool(op)
        if op.thresholds is not None and not pooled:
            weight = 0 - weight
        padded = self.padded(op, step("subtract", name, x.number, constants=[op.mean]))
        sums = step("conv", name, padded, constants=[weight.transpose(1, 2, 3, 0)], stride=op.stride)
        if op.thresholds is None:
            scaled = any(isinstance(reader, integer_graph.Scale) for reader in self.graph.consumers(name))
            # They are whole already; but without it the converter folds the factors into the weights.
            return Value(step("floor", name, sums) if scaled else sums, name)
        bias = -op.thresholds if pooled else op.thresholds - 1
        return Value(step("add", name, sums, constants=[bias]), name, "from" if pooled else "below")

    def binary_conv(self, op: integer_graph.BinaryConv, x: Value) -> Value:
        step, name = self.step, op.name
        pooled = op.thresholds is not None and self.graph.feeds_max_pool(op)
        filters = (-op.weight if pooled else op.weight).transpose(1, 2, 3, 0)
        sums = step("conv", name, self.padded_signs(op, x), constants=[filters], stride=op.stride)
        if op.thresholds is not None:
            bias = 2 * op.thresholds - op.weight.sum((1, 2, 3), dtype=np.int32) - 1
            number = step("add", name, sums, constants=[-bias if pooled else bias])
            return Value(number, name, "from" if pooled else "below", odd=True)
        assert op.multiplier is not None and op.bias is not None
        sums = step("relu", name, sums) if op.rectifies else sums
        scaled = step("multiply", name, sums, constants=[-op.multiplier])
        return Value(step("add", name, scaled, constants=[op.bias]), name)

    def padded_signs(self, op: integer_graph.BinaryConv, x: Value) -> int:
        """The signs that a convolution reads; padding is +1, off.

        At stride 1 the converter makes padding of the signs part of the convolution, if SAME pads
        so; any other is of the floats in front of the sign, for it packs none behind it.
        """
        floats = self.below(x)
        if op.pads_same:
            return self.padded(op, self.step("sign", x.layer, floats), 1.0)
        padded = self.padded(op, floats)
        return self.step("sign", x.layer if padded == floats else op.name, padded)

    def below(self, x: Value) -> int:
        """Floats that are below 0 where the bits are 1."""
        if x.on == "below":
            return x.number
        minus = self.step("multiply", x.layer, x.number, constants=[np.float32(-1)])
        return minus if x.odd else self.step("add", x.layer, minus, constants=[np.float32(-0.5)])

    def padded(self, op: integer_graph.Conv | integer_graph.MaxPool, x: int, fill: float = 0.0) -> int:
        """An image with those pixels around it that are read."""
        before, inside = op.padding, self.shapes[op.inputs[0]][0]
        after = max((self.shapes[op.name][0] - 1) * op.stride + op.kernel - inside - before, 0)
        return self.step("pad", op.name, x, amounts=[before, after], fill=fill) if before or after else x


def convert(programs: Sequence[Program]) -> list[bytes]:
    """The .tflite files of some programs, all converted by one child process.

    Raises:
        DmsflowError: larq-compute-engine or TensorFlow is missing, the converter fails, or the disk has no
            space for its files.
    """
    command = [environment.witness_python(), "-I", str(Path(__file__).with_name("child.py"))]
    try:
        with tempfile.TemporaryDirectory(prefix="dmsflow-convert-") as folder:
            paths = [Path(folder, f"{index:05}.npz") for index in range(len(programs))]
            for path, program in zip(paths, programs, strict=True):
                path.write_bytes(program.dumps())
            done = _run_child([*command, folder])
            if done.returncode:
                raise explain_failure(done)
            return [path.with_suffix(".tflite").read_bytes() for path in paths]
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise DmsflowError(tempfile.gettempdir(), what, "free some space or set TMPDIR") from error


def _run_child(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """An interrupt ends the child: `subprocess.run` kills it, and its stdin ends when this process does."""
    reading, writing = os.pipe()
    try:
        return subprocess.run(command, stdin=reading, capture_output=True, check=False)
    finally:
        os.close(reading)
        os.close(writing)


def explain_failure(done: subprocess.CompletedProcess[bytes]) -> DmsflowError:
    """What the child's end means to the user."""
    last = ["no output", *done.stderr.decode(errors="replace").strip().splitlines()][-1]
    if missing := re.search(r"No module named '(\w+)", last):
        what = "is not in the environment of larq-compute-engine"
        return DmsflowError(missing[1].replace("_", "-"), what, f"{environment.witness_command()}, {INSTEAD}")
    code = done.returncode
    status = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return DmsflowError("larq-compute-engine", f"its converter failed ({status}: {last})", f"report this, {INSTEAD}")

"""Holds the emulated ARM device against times that Larq Compute Engine (LCE) published: how far off is it?

The published times were measured by LCE's authors with LCE's own kernels on real devices, on one
thread. Ours are modelled: dmsflow's kernels and LiteRT's float ones, counted in an emulator, in cycles
of LLVM's model of a Cortex-A57, the nearest to these cores that it has. Networks are QuickNet and
Bi-Real-Net at 224 pixels with random weights, as Larq Zoo 2 defines them. So a ratio holds two things
at once: what the model does not know (caches, memory, the real core), and where the kernels differ.

    python benchmarks/arm_published.py [NETWORK...]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import script

from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.deploying.exporters.lce import pack
from dmsflow.measuring import devices
from dmsflow.measuring.devices import File, Job, qemu
from dmsflow.terminal import print_table

DEVICE = "qemu://cortex-a72"
# LCE's documentation and its paper (https://arxiv.org/abs/2011.09398), one thread, in ms.
BOARDS = {"Raspberry Pi 4B": 1.5, "Pixel 1": 2.15}  # and the clock of the cores, in GHz
PUBLISHED = {
    "quicknet-small": {"Raspberry Pi 4B": 27.7, "Pixel 1": 16.8},
    "quicknet": {"Raspberry Pi 4B": 45.0, "Pixel 1": 25.5},
    "quicknet-large": {"Raspberry Pi 4B": 77.0, "Pixel 1": 44.2},
    "bi-real-net-18": {"Pixel 1": 41.6},
}
SIDE, CLASSES = 224, 1000
SAME, VALID = 0, 1
NONE, RELU = 0, 1
FLOATS, BITS = 0, 2
CUSTOM, ABSENT = 32, -1
ADD, AVERAGE_POOL, CONV, DEPTHWISE, DENSE, MAX_POOL, SOFTMAX = 0, 1, 3, 4, 9, 17, 25
OPTIONS = {ADD: 11, AVERAGE_POOL: 5, CONV: 1, DEPTHWISE: 2, DENSE: 8, MAX_POOL: 5, SOFTMAX: 9}


class Writer:
    """A network in the making; a tensor is called by its number, and is square: [1, side, side, channels]."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.buffers: list[dict[str, Any]] = [{}]
        self.tensors: list[dict[str, Any]] = []
        self.operators: list[dict[str, Any]] = []
        self.codes: list[tuple[int, str]] = []
        self.image = self.tensor((1, SIDE, SIDE, 3), FLOATS)

    def tensor(self, shape: Sequence[int], dtype: int, buffer: int = 0) -> int:
        self.tensors.append({"shape": tuple(shape), "type": dtype, "buffer": buffer, "name": f"t{len(self.tensors)}"})
        return len(self.tensors) - 1

    def constant(self, values: np.ndarray[Any, Any]) -> int:
        dtype = BITS if values.dtype == np.int32 else FLOATS
        self.buffers.append({"data": values.tobytes()})
        return self.tensor(values.shape, dtype, len(self.buffers) - 1)

    def weights(self, *shape: int) -> int:
        """About as large as what they are multiplied with is many, so that nothing grows from layer to layer."""
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return self.constant((scale * self.random.standard_normal(shape)).astype(np.float32))

    def operator(self, code: int, inputs: list[int], shape: Sequence[int], dtype: int = FLOATS, **options: Any) -> int:
        fields = {"builtin_options_type": OPTIONS[code], "builtin_options": options}
        return self._add((code, ""), inputs, shape, dtype, fields)

    def custom(self, name: str, inputs: list[int], shape: Sequence[int], dtype: int, **options: int) -> int:
        fields = {"custom_options": _flatbuffer.flexible(options) if options else b""}
        return self._add((CUSTOM, name), inputs, shape, dtype, fields)

    def _add(
        self, code: tuple[int, str], inputs: list[int], shape: Sequence[int], dtype: int, fields: dict[str, Any]
    ) -> int:
        if code not in self.codes:
            self.codes.append(code)
        output = self.tensor(shape, dtype)
        self.operators.append({"opcode_index": self.codes.index(code), "inputs": inputs, "outputs": [output], **fields})
        return output

    def shape(self, x: int) -> tuple[int, int]:
        """Side and channels."""
        _, side, _, channels = self.tensors[x]["shape"]
        return side, channels

    def conv(self, x: int, filters: int, kernel: int, stride: int = 1, activation: int = NONE) -> int:
        """With batch norm in its weights and bias, as the converter writes it."""
        side, channels = self.shape(x)
        inputs = [x, self.weights(filters, kernel, kernel, channels), self.weights(filters)]
        return self.operator(
            CONV,
            inputs,
            (1, -(-side // stride), -(-side // stride), filters),
            padding=SAME,
            stride_w=stride,
            stride_h=stride,
            fused_activation_function=activation,
            dilation_w_factor=1,
            dilation_h_factor=1,
        )

    def depthwise(self, x: int, stride: int) -> int:
        side, channels = self.shape(x)
        inputs = [x, self.weights(1, 3, 3, channels), self.weights(channels)]
        return self.operator(
            DEPTHWISE,
            inputs,
            (1, -(-side // stride), -(-side // stride), channels),
            padding=SAME,
            stride_w=stride,
            stride_h=stride,
            depth_multiplier=1,
            fused_activation_function=NONE,
            dilation_w_factor=1,
            dilation_h_factor=1,
        )

    def pool(self, code: int, x: int, kernel: int, stride: int, padding: int) -> int:
        side, channels = self.shape(x)
        out = -(-side // stride) if padding == SAME else (side - kernel) // stride + 1
        return self.operator(
            code,
            [x],
            (1, out, out, channels),
            padding=padding,
            stride_w=stride,
            stride_h=stride,
            filter_width=kernel,
            filter_height=kernel,
            fused_activation_function=NONE,
        )

    def add(self, x: int, other: int, activation: int = NONE) -> int:
        return self.operator(ADD, [x, other], self.tensors[x]["shape"], fused_activation_function=activation)

    def binary_conv(self, x: int, filters: int, stride: int, pad_values: int, activation: int) -> int:
        """The signs of x, convolved with signs 3×3, and a batch norm behind."""
        side, channels = self.shape(x)
        signs = self.custom("LceQuantize", [x], (1, side, side, -(-channels // 32)), BITS)
        weights = self.constant(pack(self.random.random((filters, 3, 3, channels)) < 0.5))
        scale = np.full(filters, 1 / np.sqrt(9 * channels), np.float32)
        inputs = [signs, weights, self.constant(scale), self.weights(filters), ABSENT]
        out = -(-side // stride)
        return self.custom(
            "LceBconv2d",
            inputs,
            (1, out, out, filters),
            FLOATS,
            channels_in=channels,
            dilation_height_factor=1,
            dilation_width_factor=1,
            fused_activation_function=activation,
            pad_values=pad_values,
            padding=SAME,
            stride_height=stride,
            stride_width=stride,
        )

    def finish(self, x: int) -> bytes:
        """The mean over the image, a dense layer and a softmax; the file."""
        side, channels = self.shape(x)
        mean = self.pool(AVERAGE_POOL, x, side, 1, VALID)
        inputs = [mean, self.weights(CLASSES, channels), self.weights(CLASSES)]
        logits = self.operator(DENSE, inputs, (1, CLASSES), fused_activation_function=NONE)
        classes = self.operator(SOFTMAX, [logits], (1, CLASSES), beta=1.0)
        graph = {"tensors": self.tensors, "inputs": [self.image], "outputs": [classes], "operators": self.operators}
        codes = [
            {"deprecated_builtin_code": code, "version": 1, "builtin_code": code}
            | ({"custom_code": name} if name else {})
            for code, name in self.codes
        ]
        model = {"version": 3, "operator_codes": codes, "subgraphs": [graph], "buffers": self.buffers}
        return _flatbuffer.dumps(model)


def quicknet(blocks: Sequence[int], filters: Sequence[int]) -> bytes:
    """Sections of residual blocks; between two of them a pool against aliasing and a 1×1 convolution."""
    made = Writer()
    x = made.conv(made.image, filters[0] // 4, 3, 2, RELU)
    x = made.conv(made.depthwise(x, 2), filters[0], 1)
    for section, (count, channels) in enumerate(zip(blocks, filters, strict=True)):
        if section:
            x = made.pool(MAX_POOL, x, 2, 1, VALID)
            x = made.conv(made.depthwise(x, 2), channels, 1)
        for block in range(count):
            # A ReLU ends every section; the addition in front of it does it.
            last = RELU if block == count - 1 else NONE
            x = made.add(made.binary_conv(x, channels, 1, pad_values=1, activation=RELU), x, last)
    return made.finish(x)


def bi_real_net() -> bytes:
    """A ResNet-18 with a shortcut around every binary convolution, padded with zeros."""
    made = Writer()
    x = made.pool(MAX_POOL, made.conv(made.image, 64, 7, 2), 3, 2, SAME)
    for section, channels in enumerate((64, 128, 256, 512)):
        for block in range(4):
            halves = section > 0 and block == 0
            shortcut = made.conv(made.pool(AVERAGE_POOL, x, 2, 2, SAME), channels, 1) if halves else x
            x = made.add(made.binary_conv(x, channels, 2 if halves else 1, pad_values=0, activation=NONE), shortcut)
    return made.finish(x)


NETWORKS: dict[str, Callable[[], bytes]] = {
    "quicknet-small": lambda: quicknet((4, 4, 4, 4), (32, 64, 256, 512)),
    "quicknet": lambda: quicknet((4, 4, 4, 4), (64, 128, 256, 512)),
    "quicknet-large": lambda: quicknet((6, 8, 12, 6), (64, 128, 256, 512)),
    "bi-real-net-18": bi_real_net,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=f"default: all of {', '.join(NETWORKS)}")
    names: Sequence[str] = parser.parse_args().names or list(NETWORKS)
    if unknown := [name for name in names if name not in NETWORKS]:
        parser.error(f"{unknown[0]}: is unknown; use some of {', '.join(NETWORKS)}")
    with tempfile.TemporaryDirectory() as folder, devices.connect(DEVICE) as measure:
        files = []
        for name in names:
            path = Path(folder, f"{name}.tflite")
            path.write_bytes(NETWORKS[name]())
            files.append(File(path=str(path), runner="litert"))
        measured = measure(Job(files=tuple(files), threads=1, warm_up=0, runs=1, operations=True))
    core = qemu.CORES[DEVICE.rpartition("/")[2]]
    rows = []
    for name, timing in zip(names, measured.timings, strict=True):
        binary = sum(each.ms for each in timing.operations if each.op == "LceBconv2d") / timing.runs_ms[0]
        for board, published in PUBLISHED[name].items():
            ms = timing.runs_ms[0] * core.ghz / BOARDS[board]
            rows.append(
                (
                    name,
                    board,
                    f"{BOARDS[board]:g}",
                    f"{ms:.1f}",
                    f"{published:.1f}",
                    f"{ms / published:.2f}",
                    f"{100 * (ms / published - 1):+.0f}",
                    f"{100 * binary:.0f}",
                )
            )
    title = f"Modelled beside published, 1 thread: {measured.machine.processor}; {measured.timings[0].runtime}"
    head = ("network", "device", "GHz", "modelled ms", "published ms", "ratio", "error %", "binary conv %")
    print_table(title, head, rows)


if __name__ == "__main__":
    script.run(main)

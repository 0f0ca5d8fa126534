"""The property that users rely on: one network, however it is written, computes one thing.

Random networks go through the integer graph into three files: LCE written directly and by the official
converter, and ONNX. The converter's files of a few networks are kept in tests/witnessed; where larq-compute-engine
is installed, it converts others:

    python -m pytest tests/deploying/test_agreement.py --agreement 200
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import witnessed
from made_up import MEAN, STD, pixels, plain, trained
from msgspec import structs
from numpy.typing import NDArray

from dmsflow.deploying import check, folding, integer_graph
from dmsflow.deploying.exporters import lce as exporter
from dmsflow.deploying.exporters import onnx
from dmsflow.deploying.exporters.official import convert
from dmsflow.deploying.integer_graph import IntegerGraph
from dmsflow.modelfile.inputs import inputs_of
from dmsflow.modelfile.runners import litert, onnxruntime
from dmsflow.modelfile.tflite_reader import read_graph
from dmsflow.network.network import INPUT, Layer, Network, with_stem

MAGNITUDES = (1.0, 1e-3, 300.0)  # of alphas, and of the scales of batch norms, which have both signs
IMAGES = 4


class Draft:
    """A random network in the making: `last` is its last layer, of `size` pixels and width `key`."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.layers: list[Layer] = []
        self.widths: dict[str, int] = {}
        self.last, self.size = INPUT, int(self.random.integers(12, 28))
        self.key: str | int = ""
        self.resolution = self.size

    def add(self, op: str, *inputs: str, **fields: object) -> str:
        name = f"{op}{len(self.layers)}"
        self.layers.append(Layer(name=name, op=op, inputs=inputs or (self.last,), **fields))  # type: ignore[arg-type]
        self.last = name
        return name

    def convolution(self, op: str) -> None:
        """Any kernel, stride, padding and pool that leaves pixels; perhaps a batch norm and a ReLU."""
        window = self.window()
        self.key = f"width{len(self.widths)}"
        self.widths[self.key] = int(self.random.integers(1, 151))
        self.add(op, width=self.key, **window)
        if self.size >= 4 and self.random.random() < 0.3:
            padded = int(self.random.integers(2))  # 2×2, or padded 3×3
            self.add("max_pool", kernel=2 + padded, stride=2, padding=padded)
            self.size = (self.size + 2 * padded - 2 - padded) // 2 + 1
        if self.random.random() < 0.8:
            self.add("batch_norm")
        if self.random.random() < 0.3:
            self.add("relu")
        self.perhaps_bend()

    def window(self) -> dict[str, int]:
        """Any kernel, stride and padding that leaves pixels; `size` becomes theirs."""
        kernel = int(self.random.choice([k for k in (1, 3, 5) if k <= self.size]))
        stride = int(self.random.integers(1, 3)) if self.size > 3 else 1
        padding = int(self.random.integers(0, kernel // 2 + 1))
        self.size = (self.size + 2 * padding - kernel) // stride + 1
        return {"kernel": kernel, "stride": stride, "padding": padding}

    def quantiser(self) -> None:
        self.add("sign" if self.random.random() < 0.4 else "quantize")

    def perhaps_bend(self) -> None:
        if self.random.random() < 0.3:
            self.add("prelu")

    def residual(self) -> None:
        """A 3×3 convolution that is added to what it reads."""
        entry = self.last
        self.quantiser()
        self.add("binary_conv", width=self.key, kernel=3, padding=1)
        self.add("add", self.add("batch_norm"), entry)
        self.perhaps_bend()

    def floats(self) -> None:
        """One of the operations whose sums of floats are added in any order, or that read such sums."""
        OPERATIONS[int(self.random.integers(len(OPERATIONS)))](self)

    def float_conv(self) -> None:
        self.convolution("conv")

    def relu6(self) -> None:
        """Alone, in front of a quantizer, or of a norm."""
        self.add("relu6")
        if self.random.random() < 0.3:
            self.add("batch_norm")

    def window_average(self) -> None:
        kernel = int(self.random.integers(2, 4))
        if self.size >= kernel:
            stride = int(self.random.integers(1, kernel + 1))
            self.add("average_pool", kernel=kernel, stride=stride)
            self.size = (self.size - kernel) // stride + 1

    def depthwise(self) -> None:
        self.add("depthwise_conv", **self.window())
        self.add("batch_norm")
        if self.random.random() < 0.5:
            self.add("relu")

    def grouped(self) -> None:
        """A convolution with groups, whose widths are numbers."""
        groups, read, written = (int(each) for each in self.random.integers(2, 9, 3))
        self.add("conv", width=groups * read)
        if self.random.random() < 0.5:
            self.add("relu")
        self.key = groups * written
        self.add("conv", width=self.key, groups=groups, **self.window())
        self.add("batch_norm")

    def grouped_bits(self) -> None:
        """A binary convolution with groups: whole words of 32 channels in each, and as many floats as it likes or bits."""
        groups, read, written = (int(each) for each in self.random.integers((2, 1, 1), (4, 3, 3)))
        self.add("conv", width=32 * groups * read)
        self.add("batch_norm")
        self.quantiser()
        self.key = 32 * groups * written
        self.add("binary_conv", width=self.key, groups=groups, **self.window())
        self.add("batch_norm")
        if self.random.random() < 0.5:
            self.quantiser()
            self.convolution("binary_conv")

    def joined(self) -> None:
        """A 3×3 convolution that is joined to what it reads, as in DenseNet; perhaps a batch norm of both."""
        entry = self.last
        self.key = f"width{len(self.widths)}"
        self.widths[self.key] = int(self.random.integers(1, 151))
        self.add("quantize")
        self.add("binary_conv", width=self.key, kernel=3, padding=1)
        self.add("concat", entry, self.add("batch_norm"))
        self.key = ""  # of two widths: nothing can be added
        if self.random.random() < 0.5:
            self.add("batch_norm")

    def squeeze_and_excite(self) -> None:
        """Channels times a gate that is computed of their averages."""
        entry = self.last
        if not self.key:
            return
        inner = f"width{len(self.widths)}"
        self.widths[inner] = int(self.random.integers(1, 33))
        self.add("average_pool")
        self.add("conv", width=inner)
        self.add("relu")
        self.add("conv", width=self.key)
        self.add("batch_norm")
        self.add("multiply", entry, self.add("sigmoid" if self.random.random() < 0.5 else "hard_sigmoid"))

    def rectified(self) -> None:
        """A ReLU in front of the batch norm, which folds into a convolution of signs."""
        self.add("sign" if self.random.random() < 0.7 else "quantize")
        self.key = f"width{len(self.widths)}"
        self.widths[self.key] = int(self.random.integers(1, 151))
        self.add("binary_conv", width=self.key, **self.window())
        self.add("relu")
        self.add("batch_norm")

    def dropout(self) -> None:
        self.add("dropout", rate=0.5)

    def swish(self) -> None:
        entry = self.last
        self.add("multiply", entry, self.add("sigmoid" if self.random.random() < 0.5 else "hard_sigmoid"))


# Those that no network in tests/witnessed has.
OPERATIONS: list[Callable[[Draft], None]] = [Draft.float_conv, Draft.depthwise, Draft.window_average, Draft.relu6]
OPERATIONS += [Draft.joined, Draft.squeeze_and_excite, Draft.swish, Draft.dropout, Draft.rectified]
OPERATIONS += [Draft.grouped, Draft.grouped_bits]


def random_network(seed: int, *, mixed: bool = False) -> Network:
    """One stem and one to five binary convolutions; `mixed`: with other operations among them."""
    draft = Draft(seed)
    draft.convolution("conv")
    for _ in range(int(draft.random.integers(1, 6))):
        if mixed:
            draft.floats()
        if draft.random.random() < 0.4 and draft.key:
            draft.residual()
        else:
            draft.quantiser()
            draft.convolution("binary_conv")
    draft.add("average_pool")
    draft.add("dense", width=7)
    return Network(
        name=f"mixed{seed}" if mixed else f"random{seed}",
        channels=3,
        resolution=draft.resolution,
        classes=7,
        widths=draft.widths,
        layers=tuple(draft.layers),
    )


def forms(count: int, *, mixed: bool = False, int8: bool = False) -> dict[str, tuple[IntegerGraph, NDArray[np.uint8]]]:
    """Integer graphs of random networks, and images; `int8`: with weights of 8 bits at both ends, half of uint8 pixels."""
    made = {}
    for seed in range(count):
        network = random_network(seed, mixed=mixed)
        if int8:
            network = with_stem(network, "int8")
        images = pixels(network, IMAGES, seed)
        weights = trained(network, network.widths, seed, MAGNITUDES[seed % len(MAGNITUDES)], images)
        mean = (MEAN[0],) * network.channels if int8 else MEAN
        graph = folding.fold(network, network.widths, weights, mean, STD)
        made[network.name] = structs.replace(graph, pixels="uint8" if int8 and seed % 2 else "float32"), images
    return made


def test_every_file_computes_the_integer_graph(tmp_path: Path) -> None:
    kept = [one for name, one in witnessed.networks().items() if name.startswith("random")]
    compare([(one.graph, one.images, one.model, one.logits) for one in kept], litert, tmp_path)


def test_the_integer_graph_computes_the_definition() -> None:
    """Each op in float64, on 97 of 100 images: on few a sum of floats lies so near to a threshold that rounding decides."""
    near: list[bool] = []
    for seed in range(0, 36, 3):
        network = random_network(seed)
        images = pixels(network, IMAGES, seed)
        weights = trained(network, network.widths, seed, 1.0, images)
        graph = folding.fold(network, network.widths, weights, MEAN, STD)
        wanted = plain(network, weights, images)
        scale = max(1.0, float(abs(wanted).max()))
        near += list(abs(integer_graph.compute_logits(graph, images) - wanted).max(1) < 1e-4 * scale)
    assert np.mean(near) > 0.97


@pytest.mark.slow
def test_every_file_of_new_networks_computes_the_integer_graph(tmp_path: Path) -> None:
    """Without larq-compute-engine: its operators by our kernels."""
    compare([(*one, None, None) for one in forms(12).values()], litert, tmp_path)


def test_every_file_with_int8_edges_computes_the_integer_graph(tmp_path: Path) -> None:
    made = forms(12, int8=True).values()
    stems = [op for graph, _ in made for op in graph.ops if isinstance(op, integer_graph.Stem)]
    assert {op.counts_in_int8 for op in stems} == {True, False}
    compare([(*one, None, None) for one in made], litert, tmp_path)


@pytest.mark.parametrize("int8", [False, True])
def test_the_official_interpreter_computes_the_integer_graph(
    int8: bool, lce: ModuleType, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made = forms(request.config.getoption("--agreement"), int8=int8)
    models = convert.convert([convert.Program(graph) for graph, _ in made.values()])
    cases = [(*one, model, None) for one, model in zip(made.values(), models, strict=True)]
    compare(cases, lce, tmp_path)


def compare(cases: list[tuple[Any, ...]], interpreter: ModuleType, folder: Path) -> None:
    """Both LCE files bit for bit; ONNX up to the float sums of averages and of the dense layer.

    Those are of a few thousand terms at most: a bit that differed anywhere would move them further.
    """
    assert len(cases) > 7
    told_apart = 0
    direct, official, standard = folder / "direct.tflite", folder / "official.tflite", folder / "standard.onnx"
    for form, images, model, kept in cases:
        official.write_bytes(model or b"")
        exporter.write(form, direct, "direct")
        onnx.write(form, standard)
        wanted = integer_graph.compute_logits(form, images)
        found = {path.stem: logits(interpreter, path, images) for path in ((direct, official) if model else (direct,))}
        found["standard"] = logits(onnxruntime, standard, images)
        np.testing.assert_array_equal(found["direct"], found.get("official", found["direct"]), err_msg=form.name)
        for name, each in (found if kept is None else found | {"kept": kept}).items():
            scale = max(1.0, float(abs(wanted).max()))
            np.testing.assert_allclose(each, wanted, atol=1e-5 * scale, err_msg=f"{form.name}, {name}")
            assert check.compare_logits(each, wanted)[0] == len(wanted)
        told_apart += bool(wanted.std(0).min() > 0)
    assert told_apart > 0.7 * len(cases)  # networks of one channel may be dead


def test_files_of_mixed_networks_compute_the_integer_graph(tmp_path: Path) -> None:
    made = forms(16, mixed=True)
    ops = [(graph, op) for graph, _ in made.values() for op in graph.ops]
    assert {type(op) for _, op in ops} >= set(get_args(integer_graph.GraphOp)), "every op is drawn"
    for kind in (integer_graph.FloatConv, integer_graph.BinaryConv):
        assert any(groups_of(graph, op) > 1 for graph, op in ops if type(op) is kind)
    compare_mixed([(*one, litert, None) for one in made.values()], tmp_path)


def groups_of(graph: IntegerGraph, conv: integer_graph.Conv) -> int:
    return graph.shapes()[conv.inputs[0]][2] // conv.weight.shape[3]


def test_the_official_interpreter_computes_mixed_networks(
    lce: ModuleType, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made = forms(request.config.getoption("--agreement"), mixed=True)
    models = convert.convert([convert.Program(graph) for graph, _ in made.values()])
    cases = [(*one, lce, model) for one, model in zip(made.values(), models, strict=True)]
    compare_mixed(cases, tmp_path)


def compare_mixed(cases: list[tuple[Any, ...]], folder: Path) -> None:
    """Every file, on all images but those of which rounding may decide a bit."""
    told_apart, compared = 0, 0
    for form, images, interpreter, model in cases:
        paths = {folder / "direct.tflite": interpreter, folder / "standard.onnx": onnxruntime}
        exporter.write(form, folder / "direct.tflite", "direct")
        onnx.write(form, folder / "standard.onnx")
        if model is not None:
            (folder / "official.tflite").write_bytes(model)
            paths[folder / "official.tflite"] = interpreter
        wanted, margins = integer_graph.compute_with_margins(form, images)
        clear = margins >= 1
        scale = max(1.0, float(abs(wanted).max()))
        for path, runner in paths.items():
            if path.suffix == ".tflite":  # nothing is stored in vain
                graph = read_graph(path, path.read_bytes())
                stored = {number for number, tensor in enumerate(graph.tensors) if tensor.stored_bytes}
                assert stored <= {number for node in graph.nodes for number in node.inputs}, form.name
            check.check_packed(onnx if path.suffix == ".onnx" else exporter, form, path)
            found = logits(runner, path, images)[clear]
            np.testing.assert_allclose(found, wanted[clear], atol=1e-4 * scale, err_msg=f"{form.name}, {path.stem}")
        compared += clear.sum()
        told_apart += bool(wanted.std(0).min() > 0)
    assert told_apart > 0.7 * len(cases)
    assert compared > 0.5 * sum(len(images) for _, images, *_ in cases)


def logits(runner: ModuleType, path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = runner.open(path, 1)
    (port,) = inputs_of(session)
    return np.concatenate([session.run(image[None].astype(port.dtype)) for image in images])

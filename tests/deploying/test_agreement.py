"""The property that users rely on: one network, however it is written, computes one thing.

Random networks go through the integer graph into three files: LCE written directly and by the official
converter, and ONNX. TensorFlow starts slowly, so one child process converts all of them.

    python -m pytest tests/deploying/test_agreement.py --agreement 200
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from made_up import MEAN, STD, pixels, trained
from numpy.typing import NDArray

from dmsflow.deploying import check, folding, integer_graph
from dmsflow.deploying.exporters import lce, onnx
from dmsflow.deploying.exporters.official import convert
from dmsflow.deploying.integer_graph import IntegerGraph
from dmsflow.modelfile.runners import lce as interpreter
from dmsflow.modelfile.runners import onnxruntime
from dmsflow.network.network import INPUT, Layer, Network

MAGNITUDES = (1.0, 1e-3, 300.0)  # of alphas, and of the scales of batch norms, which have both signs
IMAGES = 4


class Draft:
    """A random network in the making: `last` is its last layer, of `size` pixels and width `key`."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.layers: list[Layer] = []
        self.widths: dict[str, int] = {}
        self.last, self.key, self.size = INPUT, "", int(self.random.integers(12, 28))
        self.resolution = self.size

    def add(self, op: str, *inputs: str, **fields: object) -> str:
        name = f"{op}{len(self.layers)}"
        self.layers.append(Layer(name=name, op=op, inputs=inputs or (self.last,), **fields))  # type: ignore[arg-type]
        self.last = name
        return name

    def convolution(self, op: str) -> None:
        """Any kernel, stride, padding and pool that leaves pixels; perhaps a batch norm and a ReLU."""
        kernel = int(self.random.choice([k for k in (1, 3, 5) if k <= self.size]))
        stride = int(self.random.integers(1, 3)) if self.size > 3 else 1
        padding = int(self.random.integers(0, kernel // 2 + 1))
        self.key = f"width{len(self.widths)}"
        self.widths[self.key] = int(self.random.integers(1, 151))
        self.add(op, width=self.key, kernel=kernel, stride=stride, padding=padding)
        self.size = (self.size + 2 * padding - kernel) // stride + 1
        if self.size >= 4 and self.random.random() < 0.3:
            padded = int(self.random.integers(2))  # 2×2, or padded 3×3
            self.add("max_pool", kernel=2 + padded, stride=2, padding=padded)
            self.size = (self.size + 2 * padded - 2 - padded) // 2 + 1
        if self.random.random() < 0.8:
            self.add("batch_norm")
        if self.random.random() < 0.3:
            self.add("relu")

    def residual(self) -> None:
        """A 3×3 convolution that is added to what it reads."""
        entry = self.last
        self.add("quantize")
        self.add("binary_conv", width=self.key, kernel=3, padding=1)
        self.add("add", self.add("batch_norm"), entry)


def random_network(seed: int) -> Network:
    """One stem and one to five binary convolutions."""
    draft = Draft(seed)
    draft.convolution("conv")
    for _ in range(int(draft.random.integers(1, 6))):
        if draft.random.random() < 0.4:
            draft.residual()
        else:
            draft.add("quantize")
            draft.convolution("binary_conv")
    draft.add("average_pool")
    draft.add("dense", width=7)
    return Network(
        name=f"random{seed}",
        channels=3,
        resolution=draft.resolution,
        classes=7,
        widths=draft.widths,
        layers=tuple(draft.layers),
    )


@dataclass
class Case:
    form: IntegerGraph
    images: NDArray[np.uint8]
    official: Path


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder, made = tmp_path_factory.mktemp("official"), []
    for seed in range(request.config.getoption("--agreement")):
        network = random_network(seed)
        images = pixels(network, IMAGES, seed)
        weights = trained(network, network.widths, seed, MAGNITUDES[seed % len(MAGNITUDES)], images)
        form = folding.fold(network, network.widths, weights, MEAN, STD)
        made.append(Case(form, images, folder / f"{seed}.tflite"))
    contents = convert.convert([convert.Program(case.form) for case in made])
    for case, content in zip(made, contents, strict=True):
        case.official.write_bytes(content)
    return made


def test_every_file_computes_the_integer_graph(cases: list[Case], tmp_path: Path) -> None:
    """Both LCE files bit for bit; ONNX up to the float sums of averages and of the dense layer.

    Those are of a few thousand terms at most: a bit that differed anywhere would move them further.
    """
    told_apart = 0
    for case in cases:
        direct, standard = tmp_path / "direct.tflite", tmp_path / "standard.onnx"
        lce.write(case.form, direct, "direct")
        onnx.write(case.form, standard)
        wanted = integer_graph.compute_logits(case.form, case.images)
        found = {path.stem: logits(interpreter, path, case.images) for path in (direct, case.official)}
        found["standard"] = logits(onnxruntime, standard, case.images)
        np.testing.assert_array_equal(found["direct"], found[case.official.stem], err_msg=case.form.name)
        for name, each in found.items():
            scale = max(1.0, float(abs(wanted).max()))
            np.testing.assert_allclose(each, wanted, atol=1e-5 * scale, err_msg=f"{case.form.name}, {name}")
            assert check.compare_logits(each, wanted)[0] == len(wanted)
        told_apart += bool(wanted.std(0).min() > 0)
    assert told_apart > 0.7 * len(cases)  # networks of one channel may be dead


def logits(runner: object, path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = runner.open(path, 1)  # type: ignore[attr-defined]
    return np.concatenate([session.run(image[None].astype(np.float32)) for image in images])

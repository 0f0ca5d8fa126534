"""A trained network as torch's own layers: the same logits, the same names, and nothing of dmsflow in it."""

from __future__ import annotations

from pathlib import Path

import gated
import pytest
import torch
from made_up import with_signs
from msgspec.structs import replace

import dmsflow
from dmsflow.measuring.random_weights import draw_weights
from dmsflow.network.architectures import birealnet18, densenet, mobilenet, reactnet18, resnet18, vgg11
from dmsflow.network.network import Layer, Network
from dmsflow.settings import Precision
from dmsflow.training.model import Model
from dmsflow.training.plain import build_plain_module


@pytest.mark.parametrize("precision", ["binary", "float"])
@pytest.mark.parametrize(
    "architecture",
    [vgg11, resnet18, birealnet18, reactnet18, densenet, mobilenet, gated],
    ids=lambda module: module.__name__.rpartition(".")[2],
)
def test_the_logits_are_those_of_the_model(architecture, precision) -> None:  # type: ignore[no-untyped-def]
    compare_logits(architecture.build(3, 32, 10), precision)


@pytest.mark.parametrize("precision", ["binary", "float"])
def test_signs_too(precision) -> None:  # type: ignore[no-untyped-def]
    compare_logits(with_signs(resnet18.build(3, 32, 10)), precision)


def compare_logits(network: Network, precision: Precision) -> None:
    torch.manual_seed(0)
    widths = {name: 4 + index for index, name in enumerate(network.widths)}
    model = Model(network, widths, precision=precision)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    for _ in range(3):
        model(torch.randn(16, 3, 32, 32))  # for running statistics of its own
    weights = {name: tensor.detach().contiguous().numpy() for name, tensor in model.eval().tensors().items()}
    plain = build_plain_module(network, widths, weights, is_binary=precision == "binary")
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        wanted, found = model(images), plain(images)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    names = {name for name in plain.state_dict() if "num_batches" not in name}
    assert names == set(weights)
    filters = next(plain.state_dict()[f"{each.name}.weight"] for each in network.layers if each.op == "binary_conv")
    assert (len(torch.unique(filters[0])) == 2) == (precision == "binary")
    assert all(type(module).__module__.startswith("torch.") for module in plain.modules())


def test_dropout_is_torchs_own() -> None:
    average, dense = vgg11.build(1, 32, 4).layers[-2:]
    drop = Layer(name="drop", op="dropout", inputs=(average.name,), rate=0.3)
    layers = (*vgg11.build(1, 32, 4).layers[:-1], drop, replace(dense, inputs=("drop",)))
    network = replace(vgg11.build(1, 32, 4), layers=layers)
    compare_logits(replace(network, channels=3), "binary")
    weights = draw_weights(network, network.widths)
    assert build_plain_module(network, network.widths, weights).get_submodule("drop").p == 0.3


@pytest.mark.parametrize(("name", "there"), [("graph", "graph_"), ("self", "self_"), ("graph.body", "graph_.body")])
def test_names_that_torchs_module_has_itself_get_an_underscore(name: str, there: str) -> None:
    network = vgg11.build(1, 32, 4)
    old = network.layers[0].name
    layers = [
        replace(
            each, name=each.name.replace(old, name), inputs=tuple(name if one == old else one for one in each.inputs)
        )
        if each.name == old or old in each.inputs
        else each
        for each in network.layers
    ]
    network = replace(network, layers=tuple(layers))
    module = build_plain_module(network, network.widths, draw_weights(network, network.widths))
    assert f"{there}.weight" in module.state_dict() and module(torch.zeros(1, 1, 32, 32)).shape == (1, 4)


@pytest.mark.slow
def test_a_model_that_comes_with_dmsflow_is_one() -> None:
    """Compact weights too; and torch.export takes it."""
    trained = dmsflow.load("digits")
    assert isinstance(trained, dmsflow.Trained)
    module, network = trained.module(), trained.network
    images = torch.randn(2, network.channels, network.resolution, network.resolution)
    exported = torch.export.export(module, (images,)).module()
    with torch.no_grad():
        assert torch.equal(exported(images), module(images)) and module(images).shape == (2, network.classes)


def test_damaged_weights_are_one_line(tmp_path: Path, write_train_manifest) -> None:  # type: ignore[no-untyped-def]
    trained = dmsflow.load(write_train_manifest(tmp_path))
    (tmp_path / "train.safetensors").write_bytes(b"no")
    with pytest.raises(dmsflow.DmsflowError, match="train.safetensors: "):
        trained.module()

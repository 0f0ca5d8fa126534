"""Modules that binarise themselves, each as its paper's code does, become the network that a plain module becomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dmsflow
from dmsflow.errors import DmsflowError
from dmsflow.importing.module import read_module
from dmsflow.network.network import Network
from dmsflow.training.model import Model
from dmsflow.training.plain import build_plain_module


class Sign(torch.autograd.Function):
    """A sign whose gradient is its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Tensor:
        return given[0] * (ctx.saved_tensors[0].abs() <= 1)


def polynomial(x: Tensor) -> Tensor:
    """Bi-Real's sign, with the gradient of parabolas, as ReActNet writes it."""
    low, middle, high = ((x < edge).float() for edge in (-1, 0, 1))
    soft = -low + (x * x + 2 * x) * (1 - low)
    soft = soft * middle + (-x * x + 2 * x) * (1 - middle)
    soft = soft * high + 1 - high
    return x.sign().detach() - soft.detach() + soft


def clipped(x: Tensor) -> Tensor:
    """A sign behind a hard tanh."""
    return F.hardtanh(x).sign()


def chosen(x: Tensor) -> Tensor:
    """With a threshold of its own, which a sign here learns."""
    return torch.where(x - 0.1 >= 0, 0.5, -0.5)


def standardised(w: Tensor) -> Tensor:
    """IR-Net's weights: of mean 0 and deviation 1, their signs times a power of 2."""
    w = w - w.flatten(1).mean(1).view(-1, 1, 1, 1)
    w = w / w.flatten(1).std(1).view(-1, 1, 1, 1)
    power = (w.abs().flatten(1).mean(1).log() / math.log(2)).round()
    return Sign.apply(w) * (2**power).view(-1, 1, 1, 1).detach()


def scaled(w: Tensor) -> Tensor:
    """ReActNet's weights."""
    scale = w.abs().mean((1, 2, 3), keepdim=True).detach()
    soft = w.clamp(-1, 1)
    return (scale * w.sign()).detach() - soft.detach() + soft


class Conv(nn.Conv2d):
    """A subclass that binarises in its forward."""

    def __init__(self, *sizes: int, act: Callable[[Tensor], Tensor], binarise: Callable[[Tensor], Tensor]) -> None:
        super().__init__(*sizes, padding=1, bias=False)
        self.act, self.binarise = act, binarise

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.act(x), self.binarise(self.weight), self.bias, self.stride, self.padding)


class OfItsOwn(nn.Module):
    """A layer that is no Conv2d, whose weights lie in another form, with XNOR-Net's scales behind the convolution."""

    def __init__(self, c_in: int, c_out: int, kernel: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.form, self.act = (c_out, c_in, kernel, kernel), act
        self.weights = nn.Parameter(torch.zeros(math.prod(self.form), 1))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights.view(self.form)
        return 0.5 * F.conv2d(self.act(x), weights.sign(), padding=1) * weights.abs().mean((1, 2, 3)).view(1, -1, 1, 1)


class Net(nn.Module):
    """A block with a shortcut, a float 1×1 convolution, and a dense layer."""

    def __init__(self, make: Callable[[int, int, int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.first, self.first_norm = make(6, 6, 3), nn.BatchNorm2d(6)
        self.pool, self.mix, self.mix_norm = nn.AvgPool2d(2), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)
        self.second, self.second_norm, self.fc = make(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images))
        x = self.first_norm(self.first(x)) + x
        x = self.mix_norm(self.mix(self.pool(x)))
        return self.fc((self.second_norm(self.second(x)) + x).mean((2, 3)))


class Plain(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(c_in, c_out, kernel, padding=1), act

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(x))


def read(module: nn.Module) -> Network:
    return read_module(module, "net", 2, 16, 5)


def shape(network: Network) -> list[Any]:
    """Its layers without their names."""
    at = {layer.name: index for index, layer in enumerate(network.layers)}
    return [
        (layer.op, [at.get(name, -1) for name in layer.inputs], layer.kernel, layer.stride, layer.padding)
        for layer in network.layers
    ]


def plain(act: Callable[[Tensor], Tensor]) -> Network:
    module = Net(lambda *sizes: Plain(*sizes, act=act))
    module.float_layers = ("mix",)
    return read(module)


SIGNS = {"sign": torch.sign, "function": Sign.apply, "polynomial": polynomial, "clipped": clipped, "chosen": chosen}
WEIGHTS = {"sign": torch.sign, "function": Sign.apply, "standardised": standardised, "scaled": scaled}


@pytest.mark.parametrize("act", SIGNS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_signs_are_found_however_they_are_written(act: str, weights: str) -> None:
    network = read(Net(lambda *sizes: Conv(*sizes, act=SIGNS[act], binarise=WEIGHTS[weights])))
    assert shape(network) == shape(plain(torch.sign))
    assert [layer.name for layer in network.layers if layer.op == "binary_conv"] == ["first", "second"]
    assert next(layer.op for layer in network.layers if layer.name == "mix") == "conv"


def test_a_layer_of_its_own_has_the_name_of_its_module() -> None:
    network = read(Net(lambda *sizes: OfItsOwn(*sizes, act=polynomial)))
    assert shape(network) == shape(plain(torch.sign))
    assert network.widths == {"stem": 6, "mix": 8}
    assert [layer.name for layer in network.layers if layer.op == "binary_conv"] == ["first", "second"]


@pytest.mark.parametrize(
    "act",
    [
        lambda x: (x > 0.5).to(x.dtype),
        lambda x: F.relu(x).sign(),
        lambda x: (x.sign() + 1) / 2,
        lambda x: 0.7 * x.clamp(0, 1).round(),
        lambda x: ((x + 1) / 2).sigmoid().round(),
        lambda x: torch.heaviside(x.sigmoid() - 0.5, torch.zeros(())),
    ],
)
def test_values_of_0_and_something_are_a_quantizer(act: Callable[[Tensor], Tensor]) -> None:
    network = read(Net(lambda *sizes: Conv(*sizes, act=act, binarise=torch.sign)))
    assert shape(network) == shape(plain(torch.relu))


def test_signs_of_floats_feed_plain_convolutions_too() -> None:
    """Which become binary, as in any module that has no binary weights of its own."""
    found = read(Net(lambda *sizes: Plain(*sizes, act=polynomial)))
    assert shape(found) == shape(read(Net(lambda *sizes: Plain(*sizes, act=torch.sign))))
    assert next(layer.op for layer in found.layers if layer.name == "mix") == "binary_conv"


def test_a_dense_layer_may_binarise_itself_too() -> None:
    class Dense(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(polynomial(x), scaled(self.weight.view(*self.weight.shape, 1, 1)).flatten(1), self.bias)

    def make(dense: nn.Module, act: nn.Module) -> nn.Module:
        stem = (nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.AvgPool2d(4))
        module = nn.Sequential(*stem, act, nn.Flatten(), dense, nn.BatchNorm1d(9), nn.Linear(9, 5))
        return module

    class Acts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sign()

    assert shape(read(make(Dense(96, 9), nn.Identity()))) == shape(read(make(nn.Linear(96, 9), Acts())))


class Grouping(nn.Conv2d):
    """Its weights are signs."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.sign(), None, 1, 1, 1, self.groups)


def test_groups_of_binary_weights_are_of_words() -> None:
    stem = nn.Conv2d(2, 64, 3), nn.BatchNorm2d(64), nn.Hardtanh()
    first, second = Grouping(64, 192, 3, groups=2), Grouping(192, 32, 3)
    end = nn.BatchNorm2d(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)

    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sign()

    found = read(nn.Sequential(*stem, Sign(), first, nn.BatchNorm2d(192), Sign(), second, *end))
    assert [(each.op, each.width, each.groups) for each in found.layers if each.width and each.op != "dense"] == [
        ("conv", 64, 1),
        ("binary_conv", 192, 2),
        ("binary_conv", "7", 1),
    ]


@pytest.mark.parametrize("groups", [2, 6])  # of the latter each is a channel
def test_other_groups_of_binary_weights_are_refused(groups: int) -> None:
    with pytest.raises(DmsflowError, match="net: first: binarises the weights of a convolution with groups; give"):
        read(Net(lambda c_in, c_out, kernel: Grouping(c_in, c_out, kernel, groups=groups if c_in == 6 else 1)))


def test_constants_are_no_signs() -> None:
    with pytest.raises(DmsflowError, match="net: first.ge: uses ge"):
        read(Net(lambda *sizes: Conv(*sizes, act=lambda x: (x >= x).float(), binarise=torch.sign)))


@pytest.mark.parametrize(
    ("act", "weights", "line"),
    [
        (
            torch.sign,
            torch.tanh,
            "net: first.conv2d: computes its weights; let them be a parameter, or the signs of one",
        ),
        (torch.sign, lambda w: w.sign() * (w.abs() > 0.1), "net: first.conv2d: computes its weights"),
        (torch.sign, torch.abs, "net: first.conv2d: computes its weights"),
        (lambda x: (x * 2).round() / 2, torch.sign, "net: first.mul: uses mul"),
        (lambda x: x.sign() * x.abs().mean(1, keepdim=True), torch.sign, "net: first.abs: uses abs"),
    ],
)
def test_other_numbers_are_refused(act: Any, weights: Any, line: str) -> None:
    with pytest.raises(DmsflowError, match=line):
        read(Net(lambda *sizes: Conv(*sizes, act=act, binarise=weights)))


def test_a_hard_tanh_that_more_than_signs_read_is_refused() -> None:
    class Clipped(Net):
        def forward(self, images: Tensor) -> Tensor:
            x = F.hardtanh(self.norm(self.stem(images)))
            x = self.mix_norm(self.mix(self.first_norm(self.first(x)) + x))
            return self.fc(x.mean((2, 3)))

    with pytest.raises(DmsflowError, match="hardtanh: uses hardtanh, .*; leave it out in front of a sign"):
        read(Clipped(lambda *sizes: Conv(*sizes, act=torch.sign, binarise=torch.sign)))


def test_it_goes_through_all_stages_and_comes_back(tmp_path: Path) -> None:
    module = Net(lambda *sizes: OfItsOwn(*sizes, act=polynomial))
    module.stem, module.fc = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(8, 10)
    searched = dmsflow.search(
        module, "digits", memory_mib=0.003, method="equal", resolution=16, out=tmp_path / "search"
    )
    trained = dmsflow.train(searched, epochs=1, out=tmp_path / "train")
    assert dmsflow.bench(dmsflow.export(trained, out=tmp_path / "export"), runs=3).latency_ms > 0
    back = dmsflow.load(tmp_path / "train" / "train.json").module()
    assert {"stem.weight", "first.weight", "second.weight", "fc.weight"} <= set(back.state_dict())


@pytest.mark.parametrize("act", [polynomial, lambda x: (x > 0.5).to(x.dtype)], ids=["sign", "quantizer"])
@pytest.mark.parametrize("make", [Conv, OfItsOwn])
def test_its_module_computes_what_is_trained(make: Any, act: Any) -> None:
    """Signs and scales have names inside the layer that reads them; both are there."""
    more = {"binarise": scaled} if make is Conv else {}
    network = read(Net(lambda *sizes: make(*sizes, act=act, **more)))
    model = Model(network, network.widths).eval()
    back = build_plain_module(
        network, network.widths, {name: each.detach().numpy() for name, each in model.tensors().items()}
    )
    images = torch.randn(3, 2, 16, 16)
    torch.testing.assert_close(back(images), model(images), rtol=1e-4, atol=1e-4)
    assert back.double()(images.double()).dtype == torch.float64


@pytest.mark.parametrize("act", [lambda x: (x > 0.5).to(x.dtype), lambda x: x.sigmoid().round()])
def test_a_step_that_floats_read_is_refused(act: Callable[[Tensor], Tensor]) -> None:
    class Stepped(Net):
        def forward(self, images: Tensor) -> Tensor:
            return self.fc(act(self.mix_norm(self.mix(self.norm(self.stem(images))))).mean((2, 3)))

    with pytest.raises(DmsflowError, match="gives 0 or another value to mean, which is not binary; give it what comes"):
        read(Stepped(lambda *sizes: Plain(*sizes, act=torch.relu)))


@pytest.mark.parametrize(
    "act",
    [
        lambda x: (x.clamp(0, 10) * 0.3).round() / 0.3,
        lambda x: (F.relu6(x) / 3).round() * 3,
        lambda x: (x / 4).clamp(0, 15).round() * 4,
        lambda x: torch.where(x.abs() < 5e-4, 0.0, x.sign()),
    ],
)
def test_activations_of_several_bits_are_no_quantizer(act: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(DmsflowError, match="which no binary network here has"):
        read(Net(lambda *sizes: Conv(*sizes, act=act, binarise=torch.sign)))


def test_a_parametrised_layer_has_the_name_of_its_module() -> None:
    class Signs(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.sign()

    def make(*sizes: int) -> nn.Module:
        layer = Plain(*sizes, act=torch.sign)
        nn.utils.parametrize.register_parametrization(layer.conv, "weight", Signs())
        return layer

    found = read(Net(make))
    assert [layer.name for layer in found.layers if layer.op == "binary_conv"] == ["first.conv", "second.conv"]

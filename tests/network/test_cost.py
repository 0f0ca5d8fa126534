"""The cost model reproduces the paper's memory column, and tensors cost what ints cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import with_signs
from msgspec import structs

from dmsflow.network import cost
from dmsflow.network.network import Layer, Network, with_stem
from dmsflow.plugin import list_plugins, load_plugin


def network(name: str, resolution: int = 32, classes: int = 10) -> Network:
    return load_plugin("networks", name).build(3, resolution, classes)


def mib(built: Network, times: int = 1, *, binary: bool = True) -> float:
    widths = {name: base * times for name, base in built.widths.items()}
    return cost.memory_bytes(built, widths, binary=binary) / cost.MIB


@pytest.mark.parametrize(("times", "expected"), [(1, 0.0778), (2, 0.2929), (3, 0.6453), (4, 1.135)])
def test_vgg11_has_the_memory_of_table_1(times: int, expected: float) -> None:
    assert mib(network("vgg11"), times) == pytest.approx(expected, abs=0.5 * 10 ** -len(str(expected).split(".")[1]))


def test_8_bits_are_a_quarter_of_float32() -> None:
    built = network("vgg11")
    spared = 3 * (built.widths["conv0"] * 9 * 3 + 10 * built.widths["conv7"])
    int8 = with_stem(built, "int8")
    assert cost.memory_bytes(built, built.widths) - cost.memory_bytes(int8, built.widths) == spared
    assert mib(int8, binary=False) == mib(built, binary=False)


def test_a_convolution_whose_sums_float32_might_not_hold_keeps_float_weights() -> None:
    built = network("vgg11")
    (first, *others) = built.layers
    assert [
        with_stem(
            structs.replace(built, layers=(structs.replace(first, kernel=kernel, padding=kernel // 2), *others)), "int8"
        )
        .layers[0]
        .bits
        for kernel in (3, 13, 15)
    ] == [8, 8, 32]


def test_full_precision_on_cifar() -> None:
    assert mib(network("vgg11"), binary=False) == pytest.approx(2.204, abs=5e-4)
    assert mib(network("resnet18"), binary=False) == pytest.approx(2.667, abs=5e-4)


def test_resnet18_on_cifar() -> None:
    assert mib(network("resnet18")) == pytest.approx(0.094, abs=5e-4)


def test_resnet18_on_imagenet_in_full_precision() -> None:
    assert mib(network("resnet18", 224, 1000), binary=False) == pytest.approx(44.56, abs=5e-3)


@pytest.mark.parametrize(("times", "papers"), [(1, 3.29), (2, 9.24), (3, 17.8), (4, 29.1)])
def test_resnet18_on_imagenet(times: int, papers: float) -> None:
    assert mib(network("resnet18", 224, 1000), times) == pytest.approx(papers, rel=0.02)


def test_a_prelu_has_three_floats_a_channel_in_full_precision_too() -> None:
    built = network("resnet18")
    layers = tuple(structs.replace(each, op="prelu") if each.op == "relu" else each for each in built.layers)
    bent, reads = structs.replace(built, layers=layers), 16 * 3 + 32 * 2 + 64 * 2 + 128 * 2
    for binary in (True, False):
        plain, more = (cost.memory_bytes(each, built.widths, binary=binary) for each in (built, bent))
        assert more - plain == 4 * 3 * reads


def test_macs_of_vgg11_by_hand() -> None:
    """Each conv: inputs · outputs · 9 · pixels; the last dense: 128 · 10."""
    convs = [
        (3, 16, 32),
        (16, 32, 16),
        (32, 64, 8),
        (64, 64, 8),
        (64, 128, 4),
        (128, 128, 4),
        (128, 128, 2),
        (128, 128, 2),
    ]
    expected = [inputs * outputs * 9 * size**2 for inputs, outputs, size in convs]
    built = network("vgg11")
    assert cost.macs(built, built.widths) == sum(expected) + 1280
    assert cost.macs(built, built.widths) == pytest.approx(9.9e6, rel=0.01)


def test_the_accounting_by_hand() -> None:
    """A bit for each binary weight, four bytes for each scale, each float weight and each bias."""
    pairs = [(16, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 128), (128, 128)]
    binary = sum(inputs * outputs * 9 / 8 + 4 * outputs for inputs, outputs in pairs)
    built = network("vgg11")
    assert cost.memory_bytes(built, built.widths) == binary + 4 * (3 * 16 * 9) + 4 * (128 * 10 + 10)


def test_the_shifts_of_signs_are_floats_and_a_float_network_has_none() -> None:
    built = network("vgg11")
    signed, reads = with_signs(built), 16 + 32 + 64 + 64 + 128 + 128 + 128
    assert cost.memory_bytes(signed, built.widths) == cost.memory_bytes(built, built.widths) + 4 * reads
    assert mib(signed, binary=False) == mib(built, binary=False)
    assert cost.macs(signed, built.widths) == cost.macs(built, built.widths)


@pytest.mark.parametrize("name", list_plugins("networks"))
@given(data=st.data())
def test_tensors_cost_what_ints_cost(name: str, data: st.DataObject) -> None:
    built = network(name)
    widths = {key: data.draw(st.integers(1, 700), label=key) for key in built.widths}
    tensors = {key: torch.tensor(float(width), dtype=torch.float64) for key, width in widths.items()}
    for function in (cost.memory_bytes, cost.macs):
        assert function(built, tensors).item() == function(built, widths)


@pytest.mark.parametrize("name", list_plugins("networks"))
def test_the_gradient_of_memory_is_the_difference_of_one_channel(name: str) -> None:
    """Memory is quadratic in all widths and linear in one, unless a layer has it on both sides."""
    built = network(name)
    for key, width in built.widths.items():
        tensor = torch.tensor(float(width), dtype=torch.float64, requires_grad=True)
        cost.memory_bytes(built, {**built.widths, key: tensor}).backward()
        more = cost.memory_bytes(built, {**built.widths, key: width + 1})
        less = cost.memory_bytes(built, {**built.widths, key: width - 1})
        assert tensor.grad is not None
        assert tensor.grad.item() == pytest.approx((more - less) / 2, rel=1e-12)


def test_a_float_convolution_counts_32_bits_a_weight() -> None:
    layers = (
        Layer(name="stem", op="conv", inputs=("input",), width="a", kernel=3, padding=1),
        Layer(name="wider", op="conv", inputs=("stem",), width="b", kernel=3, stride=2, padding=1),
        Layer(name="average", op="average_pool", inputs=("wider",)),
        Layer(name="dense", op="dense", inputs=("average",), width=10),
    )
    network = Network(name="n", channels=3, resolution=8, classes=10, widths={"a": 4, "b": 6}, layers=layers)
    wider = next(size for size in cost.layer_bytes(network, network.widths) if size.layer == "wider")
    assert (wider.binary_bytes, wider.float_bytes) == (0, 4 * 4 * 6 * 9)
    assert cost.macs(network, network.widths) == 64 * 3 * 4 * 9 + 16 * 4 * 6 * 9 + 60

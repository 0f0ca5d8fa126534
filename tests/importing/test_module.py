"""A PyTorch module becomes a network: in full precision the same function, and what is not supported is named."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dmsflow
from dmsflow import cli
from dmsflow.datasets._torchvision import import_torchvision
from dmsflow.errors import DmsflowError
from dmsflow.importing import load_network
from dmsflow.importing.module import call_module, read_module
from dmsflow.network import cost
from dmsflow.network.network import INPUT, Network, out_widths
from dmsflow.training.model import Model

HERE = Path(__file__).parent
relu = nn.functional.relu


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, **fields: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, **fields)


class Residual(nn.Module):
    """Additions of an image that shrinks, of one that does not, and calls of one module twice."""

    def __init__(self, num_classes: int = 5, in_channels: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(in_channels, 6), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
        self.first, self.norm = conv(6, 8, stride=2, bias=False), nn.BatchNorm2d(8)
        self.skip = nn.Sequential(conv(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
        self.second, self.last_norm, self.relu = conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.bend, self.drop, self.fc = nn.PReLU(8, 0.4), nn.Dropout(0.5), nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = self.relu(self.norm(self.first(x)) + self.skip(x))
        x = self.bend(torch.add(self.last_norm(self.second(x)), x))
        return self.fc(self.drop(x.mean((2, 3))))


class LearnedBias(nn.Module):
    """As ReActNet's code has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.expand_as(x)


class React(nn.Module):
    """Blocks of sign, convolution, addition and RPReLU; shifts of one parameter in all forms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(2, 6), nn.BatchNorm2d(6)
        self.before_sign, self.conv, self.conv_norm = LearnedBias(6), conv(6, 6), nn.BatchNorm2d(6)
        self.before, self.prelu, self.after = LearnedBias(6), nn.PReLU(6), LearnedBias(6)
        self.shift, self.last, self.last_prelu = nn.Parameter(torch.zeros(6)), conv(6, 6), nn.PReLU()
        self.fc = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images))
        x = self.conv_norm(self.conv(torch.sign(self.before_sign(x)))) + x
        x = self.after(self.prelu(self.before(x)))
        x = self.last_prelu(self.last((x + self.shift.view(1, -1, 1, 1)).sign()) + self.shift.view(-1, 1, 1)) + x
        return self.fc(x.mean((2, 3)))


def test_signs_and_prelus_are_layers_that_learn_the_shifts_beside_them() -> None:
    network = read_module(React(), "net", 2, 16, 5)
    found = {layer.name: (layer.op, layer.inputs) for layer in network.layers if layer.op in ("sign", "prelu")}
    assert found == {
        "sign": ("sign", ("norm",)),
        "prelu": ("prelu", ("add",)),
        "sign_2": ("sign", ("prelu",)),
        "last_prelu": ("prelu", ("last_norm",)),
    }
    assert [layer.name for layer in network.layers if layer.op == "binary_conv"] == ["conv", "last"]
    assert not any("bias" in layer.name or "before" in layer.name for layer in network.layers)


class Separable(nn.Module):
    """Depthwise convolutions, one with a bias and no norm, an average over windows, ReLU6, and float layers by name."""

    float_layers: Any = ("each.0", "mix.1", "hidden")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(2, 6), nn.BatchNorm2d(6), nn.ReLU6())
        self.each = nn.Sequential(conv(6, 6, stride=2, groups=6), nn.ReLU6())
        self.mix = nn.Sequential(nn.AvgPool2d(3, 2), conv(6, 9, 1), nn.BatchNorm2d(9), nn.ReLU())
        self.after = nn.Sequential(conv(9, 9, groups=9, bias=False), nn.BatchNorm2d(9), nn.ReLU())
        self.pointwise = nn.Sequential(conv(9, 7, 1), nn.BatchNorm2d(7), nn.ReLU())
        self.hidden, self.fc = nn.Linear(7 * 9, 8), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pointwise(self.after(self.mix(self.each(self.stem(images)))))
        return self.fc(relu(self.hidden(x.flatten(1))))


def make_plain(classes: int) -> nn.Module:
    """Biases without norms, a dense layer over several pixels, and pools before and behind the ReLU."""
    return nn.Sequential(
        *(conv(2, 4), nn.ReLU(), nn.MaxPool2d(2), conv(4, 6, bias=True), nn.MaxPool2d(2), nn.ReLU()),
        *(conv(6, 6), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        *(nn.Linear(6 * 16, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU()),
        nn.Linear(9, classes),
    )


class Gated(nn.Module):
    """Squeeze-and-excite of convolutions and of dense layers, swishes, and channels that are joined and then added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(2, 6, stride=2), nn.BatchNorm2d(6), nn.Hardswish())
        self.left = nn.Sequential(nn.ReLU(), conv(6, 4), nn.BatchNorm2d(4), nn.SiLU())
        self.right = nn.Sequential(nn.ReLU(), conv(6, 5, 1), nn.BatchNorm2d(5))
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(6, 3, 1), nn.SiLU(), conv(3, 6, 1), nn.Hardsigmoid())
        self.first, self.second = nn.Linear(4, 2), nn.Linear(2, 4)
        self.again, self.third = (nn.Sequential(nn.ReLU(), conv(15, c), nn.BatchNorm2d(c)) for c in (4, 5))
        self.fc = nn.Linear(15, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        left = self.left(x)
        gate = torch.sigmoid(self.second(relu(self.first(left.mean((2, 3)))))).view(-1, 4, 1, 1)
        joined = torch.cat([left * gate.expand_as(left), self.right(x), self.squeeze(x) * x], 1)
        joined = joined + torch.cat([self.again(joined), self.third(joined), x], 1)
        return self.fc((joined * torch.sigmoid(joined)).mean((2, 3)))


def randomise(module: nn.Module) -> None:
    torch.manual_seed(0)
    for each in module.modules():
        if isinstance(each, (nn.BatchNorm2d, nn.BatchNorm1d)):
            each.weight.data.uniform_(0.5, 1.5)  # positive, as training keeps it: then a max pool may go first
            each.bias.data.normal_()
            each.running_mean.normal_()  # type: ignore[union-attr, operator]
            each.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]


@torch.no_grad()
def give_weights(network: Network, state: dict[str, Tensor]) -> Model:
    """The network in full precision with a module's weights, by the names of its layers; biases go into the norms."""
    model = Model(network, network.widths, precision="float").eval()
    tensors = model.tensors()
    for name, tensor in tensors.items():
        if name.endswith(".slope"):
            tensor.copy_(state[name.replace(".slope", ".weight")])
        if name in state:
            tensor.copy_(state[name].reshape(tensor.shape))
    behind = {layer.inputs[0]: layer for layer in network.layers}
    for layer in network.layers:
        if layer.op.endswith("conv") and f"{layer.name}.bias" in state:
            norm = behind[layer.name] if behind[layer.name].op == "batch_norm" else behind[behind[layer.name].name]
            tensors[f"{norm.name}.running_mean"].sub_(state[f"{layer.name}.bias"])
    return model


class Lambda(nn.Module):
    """A function of itself and the images, with modules, parameters and buffers by name."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **held: Any) -> None:
        super().__init__()
        self.function = function
        for name, each in held.items():
            setattr(self, name, each)

    def forward(self, images: Tensor) -> Any:
        return self.function(self, images)


def add_branches(self: Any, x: Tensor) -> Tensor:
    """An addition as Python has it, which begins at 0; a branch that nobody reads; views of the same pixels."""
    x = relu(self.stem(x))
    self.unused(x).sigmoid()
    x = relu(sum([self.left(x), self.right(x.view(x.size(0), 4, 16, 16))]))  # type: ignore[arg-type]
    return self.fc(x.flatten(2).mean(-1))


def make_flattened() -> nn.Module:
    """A ReLU behind Flatten, and names that those of added layers could take."""
    module = nn.Sequential(conv(2, 4), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.ReLU(), nn.Linear(64, 6))
    module.add_module("0_norm", nn.BatchNorm1d(6))
    module.add_module("input", nn.ReLU())
    module.add_module("last", nn.Linear(6, 5))
    return module


def make_torchvision(name: str) -> nn.Module:
    return import_torchvision().models.get_model(name, weights=None, num_classes=5)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Residual(), (2, 16, 16)),
        (make_plain(5), (2, 16, 16)),
        (make_flattened(), (2, 16, 16)),
        (Separable(), (2, 16, 16)),
        (Gated(), (2, 16, 16)),
        # The stem is not the first that is made, and the unused branch has what no network has.
        (
            Lambda(
                add_branches,
                left=conv(4, 6),
                right=conv(4, 6, 1),
                unused=conv(4, 3),
                stem=conv(2, 4),
                fc=nn.Linear(6, 5),
            ),
            (2, 16, 16),
        ),
        pytest.param("resnet18", (3, 64, 64), marks=pytest.mark.slow),
        pytest.param("alexnet", (3, 224, 224), marks=pytest.mark.slow),
    ],
    ids=["residual", "plain", "flattened", "separable", "gated", "branches", "resnet18", "alexnet"],
)
def test_in_full_precision_it_computes_the_module(module: nn.Module | str, shape: tuple[int, int, int]) -> None:
    module = make_torchvision(module) if isinstance(module, str) else module
    randomise(module)
    network = read_module(module, "net", shape[0], shape[1], 5)
    model = give_weights(network, module.state_dict())
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = module.eval()(images), model(images)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.slow
def test_torchvisions_mobilenet_v2_has_float_depthwise_and_binary_1x1_convolutions() -> None:
    network = load_network("torchvision:mobilenet_v2", 3, 32, 10)
    ops = Counter((layer.op, layer.kernel) for layer in network.layers if layer.op.endswith("conv"))
    assert ops == {("conv", 3): 1, ("depthwise_conv", 3): 17, ("binary_conv", 1): 34}
    assert (
        Counter(layer.op for layer in network.layers)["relu6"] == 18
    )  # in front of depthwise convolutions and of the average


def test_dropout_stays_in_front_of_layers_that_stay_float() -> None:
    drops = [
        [(layer.inputs, layer.rate) for layer in read_module(each, "net", 2, 16, 5).layers if layer.op == "dropout"]
        for each in (
            Residual(),
            make_plain(5),  # in front of a binary layer
            nn.Sequential(make_flattened(), nn.Dropout(0.3)),  # behind all
            nn.Sequential(
                *list(make_flattened())[:-1], nn.Dropout(0.1), nn.Dropout(0.2), nn.Dropout(0), nn.Linear(6, 5)
            ),
        )
    ]
    assert drops == [[(("mean",), 0.5)], [], [], [(("7",), 0.1), (("8",), 0.2)]]


def test_depthwise_and_named_layers_stay_float() -> None:
    network = read_module(Separable(), "net", 2, 16, 5)
    ops = {layer.name: layer.op for layer in network.layers}
    assert [name for name, op in ops.items() if op == "conv"] == ["stem.0", "mix.1", "hidden"]
    assert [name for name, op in ops.items() if op == "depthwise_conv"] == ["each.0", "after.0"]
    assert [name for name, op in ops.items() if op == "binary_conv"] == ["pointwise.0"]
    assert ops["stem.2"] == ops["each.1"] == "relu6" and ops["after.2"] == "quantize" and ops["mix.3"] == "relu"
    assert list(network.widths) == ["stem.0", "mix.1", "pointwise.0", "hidden"]  # a depthwise one has none


def test_convolutions_with_groups_stay_float_and_fix_the_widths_around_them() -> None:
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU())
            self.reduce = nn.Sequential(nn.Conv2d(16, 12, 1), nn.ReLU())
            self.groups = nn.Sequential(nn.Conv2d(12, 18, 3, padding=1, groups=6), nn.ReLU())
            self.expand = nn.Conv2d(18, 16, 1)
            self.dense = nn.Linear(16, 5)

        def forward(self, images: Tensor) -> Tensor:
            x = self.stem(images)
            return self.dense((x + self.expand(self.groups(self.reduce(x)))).mean((2, 3)))  # type: ignore[no-any-return]

    network = read_module(Bottleneck(), "net", 2, 16, 5)
    widths = {layer.name: (layer.op, layer.width, layer.groups) for layer in network.layers if layer.width}
    assert widths == {
        "stem.0": ("conv", "stem.0", 1),
        "reduce.0": ("binary_conv", 12, 1),
        "groups.0": ("conv", 18, 6),
        "expand": ("binary_conv", "stem.0", 1),
        "dense": ("dense", 5, 1),
    }
    assert network.widths == {"stem.0": 16}


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("mix.0",), "net: float_layers: names 'mix.0', which has no convolution; name one of stem.0, each.0, mix.1"),
        ("mix", "net: float_layers: is of type str; give a tuple of names"),
    ],
)
def test_float_layers_that_are_none_are_refused(names: Any, line: str) -> None:
    module = Separable()
    module.float_layers = names
    with pytest.raises(DmsflowError) as caught:
        read_module(module, "net", 2, 16, 5)
    assert line in str(caught.value)


def test_a_part_of_the_module_may_stay_float() -> None:
    module = Residual()
    module.float_layers = ["skip", "second"]  # type: ignore[assignment]
    network = read_module(module, "net", 2, 16, 5)
    assert [layer.name for layer in network.layers if layer.op == "conv"] == ["stem.0", "skip.0", "second"]
    assert [layer.name for layer in network.layers if layer.op == "binary_conv"] == ["first"]


def test_the_user_may_name_float_layers_of_a_module_too(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    float_layers = ('2',)\n\n    def __init__(self):\n"
        "        convs = [layer for c in (2, 4, 4, 4) for layer in (nn.Conv2d(c, 4, 1), nn.ReLU())]\n"
        "        super().__init__(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))\n"
    )
    for name, floats in (
        (f"{path}:Net", ["0", "2"]),
        (f"{path}:Net+6", ["0", "2", "6"]),
        (f"{path}:Net+6+4", list("0246")),
    ):
        network = load_network(name, 2, 16, 5)
        assert [layer.name for layer in network.layers if layer.op == "conv"] == floats
        assert network.name == name.rpartition(":")[2]
    with pytest.raises(
        DmsflowError, match=r"Net\+8: float_layers: names '8', which has no convolution; name one of 0, 2"
    ):
        load_network(f"{path}:Net+8", 2, 16, 5)


@pytest.mark.slow
def test_parts_of_torchvisions_classifiers_may_stay_float() -> None:
    network = load_network("torchvision:resnet18+layer1.0.conv2+layer4.0.downsample", 3, 64, 10)
    floats = [layer.name for layer in network.layers if layer.op == "conv"]
    assert floats == ["conv1", "layer1.0.conv2", "layer4.0.downsample.0"]


def test_gates_stay_float_and_joined_channels_share_their_widths() -> None:
    network = read_module(Gated(), "net", 2, 16, 5)
    floats = [layer.name for layer in network.layers if layer.op == "conv"]
    assert floats == ["stem.0", "first", "second", "squeeze.1", "squeeze.3"]
    assert out_widths(network)["cat"] == ("left.1", "right.1", "stem.0") == out_widths(network)["cat_2"]
    assert list(network.widths) == ["stem.0", "left.1", "first", "right.1", "squeeze.1"]
    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    quantised = read_module(nn.Sequential(conv(2, 4), nn.SiLU(), conv(4, 4), *end), "net", 2, 16, 5)
    assert [layer.op for layer in quantised.layers][:3] == ["conv", "batch_norm", "quantize"]


def test_subclasses_that_compute_what_torchs_layers_do_have_their_names() -> None:
    kinds = {each: type(each, (getattr(nn, each),), {}) for each in ("Conv2d", "BatchNorm2d", "ReLU", "Linear")}
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), kinds["Linear"](4, 5)
    made = nn.Sequential(kinds["Conv2d"](2, 4, 3), kinds["BatchNorm2d"](4), kinds["ReLU"](), nn.Conv2d(4, 4, 3), *ends)
    assert [layer.name for layer in read_module(made, "net", 2, 16, 5).layers] == [
        "0",
        "1",
        "2",
        "3",
        "3_norm",
        "4",
        "6",
    ]


def test_a_copy_may_be_changed_in_place() -> None:
    network = read_module(Broken(Lambda(lambda _, x: x.clone().relu_() + x)), "net", 2, 16, 5)
    assert [layer.inputs for layer in network.layers if layer.op == "add"] == [("middle.relu", "stem_norm")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_of_the_weights_does_not_matter(dtype: torch.dtype) -> None:
    cast = Broken(
        nn.Sequential(Lambda(lambda _, x: x.to(torch.float32, memory_format=torch.channels_last)), conv(4, 4))
    )
    assert [layer.op for layer in read_module(cast, "net", 2, 16, 5).layers][2:4] == ["quantize", "binary_conv"]
    assert read_module(Residual().to(dtype), "net", 2, 16, 5) == read_module(Residual(), "net", 2, 16, 5)


def test_only_the_first_and_the_last_layer_stay_float() -> None:
    network = read_module(make_plain(5), "net", 2, 16, 5)
    floats = [layer.inputs for layer in network.layers if layer.op == "conv"]
    assert floats == [(INPUT,)]
    assert [layer.name for layer in network.layers if layer.op == "dense"] == [network.layers[-1].name]
    assert len([layer for layer in network.layers if layer.op == "binary_conv"]) == 4
    (over_pixels,) = (layer for layer in network.layers if layer.name == "11")
    assert (over_pixels.kernel, network.widths["11"]) == (4, 12)


def test_what_is_added_shares_a_width_and_names_are_those_of_the_module() -> None:
    network = read_module(Residual(), "net", 2, 16, 5)
    assert network.widths == {"stem.0": 6, "first": 8}
    assert {layer.name: layer.width for layer in network.layers if layer.op == "binary_conv"} == dict.fromkeys(
        ("first", "skip.0", "second"), "first"
    )
    assert [layer.name for layer in network.layers if layer.op == "quantize"] == ["stem.2", "relu_quantize"]
    assert [layer.name for layer in network.layers if layer.op in ("relu", "prelu")] == ["relu", "bend"]


@pytest.mark.slow
def test_torchvisions_resnet18_costs_what_ours_does() -> None:
    theirs, ours = (load_network(name, 3, 224, 1000) for name in ("torchvision:resnet18", "resnet18"))
    for count in (cost.memory_bytes, cost.macs):
        assert count(theirs, theirs.widths) == count(ours, ours.widths)
    assert sorted(theirs.widths.values()) == sorted(ours.widths.values())


class Broken(nn.Module):
    """A stem, something that is not supported, and a classifier."""

    def __init__(self, middle: Any) -> None:
        super().__init__()
        self.stem, self.middle, self.fc = conv(2, 4), middle, nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.middle(self.stem(images)).mean((2, 3)))


class Joined(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, relu(x)], 2)


WIDE = {"wide": conv(4, 8), "end": conv(8, 4)}


class Depends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def call_twice(self: Any, x: Tensor) -> Tensor:
    return relu(self.layer(relu(self.layer(x))))


def weigh(self: Any, x: Tensor) -> Tensor:
    return nn.functional.conv2d(x, self.weight.view(4, 4, 1, 1))


def add_to_changed(self: Any, x: Tensor) -> Tensor:
    return self.part(x) + x


IN_PLACE = "changes a tensor in place that is read in another form later; leave inplace out of it"
ADDS = "middle.add: adds something other than two layers of the same channels and pixels; add two such layers, each"
CONSTANTS = "middle.add: adds a number to each channel; put it beside a convolution, batch norm, PReLU or sign, which"
# Each was another function in the network, or a traceback.
CHANGED = [
    (Broken(Lambda(call_twice, layer=conv(4, 4))), "middle.layer: is called twice; make a module for each call"),
    (Broken(Lambda(call_twice, layer=nn.BatchNorm2d(4))), "middle.layer: is called twice; make a module for each"),
    (Broken(Lambda(lambda _, x: x + 1)), ADDS),
    (Broken(Lambda(lambda _, x: x + x)), ADDS),
    (Broken(Lambda(lambda self, x: relu(x) + self.shift, shift=nn.Parameter(torch.ones(4, 1, 1)))), CONSTANTS),
    (Broken(Lambda(lambda self, x: x + self.shift, shift=nn.Parameter(torch.ones(16)))), ADDS),
    (
        Broken(nn.Sequential(conv(4, 1), Lambda(lambda self, x: x + self.b, b=nn.Parameter(torch.ones(4, 1, 1))))),
        "1.add: adds",
    ),
    (
        nn.Sequential(conv(2, 4), nn.MaxPool2d(8), nn.Flatten(), nn.PReLU(16), nn.Linear(16, 5)),
        "3: has slopes for flattened pixels; put the PReLU in front of Flatten",
    ),
    (Broken(Lambda(lambda self, x: x + self.gate(x), gate=conv(4, 1))), ADDS),
    (Broken(nn.Conv2d(4, 4, 4, padding="same")), "middle: pads one side more than the other; use an odd kernel"),
    (Broken(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), "middle: uses pad, which no binary"),
    (Broken(nn.Linear(16, 16)), "middle: reads 4×16×16 values; flatten them in front of a Linear layer"),
    (Broken(nn.AvgPool2d(16, padding=1)), "middle: averages single pixels, or with padding or a"),
    (Broken(nn.AvgPool2d(16, divisor_override=7)), "middle: averages single pixels, or with padding or a divisor"),
    (Broken(nn.Sequential(Lambda(lambda _, x: x.view(2, 4, 8, 32)), conv(4, 4))), "1: reads pixels in another form, 4"),
    (Broken(nn.BatchNorm2d(4, track_running_stats=False)), "middle: keeps no running statistics; leave"),
    (Broken(Lambda(weigh, weight=nn.Parameter(torch.ones(4, 4)))), "middle.conv2d: computes its weights; let them be"),
    (
        nn.Sequential(conv(2, 16), Lambda(lambda _, x: x.mean((1, 2))), nn.Linear(16, 5)),
        "1.mean: uses mean, which no binary network here has; average over all pixels, as mean((2, 3)) does",
    ),
    (
        nn.Sequential(conv(2, 4), nn.MaxPool2d(8), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 5)),
        "3: normalises flattened pixels; put a BatchNorm2d in front of Flatten",
    ),
    (nn.Sequential(nn.Flatten(), nn.Linear(512, 5)), "1: reads the image itself (linear); begin with a Conv2d"),
    (
        Lambda(lambda self, x: (y := self.stem(x), relu(y)), stem=conv(2, 4)),
        "puts out 2 tensors; return the class scores",
    ),
    (nn.Sequential(nn.LazyConv2d(4, 3)), "has lazy layers without shapes; call it on images once"),
    (Broken(Lambda(add_to_changed, part=nn.Sequential(nn.Dropout(0), nn.ReLU(True), conv(4, 4)))), IN_PLACE),
    (Broken(Lambda(lambda self, x: self.end(relu(x.flatten(2), True).view(x.shape)) + x, end=conv(4, 4))), IN_PLACE),
    (Broken(Lambda(lambda _, x: (x.flatten(2).relu_(), x)[1])), IN_PLACE),
    *(
        (nn.Sequential(*list(make_flattened())[:-1], nn.Linear(6, 9), each, nn.Linear(9, 5)), f"uses {name}, which no")
        for name, each in (("LeakyReLU", nn.LeakyReLU()), ("LayerNorm", nn.LayerNorm(9)), ("Softmax", nn.Softmax(1)))
    ),
    (
        Broken(Lambda(lambda self, x: self.gain * x, gain=nn.Parameter(torch.ones(())))),
        "mul: uses mul, which no binary",
    ),
    (
        Broken(Lambda(lambda _, x: x.view(2, 2, 2, 16, 16).transpose(1, 2).reshape(2, 4, 16, 16))),
        "middle.view: uses view, which no binary network here has; leave the shuffling of channels out, and mix them",
    ),
    (
        Broken(Lambda(lambda _, x: x[:, :, ::2, ::2])),
        "slice: uses slice, which no binary network here has; take every second",
    ),
    (
        nn.Sequential(conv(2, 2, groups=2), nn.Flatten(), nn.Linear(512, 5)),
        "begin with a Conv2d of groups=1, which stays",
    ),
]


@pytest.mark.parametrize(("module", "line"), CHANGED, ids=lambda value: value[:30] if isinstance(value, str) else None)
def test_what_would_be_another_function_is_refused(module: nn.Module, line: str) -> None:
    with pytest.raises(DmsflowError) as caught:
        read_module(module, "net", 2, 16, 5)
    assert line in str(caught.value) and str(caught.value).startswith("net: ") and "\n" not in str(caught.value)


def test_what_torch_prints_where_it_fails_is_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DmsflowError, match="cannot be read for images of 2×16×16"):
        read_module(Broken(Lambda(lambda _, x: x * float(x.max()))), "net", 2, 16, 5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (
            Broken(Joined()),
            "net: middle.cat: uses cat, which no binary network here has; join channels of the same pixels",
        ),
        (
            Broken(Lambda(lambda _, x: x.sign() + x)),
            "network net, layer 'middle.add': add reads a sign layer; a quantize",
        ),
        (Broken(Lambda(lambda _, x: x * 2.0)), "net: middle.mul: uses mul, which no binary network here has; multiply"),
        (
            Broken(Lambda(lambda _, x: x * relu(x).mean((1, 2, 3), keepdim=True))),
            "net: middle.mean: uses mean, which no binary network here has; average over all pixels",
        ),
        (
            Broken(Lambda(lambda self, x: self.end(torch.cat([x, relu(x)], 1) + self.wide(x)), **WIDE)),
            "net: middle.add: reads channels that are joined of [4, 4] and of [8]; join the same parts",
        ),
        (Broken(nn.GELU()), "net: middle: uses GELU, which no binary network here has; use a ReLU, which becomes"),
        (Broken(nn.AvgPool2d(3, 2, padding=1)), "net: middle: averages single pixels, or with padding or a divisor"),
        (Broken(nn.AvgPool2d(3, 2, ceil_mode=True)), "net: middle: pools with ceil_mode beyond the image; leave"),
        (Broken(nn.AdaptiveAvgPool2d(5)), "net: middle: uses AdaptiveAvgPool2d, which no binary network here has; use"),
        (Broken(nn.Hardtanh()), "net: middle: uses Hardtanh, which no binary network here has; leave it out"),
        (Broken(nn.Conv2d(4, 4, (3, 1))), "net: middle: has kernel 3×1; use the same in both directions"),
        (Broken(nn.MaxPool2d(3, ceil_mode=True)), "net: middle: pools with ceil_mode beyond the image; leave"),
        (Broken(Depends()), "net: cannot be read for images of 2×16×16 ("),
        (Broken(nn.Conv2d(3, 4, 1)), "net: cannot be read for images of 2×16×16 ("),
        (
            nn.Sequential(conv(3, 4)),
            "net: reads images of 3 channels, and these have 2; use images of as many channels",
        ),
        (nn.Sequential(conv(2, 4)), "net: ends in conv of 4×16×16; end it in a Linear layer of 5 outputs"),
        (
            nn.Sequential(conv(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 5)),
            "network net: layer '3' reads 16×16 pixels; put",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_what_is_not_supported_is_named(module: nn.Module, line: str) -> None:
    with pytest.raises(DmsflowError) as caught:
        read_module(module, "net", 2, 16, 5)
    assert line in str(caught.value)


def test_the_module_is_left_as_it_was() -> None:
    module = Residual().train()
    module.norm.eval()  # as it is frozen
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    read_module(module, "net", 2, 16, 5)
    assert module.training and not module.norm.training and module.last_norm.training
    assert all(torch.equal(before[name], each) for name, each in module.state_dict().items())


def test_classes_and_functions_are_called_for_the_images() -> None:
    assert call_module(Residual, "net", 1, 7).fc.out_features == 7  # type: ignore[union-attr]
    module = Residual()
    assert call_module(module, "net", 1, 7) is module
    assert call_module(lambda channels: nn.Linear(channels, 2), "net", 1, 7).in_features == 1
    assert call_module(lambda channels=64: nn.Linear(channels, 2), "net", 1, 7).in_features == 64, "a width"
    for wrong, what in (
        (3, "is of type int"),
        (lambda: 3, "returned int"),
        (lambda missing: 3, r"TypeError in <lambda>\(\): "),
    ):
        with pytest.raises(DmsflowError, match=what):
            call_module(wrong, "net", 1, 7)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "torchvision:resnet19",
            "torchvision:resnet19: is unknown; use a classifier of torchvision.models, such as resnet18",
        ),
        ("missing.py:Net", "missing.py: no such file"),
        ("PATH:", "test_module.py: has no build(); define build(channels, resolution, classes) -> Network, or name a "),
        ("PATH", "test_module.py: has no build(); define build(channels, resolution, classes) -> Network, or name a "),
        ("PATH:Missing", "has no Missing; define it, or give the path with another name"),
        ("PATH:HERE", "is of type PosixPath; name a torch.nn.Module, its class or a function"),
    ],
)
def test_a_name_that_is_wrong_is_one_line(name: str, line: str) -> None:
    with pytest.raises(DmsflowError) as caught:
        load_network(name.replace("PATH", str(Path(__file__))), 3, 32, 10)
    assert line in str(caught.value)


@pytest.mark.slow
def test_a_module_goes_through_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(__file__, tmp_path / "net.py")
    settings = (
        "search.rounds=2 search.weight_steps=2 search.width_batches=1 search.batch_size=32 train.epochs=1 "
        "train.min_steps=1 export.check_images=32 bench.runs=3 bench.warm_up=1 data.train_images=200"
    )
    words = ["run", "--network", "net.py:Residual", "--resolution", "16", "--memory-mib", "0.002", "--target", "x86-64"]
    assert cli.main([*words, *(word for each in settings.split() for word in ("--set", each))]) == 0
    done = dmsflow.load("runs/Residual-digits/bench.json")
    assert list(done.widths) == ["stem.0", "first"] and done.metrics["latency_ms_median"] > 0


def test_python_takes_a_module(tmp_path: Path) -> None:
    made = dmsflow.search(Residual(10, 1), out=tmp_path, method="equal", resolution=16, memory_mib=0.002)
    assert made.network.name == "Residual" and list(made.widths) == ["stem.0", "first"]
    with pytest.raises(DmsflowError, match="Residual: reads images of 2 channels, and these have 1"):
        dmsflow.search(Residual(), out=tmp_path / "other", method="equal", resolution=16)


def test_it_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    images = ["--channels", "2", "--resolution", "16", "--classes", "5"]
    assert cli.main(["show", "--network", f"{__file__}:Residual", *images]) == 0
    shown = capsys.readouterr().out
    assert "Residual on 2×16×16 pixels, 5 classes" in shown and "first, skip.0, second" in shown
    assert cli.main(["show", "--network", f"{__file__}:Residual", "--json", *images]) == 0
    assert json.loads(capsys.readouterr().out)["widths"] == {"stem.0": 6, "first": 8}
    assert cli.main(["show", "--network", "vgg11", "--classes", "0"]) == 2
    capsys.readouterr()
    for words in ([], [__file__, "--network", "vgg11"]):
        assert cli.main(["show", *words]) == 1
        assert "takes one of FILE and --network" in capsys.readouterr().err

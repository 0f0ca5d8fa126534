"""A network is checked when it is made, and every refusal names the layer and what would be right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dmsflow.errors import DmsflowError
from dmsflow.importing import load_network
from dmsflow.network import cost
from dmsflow.network.blocks import fused_blocks
from dmsflow.network.network import Layer, Network, check, evaluated, out_widths, resolutions, value
from dmsflow.plugin import list_plugins, load_plugin

BUILDS = [(name, resolution) for name in list_plugins("networks") for resolution in (32, 224)]
STEM = Layer(name="stem", op="conv", inputs=("input",), width="a", kernel=3, padding=1)
QUANTIZE = Layer(name="quantize", op="quantize", inputs=("stem",))
CONV = Layer(name="conv", op="binary_conv", inputs=("quantize",), width="b", kernel=3, padding=1)
END = (
    Layer(name="average", op="average_pool", inputs=("conv",)),
    Layer(name="dense", op="dense", inputs=("average",), width=10),
)
END_OF_BITS = (msgspec.structs.replace(END[0], inputs=("quantize",)), END[1])
GOOD = (STEM, QUANTIZE, CONV, *END)


def make(layers: tuple[Layer, ...] = GOOD, **fields: object) -> Network:
    values: dict[str, object] = {
        "name": "mine",
        "channels": 3,
        "resolution": 8,
        "classes": 10,
        "widths": {"a": 4, "b": 6},
        **fields,
    }
    return Network(layers=layers, **values)  # type: ignore[arg-type]


def swap(name: str, /, **fields: object) -> tuple[Layer, ...]:
    return tuple(msgspec.structs.replace(layer, **fields) if layer.name == name else layer for layer in GOOD)


def before_end(*layers: Layer) -> tuple[Layer, ...]:
    end = msgspec.structs.replace(END[0], inputs=(layers[-1].name,))
    return (STEM, QUANTIZE, CONV, *layers, end, END[1])


def test_a_depthwise_convolution_keeps_its_width() -> None:
    network = make(before_end(Layer(name="each", op="depthwise_conv", inputs=("conv",), kernel=3, stride=2, padding=1)))
    assert (out_widths(network)["each"], resolutions(network)["each"]) == ("b", 4)
    each = next(size for size in cost.layer_bytes(network, network.widths) if size.layer == "each")
    assert (each.binary_bytes, each.float_bytes) == (0, 4 * 6 * 9)
    assert {layer.name: count for layer, count in cost.weights(network, network.widths)}["each"] == 6 * 9
    assert fused_blocks(network)[-2].name == "depthwise_conv 3x3 stride 2 on 8x8"


def test_widths_are_whole_numbers() -> None:
    with pytest.raises(DmsflowError, match="network mine, width 'a': is of type float; give an int"):
        make(widths={"a": 8.5, "b": 6})


def grouped(**fields: object) -> tuple[Layer, ...]:
    window: dict[str, Any] = {"width": 4, "groups": 2, "kernel": 3, "stride": 2, "padding": 1, **fields}
    fixed = Layer(name="fixed", op="conv", inputs=("conv",), width=8)
    return fixed, Layer(name="groups", op="conv", inputs=("fixed",), **window)


def joined_groups(left: int) -> tuple[Layer, ...]:
    sides = [Layer(name=f"side{width}", op="conv", inputs=("conv",), width=width) for width in (left, 10)]
    join = Layer(name="join", op="concat", inputs=tuple(each.name for each in sides))
    return (*sides, join, Layer(name="groups", op="conv", inputs=("join",), width=16, groups=4))


def test_groups_may_divide_a_sum_of_widths() -> None:
    network = make(before_end(*joined_groups(6)))
    assert {layer.name: count for layer, count in cost.weights(network, network.widths)}["groups"] == 16 * 4


def test_a_convolution_with_groups_has_fixed_widths_and_is_one_of_its_own_to_a_profile() -> None:
    network = make(before_end(*grouped()))
    assert (out_widths(network)["groups"], resolutions(network)["groups"]) == (4, 4)
    assert {layer.name: count for layer, count in cost.weights(network, network.widths)}["groups"] == 4 * 4 * 9
    each = next(size for size in cost.layer_bytes(network, network.widths) if size.layer == "groups")
    assert (each.binary_bytes, each.float_bytes) == (0, 4 * 4 * 4 * 9)
    block = fused_blocks(network)[-2]
    assert block.name == "conv 3x3 stride 2 of 8 channels in 2 groups to 4 on 8x8" and not block.grows


def test_an_average_over_windows_keeps_its_width() -> None:
    network = make(before_end(Layer(name="pool", op="average_pool", inputs=("conv",), kernel=3, stride=2)))
    assert (out_widths(network)["pool"], resolutions(network)["pool"]) == ("b", 3)
    assert [block.name for block in fused_blocks(network)][-2:] == [
        "average_pool 3x3 stride 2 on 8x8",
        "average_pool + dense to 10 on 3x3",
    ]


def test_dropout_is_no_part_of_what_a_trained_network_computes() -> None:
    drop = Layer(name="drop", op="dropout", inputs=("average",), rate=0.2)
    dense = msgspec.structs.replace(END[1], inputs=("drop",))
    network = make((STEM, QUANTIZE, CONV, END[0], drop, dense))
    assert fused_blocks(network) == fused_blocks(make()) and evaluated(network) == make() == evaluated(make())
    assert cost.layer_bytes(network, network.widths) == cost.layer_bytes(make(), network.widths)


def test_shapes() -> None:
    network = make(swap("conv", stride=2))
    assert resolutions(network) == {"input": 8, "stem": 8, "quantize": 8, "conv": 4, "average": 1, "dense": 1}
    assert out_widths(network) == {"input": 3, "stem": "a", "quantize": "a", "conv": "b", "average": "b", "dense": 10}
    assert [layer.name for layer in network.consumers("quantize")] == ["conv"]


def test_the_channels_of_a_concatenation_add_up() -> None:
    join = Layer(name="join", op="concat", inputs=("conv", "stem", "conv"))
    network = make(before_end(join, Layer(name="again", op="concat", inputs=("join", "stem"))))
    assert out_widths(network)["join"] == ("b", "a", "b") and out_widths(network)["average"] == ("b", "a", "b", "a")
    assert [value({"a": 2, "b": 5}, key) for key in (7, "b", ("b", "a", "b"))] == [7, 5, 12]
    joined = next(block for block in fused_blocks(network) if block.op == "concat")
    assert (joined.name, joined.reads, joined.writes) == ("concat of 3 on 8x8", ("b", "a", "b"), ("b", "a", "b"))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "does not end in the class scores; end it in a dense layer of width 10"),
        (GOOD[:-1], "does not end in the class scores"),
        (swap("dense", width=9), "does not end in the class scores"),
        (swap("conv", name="stem"), "layer 'stem': another layer has the same name; give every layer its own name"),
        (swap("conv", name="input"), "another layer has the same name"),
        (swap("stem", inputs=()), "conv has 0 inputs; an add or multiply reads two layers, a concat"),
        (swap("average", inputs=("conv", "stem")), "average_pool has 2 inputs"),
        (
            swap("quantize", inputs=("conv",)),
            "reads 'conv', but no earlier layer has this name; put layers into the order",
        ),
        (
            before_end(Layer(name="one", op="concat", inputs=("conv",))),
            "layer 'one': concat has 1 inputs; an add or multiply",
        ),
        (
            before_end(Layer(name="join", op="concat", inputs=("conv", "quantize"))),
            "concat reads 'quantize'; let it read floats, those in front of a quantizer",
        ),
        (
            before_end(Layer(name="add", op="add", inputs=("conv", "quantize"))),
            "adds widths 'b' and 'a'; let both name the same width",
        ),
        (
            before_end(
                Layer(name="half", op="max_pool", inputs=("conv",), kernel=2, stride=2),
                Layer(name="join", op="concat", inputs=("stem", "half")),
            ),
            "layer 'join' joins 8 and 4 pixels; let both have the same stride",
        ),
        (
            before_end(
                Layer(name="half", op="max_pool", inputs=("conv",), kernel=2, stride=2),
                Layer(name="product", op="multiply", inputs=("conv", "half")),
            ),
            "layer 'product' multiplies 8 and 4 pixels; let both have the same stride, or the second one pixel",
        ),
        (
            before_end(
                Layer(name="gate", op="average_pool", inputs=("conv",)),
                Layer(name="product", op="multiply", inputs=("gate", "conv")),
            ),
            "layer 'product' multiplies 1 and 8 pixels",
        ),
        (
            before_end(Layer(name="product", op="multiply", inputs=("conv", "stem"))),
            "multiplies widths 'b' and 'a'; let both name the same width",
        ),
        (swap("conv", width=None), "binary_conv has width None; conv, binary_conv and dense name a width"),
        (swap("average", width="a"), "average_pool has width 'a'"),
        (swap("conv", width="c"), "width 'c' is unknown; name one of a, b"),
        (
            before_end(Layer(name="add", op="add", inputs=("conv", "stem"))),
            "adds widths 'b' and 'a'; let both name the same",
        ),
        (
            swap("conv", inputs=("stem",)),
            "binary_conv reads a conv layer; a quantize or sign layer feeds binary convs, and only them",
        ),
        (swap("average", inputs=("quantize",)), "average_pool reads a quantize layer; a quantize or sign layer"),
        (
            (*GOOD[:1], msgspec.structs.replace(QUANTIZE, op="sign"), *END_OF_BITS),
            "average_pool reads a sign layer; a quantize or sign layer feeds binary convs, and only them",
        ),
        (
            before_end(Layer(name="relu", op="relu", inputs=("conv",), kernel=2)),
            "relu has kernel 2, which it does not use; leave kernel out",
        ),
        (
            before_end(Layer(name="relu", op="relu", inputs=("conv",), stride=2)),
            "relu has stride 2, which it does not use; leave stride out",
        ),
        (swap("quantize", padding=1), "quantize has padding 1, which it does not use"),
        (swap("conv", kernel=(3, 1)), "kernel is (3, 1); give one integer: kernels are square"),
        (swap("conv", padding="same"), "padding is 'same'; give one integer"),
        (swap("conv", inputs="quantize"), "inputs is 'quantize', but must be a tuple; write inputs=('quantize',)"),
        (swap("conv", stride=0), "kernel, stride or padding is too small; kernel and stride start at 1"),
        (swap("conv", padding=-1), "kernel, stride or padding is too small"),
        (
            swap("conv", op="conv"),
            "conv reads a quantize layer; a quantize or sign layer feeds binary convs, and only them",
        ),
        (swap("stem", op="quantize", width=None), "quantize reads the image; begin with a conv"),
        (
            (*GOOD[:3], msgspec.structs.replace(END[0], name="spare"), *END),
            "nothing reads layer 'spare'; remove it, or let a later layer read it",
        ),
        (
            (*GOOD[:3], msgspec.structs.replace(END[1], inputs=("conv",))),
            "layer 'dense' reads 8×8 pixels; put an average_pool before it",
        ),
        (
            before_end(
                Layer(name="half", op="max_pool", inputs=("conv",), kernel=2, stride=2),
                Layer(name="add", op="add", inputs=("half", "conv")),
            ),
            "layer 'add' adds 4 and 8 pixels; let both have the same stride",
        ),
        (
            swap("conv", groups=2),
            "layer 'conv': binary_conv has groups 2 and the widths 'a' and 'b'; let both be numbers, multiples of 64",
        ),
        (
            before_end(Layer(name="drop", op="dropout", inputs=("conv",), rate=1.0)),
            "layer 'drop': dropout has rate 1.0; give a dropout one between 0 and 1, other ops none",
        ),
        (
            before_end(Layer(name="relu", op="relu", inputs=("conv",), rate=0.5)),
            "layer 'relu': relu has rate 0.5; give a dropout one between 0 and 1, other ops none",
        ),
        (
            swap("stem", groups=3),
            "layer 'stem': conv has groups 3; leave groups at 1: only a conv and a binary_conv may",
        ),
        (
            before_end(Layer(name="each", op="conv", inputs=("conv",), width=8, groups=2)),
            "layer 'each': conv has groups 2 and the widths 'b' and 8; let both be numbers, multiples of 2",
        ),
        (
            before_end(*grouped(width=6, groups=4)),
            "layer 'groups': conv has groups 4 and the widths 8 and 6; let both be numbers, multiples of 4",
        ),
        (before_end(*grouped(groups=0)), "layer 'groups': conv has groups 0; leave groups at 1"),
        (
            before_end(*joined_groups(7)),
            "layer 'groups': conv has groups 4 and the widths (7, 10) and 16; let both be numbers, multiples of 4",
        ),
        (
            before_end(Layer(name="each", op="depthwise_conv", inputs=("conv",), width="b")),
            "depthwise_conv has width 'b'; conv, binary_conv and dense name a width, other ops none",
        ),
        (
            before_end(Layer(name="pool", op="average_pool", inputs=("conv",), kernel=2, stride=2, padding=1)),
            "layer 'pool': average_pool has padding 1; leave it out",
        ),
        (swap("average", stride=2), "layer 'average': average_pool has stride 2, but no kernel; give both, or neither"),
        (
            before_end(Layer(name="pool", op="average_pool", inputs=("conv",), kernel=9)),
            "layer 'pool' has no pixels left",
        ),
        (swap("conv", dilation=2), "layer 'conv': binary_conv has dilation 2; leave dilation at 1, and use a larger"),
        (
            swap("conv", bits=8),
            "layer 'conv': binary_conv has bits 8; leave bits at 32: a dense layer, and a conv of the image of at",
        ),
        (swap("stem", bits=8, kernel=15, padding=7), "layer 'stem': conv has bits 8; leave bits at 32: a dense"),
        (swap("stem", bits=4), "layer 'stem': conv has bits 4; use 8 or 32"),
        (swap("conv", op="ternary_conv"), "the op 'ternary_conv' is unknown; use one of conv, binary_conv, dense, "),
        (
            swap("conv", op="binary_dense"),
            "the op 'binary_dense' is unknown; a dense binary layer is a binary_conv whose",
        ),
        (swap("conv", width=-3), "a width is below 1; give every width at least one channel"),
        (swap("conv", kernel=11), "layer 'conv' has no pixels left; use images of at least 9 pixels"),
    ],
)
def test_refusals(layers: tuple[Layer, ...], message: str) -> None:
    with pytest.raises(DmsflowError) as raised:
        make(layers)
    assert message in str(raised.value)
    assert str(raised.value).startswith("network mine")


def test_a_width_that_no_layer_has() -> None:
    with pytest.raises(DmsflowError, match="no layer has the width 'c'; remove it or name it in a layer"):
        make(widths={"a": 4, "b": 6, "c": 1})


def test_a_base_width_below_one() -> None:
    with pytest.raises(DmsflowError, match="a width is below 1; give every width at least one channel"):
        make(widths={"a": 0, "b": 6})


@pytest.mark.parametrize("field", ["channels", "resolution", "classes"])
def test_images_without_pixels_and_no_classes(field: str) -> None:
    with pytest.raises(
        DmsflowError, match="network vgg11: has .* classes; use at least 1 of each, at most 65536 and 4096"
    ):
        check(msgspec.structs.replace(load_plugin("networks", "vgg11").build(3, 32, 7), **{field: 0}))


def test_an_unknown_op_does_not_load() -> None:
    text = msgspec.json.encode(make()).replace(b'"binary_conv"', b'"ternary_conv"')
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'ternary_conv'"):
        msgspec.json.decode(text, type=Network)


@pytest.mark.parametrize(("name", "resolution"), BUILDS)
def test_every_network_is_well_formed_and_survives_json(name: str, resolution: int) -> None:
    network = load_plugin("networks", name).build(3, resolution, 7)
    check(network)
    assert msgspec.json.decode(msgspec.json.encode(network), type=Network) == network
    assert network.name == name


def test_resnet_shares_widths_as_the_paper_does() -> None:
    network = load_plugin("networks", "resnet18").build(3, 32, 10)
    adds = [layer for layer in network.layers if layer.op == "add"]
    keys = out_widths(network)
    assert len(adds) == 8
    assert [keys[layer.inputs[0]] for layer in adds] == [f"stage{stage}" for stage in range(4) for _ in range(2)]
    assert len(network.widths) == 4 + 8  # an output a stage, an inner width a block


def test_a_users_own_network(tmp_path: Path) -> None:
    with pytest.raises(
        DmsflowError, match=r"network vgg: is unknown; use one of .*vgg11.*, or the path of a \.py file"
    ):
        load_plugin("networks", "vgg")
    path = tmp_path / "mine.py"
    with pytest.raises(DmsflowError, match=r"mine\.py: no such file; give the path of an existing \.py file"):
        load_plugin("networks", str(path))
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(DmsflowError, match=r"mine\.py: ModuleNotFoundError on import: .*; correct the file"):
        load_plugin("networks", str(path))
    path.write_text("def build(channels, resolution, classes):\n    return channels\n")
    assert load_plugin("networks", str(path)).build(3, 32, 10) == 3
    with pytest.raises(DmsflowError, match=r"mine\.py: build\(\) returned int; return a dmsflow\.network\.Network"):
        load_network(str(path), 3, 32, 10)
    path.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(DmsflowError, match=r"mine\.py: SystemExit on import: 3; correct the file"):
        load_plugin("networks", str(path))
    path.write_text(
        "from dmsflow.network.architectures.vgg11 import build as make\nbuild = lambda *_: make(3, 32, 7)\n"
    )
    with pytest.raises(
        DmsflowError, match=r"is for \(channels, pixels, classes\) \(3, 32, 7\), and the images have \("
    ):
        load_network(str(path), 3, 32, 10)
    path.write_text("import functools\nbuild = functools.partial(divmod, 0)\n")
    with pytest.raises(DmsflowError, match=r"mine\.py: TypeError in a call\(\): .*; correct the file"):
        load_network(str(path), 3, 32, 10)
    path.write_text("def build(channels, resolution, classes):\n    return channels / 0\n")
    with pytest.raises(
        DmsflowError, match=r"mine\.py: ZeroDivisionError in build\(\): division by zero; correct the file"
    ):
        load_network(str(path), 3, 32, 10)


# --- fused_blocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize("quantiser", ["sign", "quantize"])
def test_a_relu_in_front_of_the_norm_folds_into_a_convolution_of_signs(quantiser: str, bits: bool) -> None:
    more = [Layer(name="relu", op="relu", inputs=("conv",)), Layer(name="norm", op="batch_norm", inputs=("relu",))]
    if bits:  # and a quantizer behind both, which another convolution reads
        more += [
            Layer(name="end", op="quantize", inputs=("norm",)),
            msgspec.structs.replace(CONV, name="last", inputs=("end",)),
        ]
    layers = before_end(*more)
    network = make(tuple(msgspec.structs.replace(each, op=quantiser) if each is QUANTIZE else each for each in layers))
    blocks = [[layer.op for layer in block.layers] for block in fused_blocks(network)]
    behind = ["quantize"] * bits
    fused = [["binary_conv", "relu", "batch_norm", *behind]]
    apart = [["binary_conv", "relu"], ["batch_norm"], *([["quantize"]] * bits)]
    assert blocks[1:-1] == (fused if quantiser == "sign" else apart) + [["binary_conv"]] * bits


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "quicknet"])
def test_every_layer_is_in_one_piece(name: str) -> None:
    network = load_network(name, 3, 32, 10)
    inside = [layer for block in fused_blocks(network) for layer in block.layers]
    assert sorted(inside, key=str) == sorted(network.layers, key=str)
    sizes, keys = resolutions(network), out_widths(network)
    for block in fused_blocks(network):
        last = block.layers[-1].name
        assert (block.size, block.writes) == (sizes[last], keys[last])


def test_pieces_are_called_by_what_they_do() -> None:
    names = [block.name for block in fused_blocks(load_network("resnet18", 3, 224, 1000))]
    assert (
        names[0] == "conv 7x7 stride 2 of 3 channels + max_pool 3x3 stride 2 padding 1 + batch_norm + relu on 224x224"
    )
    assert names[-1] == "average_pool + dense to 1000 on 7x7"
    assert "binary_conv 1x1 stride 2 + batch_norm on 56x56" in names
    vgg = fused_blocks(load_network("vgg11", 1, 32, 10))
    assert vgg[0].name == "conv 3x3 of 1 channel + max_pool 2x2 + batch_norm + quantize on 32x32"


# --- sizes that are refused before anything is allocated ------------------------------------------


@pytest.mark.parametrize(
    ("layers", "fields", "message"),
    [
        (GOOD, {"widths": {"a": 10**9, "b": 6}}, "layer 'stem': puts out 1000000000 channels, 64000000000 values"),
        (GOOD, {"widths": {"a": 4, "b": 70_000}}, "layer 'conv': puts out 70000 channels"),
        (GOOD, {"widths": {"a": 60_000, "b": 60_000}}, "layer 'conv': brings the weights to 32401620000; use at most"),
        (GOOD, {"resolution": 10**9}, "has 3 channels of 1000000000 pixels a side"),
        (GOOD, {"channels": 10**9}, "has 1000000000 channels of 8 pixels a side"),
        (GOOD, {"resolution": 4096, "widths": {"a": 64, "b": 6}}, "puts out 64 channels, 1073741824 values in all"),
        (swap("conv", kernel=10**6), {}, "layer 'conv': kernel, stride or padding is too large; use at most 63"),
        (swap("conv", kernel=1001, padding=500), {}, "layer 'conv': kernel, stride or padding is too large"),
        (swap("stem", stride=10**9), {}, "layer 'stem': kernel, stride or padding is too large"),
        (swap("dense", width=10**9), {"classes": 10**9}, "layer 'dense': puts out 1000000000 channels"),
        (
            before_end(Layer(name="pool", op="max_pool", inputs=("conv",), kernel=3, padding=2)),
            {},
            "layer 'pool': max_pool has padding 2; use at most half of its kernel of 3",
        ),
    ],
)
def test_sizes_out_of_reason_are_refused(layers: tuple[Layer, ...], fields: dict[str, object], message: str) -> None:
    with pytest.raises(DmsflowError, match=re.escape(message)):
        make(layers, **fields)

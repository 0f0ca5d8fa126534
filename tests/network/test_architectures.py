"""Every network that is listed: from odd widths to files of each kind that compute its integer graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_up import FLOAT_CONVS, MEAN, STD, odd_widths, pixels
from PIL import Image

from dmsflow import cli
from dmsflow.deploying import check, folding, integer_graph, size_report
from dmsflow.deploying.exporters import lce
from dmsflow.deploying.target import load_target
from dmsflow.importing import load_network
from dmsflow.manifest import load_manifest
from dmsflow.measuring.random_weights import draw_weights
from dmsflow.modelfile import runners
from dmsflow.network import cost
from dmsflow.network.network import INPUT, out_widths, resolutions, value
from dmsflow.plugin import list_plugins, load_plugin

SIZES = ((32, 10), (224, 1000))
TARGETS = ("x86-64", "onnx")
LARGEST = 1.10  # of a file, beside its bits with channels as kernels pad them and its floats


@pytest.mark.parametrize("resolution_classes", SIZES, ids=lambda size: f"{size[0]}px")
@pytest.mark.parametrize("name", list_plugins("networks"))
def test_files_compute_the_integer_graph(name: str, resolution_classes: tuple[int, int], tmp_path: Path) -> None:
    network = load_network(name, 3, *resolution_classes)
    widths = (
        odd_widths(network, 3) if network.resolution == 32 else {key: base | 1 for key, base in network.widths.items()}
    )
    images = pixels(network, 2)
    form = folding.fold(network, widths, draw_weights(network, widths), MEAN, STD)
    expected, margins = integer_graph.compute_with_margins(form, images)
    assert len(np.unique(expected.round(3))) > network.classes  # the images have different logits
    ideal = sum(row.padded_bytes + row.float_bytes for row in size_report.measure_ops(form, lce.GRANULARITY))
    for target in map(load_target, TARGETS):
        path = tmp_path / f"model{target.suffix}"
        exporter = load_plugin("exporters", target.exporter)
        exporter.write(form, path)
        binary = sum(isinstance(op, integer_graph.BinaryConv) for op in form.ops)
        assert exporter.count_ops(path)[exporter.PACKED_CONV] == binary
        if ideal > 2**19:  # below half a MiB names and the graph weigh
            assert path.stat().st_size <= LARGEST * ideal
        session = load_plugin("runners", runners.first_usable(target.runners)[0]).open(path, 1)
        logits = np.concatenate([session.run(image[None].astype(np.float32)) for image in images])
        check.compare_with_graph(path.name, logits, expected, margins, 100)


@pytest.mark.parametrize(
    ("name", "count"), [("birealnet18", 16), ("quicknet", 16), ("resnet20", 18), ("reactnet18", 16)]
)
def test_real_values_pass_every_binary_convolution(name: str, count: int) -> None:
    """But those between two stages, every 3×3 convolution is added to what it read."""
    network = load_network(name, 3, 32, 10)
    convs = [layer for layer in network.layers if layer.op == "binary_conv" and layer.kernel == 3]
    assert len(convs) == count
    for conv in convs:
        quantize = network.layer(conv.inputs[0])
        (norm,) = network.consumers(conv.name)
        if norm.op == "relu":
            (norm,) = network.consumers(norm.name)
        (add,) = network.consumers(norm.name)
        assert add.op == "add"
        if conv.stride == 1:
            assert add.inputs == (norm.name, quantize.inputs[0])


def test_resnet20_has_the_widths_and_the_size_of_the_benchmark() -> None:
    """0.27 M parameters, of which all but the stem and the classifier take one bit."""
    network = load_network("resnet20", 3, 32, 10)
    assert network.widths == {"stage0": 16, "stage1": 32, "stage2": 64}
    bits = sum(count for layer, count in cost.weights(network, network.widths) if layer.op == "binary_conv")
    assert 0.26e6 < bits < 0.28e6 and 0.03 < cost.memory_bytes(network, network.widths) / cost.MIB < 0.05
    assert 38e6 < cost.macs(network, network.widths) < 42e6


@pytest.mark.parametrize(
    ("name", "count", "mib"), [("quicknet", 13_234_088, 4.17), ("quicknet-small", 12_655_688, 4.00)]
)
def test_quicknet_has_the_parameters_that_larq_zoo_publishes(name: str, count: int, mib: float) -> None:
    """Two for each channel of a batch norm among them, which our memory does not count."""
    network = load_network(name, 3, 224, 1000)
    keys, sizes = out_widths(network), resolutions(network)
    norms = [layer for layer in network.layers if layer.op == "batch_norm"]
    norm_floats = sum(2 * value(network.widths, keys[layer.name]) for layer in norms)
    weights = {layer.name: weight for layer, weight in cost.weights(network, network.widths)}
    assert sum(weights.values()) + network.classes + norm_floats == count
    scales = sum(value(network.widths, keys[layer.name]) for layer in network.layers if layer.op == "binary_conv")
    shifts = sum(value(network.widths, keys[layer.name]) for layer in network.layers if layer.op == "sign")
    memory = cost.memory_bytes(network, network.widths) + 4 * (norm_floats - scales - shifts)
    assert memory / cost.MIB == pytest.approx(mib, abs=0.005)
    sections = [width for key, width in network.widths.items() if key != "stem"]
    binary = sum(4 * 9 * width**2 * side**2 for width, side in zip(sections, (56, 28, 14, 7), strict=True))
    floats = sum(weights[each.name] * sizes[each.name] ** 2 for each in network.layers if each.op in FLOAT_CONVS)
    assert cost.macs(network, network.widths) == binary + floats + weights["dense"]
    assert floats < 0.03 * binary


@pytest.mark.parametrize("resolution", [8, 31, 32, 64, 224])
def test_quicknet_halves_the_image_between_two_sections(resolution: int) -> None:
    """By a maximum of every pixel, a blur and a float 1×1 convolution; larger images by the stem, twice."""
    network = load_network("quicknet", 3, resolution, 10)
    sizes = resolutions(network)
    wanted = [resolution if resolution < 64 else resolution // 4]
    for _ in range(3):
        wanted.append(wanted[-1] // 2)
    assert [sizes[f"stage{section}"] for section in range(4)] == wanted
    for section in range(1, 4):
        chain = [network.layer(f"stage{section}")]
        while chain[-1].op != "relu":
            chain.append(network.layer(chain[-1].inputs[0]))
        assert [(layer.op, layer.kernel, layer.stride) for layer in chain[:-1]] == [
            ("conv", 1, 1),
            ("depthwise_conv", 3, 2),
            ("max_pool", 2, 1),
        ]


def test_reactnet18_is_birealnet18_with_its_own_activations() -> None:
    react, real = (load_network(name, 3, 32, 10) for name in ("reactnet18", "birealnet18"))
    assert cost.macs(react, react.widths) == cost.macs(real, real.widths)
    ops = Counter(layer.op for layer in react.layers)
    assert (ops["sign"], ops["quantize"], ops["prelu"], ops["relu"]) == (16, 0, 16, 0)
    for layer in react.layers:
        if layer.op == "add":
            assert [reader.op for reader in react.consumers(layer.name)] == ["prelu"]


@pytest.mark.parametrize("resolution", [8, 28, 32, 224])
def test_birealnet18_has_the_shortcut_of_its_paper(resolution: int) -> None:
    """Floats through a 2×2 average and a float 1×1 convolution; of an odd side, every second pixel."""
    network = load_network("birealnet18", 1, resolution, 10)
    sizes = resolutions(network)
    skips = [layer for layer in network.layers if layer.op == "conv" and INPUT not in layer.inputs]
    assert [(skip.width, skip.kernel) for skip in skips] == [("stage1", 1), ("stage2", 1), ("stage3", 1)]
    for skip in skips:
        add = network.consumers(network.consumers(skip.name)[0].name)[0]
        pool = network.layer(skip.inputs[0])
        quantize = network.layer(network.layer(network.layer(add.inputs[0]).inputs[0]).inputs[0])
        if sizes[quantize.name] % 2:
            assert (skip.stride, skip.inputs) == (2, quantize.inputs)
        else:
            assert (pool.op, pool.kernel, pool.stride, pool.inputs) == ("average_pool", 2, 2, quantize.inputs)


def test_mobilenet_is_binary_where_its_weights_are() -> None:
    """The paper's 28 layers with weights; 1×1 convolutions have 74 % of the parameters, and are binary (table 2)."""
    network = load_network("mobilenet", 3, 224, 1000)
    counts: dict[str, int] = {}
    for layer, count in cost.weights(network, network.widths):
        counts[layer.op] = counts.get(layer.op, 0) + count
    assert counts == {"conv": 864, "depthwise_conv": 44640, "binary_conv": 3_139_584, "dense": 1_024_000}
    assert cost.macs(network, network.widths) / 1e6 == pytest.approx(569, abs=1)  # as table 4 has it
    assert resolutions(network)[network.layers[-3].name] == 7
    small = load_network("mobilenet", 3, 32, 10)
    assert resolutions(small)[small.layers[-3].name] == 8 and cost.memory_bytes(small, small.widths) < 0.25 * cost.MIB


FLOATS = """
from dmsflow.network import INPUT, Layer, Network

def build(channels: int, resolution: int, classes: int) -> Network:
    def layer(op: str, *inputs: str, **fields: object) -> None:
        layers.append(Layer(name=f"{op}{len(layers)}", op=op, inputs=inputs or (layers[-1].name,), **fields))

    layers = []
    layer("conv", INPUT, width="a", kernel=3, padding=1)
    for op, fields in (("depthwise_conv", {"kernel": 3, "padding": 1}), ("conv", {"width": "b"})):
        layer("batch_norm")
        layer("relu6")
        layer(op, **fields)
    layer("batch_norm")
    layer("average_pool", kernel=2, stride=2)
    layer("quantize")
    layer("binary_conv", width="c", kernel=3, padding=1)
    layer("batch_norm")
    layer("average_pool")
    layer("dropout", rate=0.2)
    layer("dense", width=classes)
    image = {"channels": channels, "resolution": resolution, "classes": classes}
    return Network(name="floats", **image, widths={"a": 8, "b": 12, "c": 24}, layers=tuple(layers))
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_float_layers_go_through_all_stages(target: str, tmp_path: Path) -> None:
    (tmp_path / "floats.py").write_text(FLOATS)
    text = f"run --network {tmp_path / 'floats.py'} --dataset digits --memory-mib 0.003 --target {target} "
    text += f"--out {tmp_path / 'run'}"
    settings = ("search.rounds=2", "search.weight_steps=2", "search.width_batches=1", "search.batch_size=32")
    settings += ("train.epochs=2", "train.min_steps=1", "data.train_images=300", "export.check_images=100")
    settings += ("export.close_percent=10", "bench.runs=2", "bench.warm_up=0", "bench.baseline=none")
    settings += ("search.threads=1", "train.threads=1")
    assert cli.main([*text.split(), *(word for each in settings for word in ("--set", each))]) == 0
    metrics = load_manifest(tmp_path / "run" / "export.json", "export").metrics
    assert 0 <= metrics["close_moved_images"] <= metrics["close_images"] < 100 and metrics["smallest_margin"] > 0
    assert metrics["trained_agreement_percent"] > 90


def test_resnet18_goes_through_all_stages_at_224_pixels(tmp_path: Path) -> None:
    """From folders of images as ImageNet has them, here noise, to a file that was checked and measured."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for label in ("n01440764", "n01443537"):
            folder = tmp_path / "imagenet" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(random.integers(0, 256, (230, 260, 3), np.uint8)).save(folder / f"{index}.JPEG")
    text = (
        f"--network resnet18 --dataset imagenet --data-dir {tmp_path / 'imagenet'} --memory-mib 3 --macs-m 1000 "
        f"--out {tmp_path / 'run'}"
    )
    settings = ("search.rounds=1", "search.weight_steps=1", "search.width_batches=1", "search.batch_size=4")
    settings += ("search.threads=1", "train.batch_size=4", "train.epochs=1", "train.threads=1")
    settings += ("bench.runs=2", "bench.warm_up=0", "bench.baseline=none")
    text += "".join(f" --set {setting}" for setting in settings)
    assert cli.main(["run", *text.split()]) == 0
    exported = load_manifest(tmp_path / "run" / "export.json", "export")
    assert exported.network.resolution == 224 and exported.metrics["check_images"] == 4
    assert exported.metrics["deploy_form_largest_logit_difference"] <= 1e-3
    assert load_manifest(tmp_path / "run" / "bench.json", "bench").metrics["latency_ms_median"] > 0

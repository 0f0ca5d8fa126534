"""The third stage: a trained network as a model file for a target, checked before it is kept.

The file is written aside, run on real test images, and only takes its place if every binary
convolution became an op on packed bits and its logits are those of the integer graph.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dmsflow import datasets, manifest, plugin
from dmsflow.datasets import ArraySplit, Dataset
from dmsflow.deploying import folding, integer_graph, size_report
from dmsflow.deploying.check import MOST_CHANGED_PERCENT, Reference, check_file, check_packed
from dmsflow.deploying.folding import Weights
from dmsflow.deploying.size_report import SizeReport
from dmsflow.deploying.target import Target, load_target
from dmsflow.errors import DmsflowError
from dmsflow.files import PARTIAL
from dmsflow.manifest import Flow, Manifest, load_manifest
from dmsflow.modelfile import runners
from dmsflow.network import cost
from dmsflow.network.cost import LayerSize
from dmsflow.network.network import has_int8_stem
from dmsflow.network.profile import Granularity
from dmsflow.settings import ExportSettings
from dmsflow.terminal import print_line

MOST_IMAGES, FEWEST_IMAGES = 256, 16  # of the check, unless the user says how many
CHECK_MACS = 5e10  # and no more than take that many multiply-accumulates: seconds of NumPy


def run_stage(source: Path, settings: ExportSettings, out: Path, flow: Flow) -> Path:
    """Write a model file and export.json.

    Raises:
        DmsflowError: the target cannot have this network, what it needs is missing, or the file
            written is not the network; no file is left then.
    """
    path = out / "export.json"
    if settings.target.endswith(".toml"):  # bench finds it from any folder
        settings = msgspec.structs.replace(settings, target=str(Path(settings.target).absolute()))
    train = load_manifest(source, "train")
    target = load_target(settings.target)
    converter, runner = choose_converter(target, settings), choose_runner(target)
    if manifest.is_finished(path, settings, flow, source=source):
        return path
    exporter = _load_exporter(target, train)
    known = {"precision": _precision(train, exporter), "memory_mib": _memory_mib(train)}
    known["trained_top1_percent"] = train.metrics["top1_percent"]
    weights = load_tensors(source, train, "weights")
    data = load_data(train, weights)
    if "mean" in weights:  # those that the compact weights were packed from have been compared
        logits = np.empty((0, train.network.classes), np.float32)
    else:
        logits = load_tensors(source, train, "logits").get("logits", np.empty(0))
        if logits.shape[1:] != (train.network.classes,):
            raise DmsflowError(source, f"names logits of shape {list(logits.shape)}", "train again")
    model = out / f"model{target.suffix}"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", suffix=PARTIAL, dir=out) as folder:
        candidate = Path(folder) / model.name
        pixels = choose_pixels(train, settings)
        report, reference = write_model(train, weights, data, candidate, target, pixels, **converter)
        images = data.test, logits, _count_images(train, settings)
        most = getattr(exporter, "MOST_CHANGED_PERCENT", MOST_CHANGED_PERCENT)
        allowed = settings.close_percent if reference else most
        checked, lines = check_file(runner, candidate, reference, *images, allowed)
        report.show(manifest.home(out) / model.name)
        candidate.replace(model)
    for line in lines:
        print_line(line)
    environment = {"runtimes": {model.name: plugin.load_plugin("runners", runner).version()}}
    metrics = {**known, **report.metrics(), **checked}
    if metrics["precision"] == "int8":  # what weights, scales and biases take in the file
        metrics["memory_mib"] = sum(layer["file_bytes"] for layer in metrics["layers"]) / cost.MIB
    done = manifest.Done({"model": model}, metrics, environment)
    return manifest.finish_stage(path, settings, flow, done, (source, train))


def plan_stage(source: Path, settings: ExportSettings, out: Path) -> list[tuple[str, str]]:
    """What `run_stage` would do, as rows of a label and a value.

    Raises:
        DmsflowError: as `run_stage`, for what is known before writing.
    """
    train = load_manifest(source, "train")
    target = load_target(settings.target)
    converter = choose_converter(target, settings)
    precision = _precision(train, _load_exporter(target, train))
    images = _count_images(train, settings)
    return [
        ("network", f"{train.network.name}, {precision}, {_memory_mib(train):.4f} MiB as trained"),
        ("target", f"{target.name}: {target.description}"),
        ("exporter", ", ".join([target.exporter, *converter.values()])),
        ("check", f"on {images} test images of {train.data.name}, run by {choose_runner(target)}"),
        ("writes", f"{out / 'model'}{target.suffix}, {out / 'export.json'}"),
    ]


def choose_runner(target: Target) -> str:
    """The runner that checks the written file: the reference runner, with other kernels than ours, if it is installed.

    Raises:
        DmsflowError: no runner of the target works here.
    """
    return runners.first_usable(target.runners[::-1])[0]


def choose_converter(target: Target, settings: ExportSettings) -> dict[str, str]:
    """The converter as an argument of the exporter's `write`, if it has several.

    Raises:
        DmsflowError: the settings ask for one that the target's exporter does not have.
    """
    known = getattr(plugin.load_plugin("exporters", target.exporter), "CONVERTERS", ())
    if settings.converter not in (known or ("direct",)):
        what = f"is not for target {target.name}"
        right = f"leave it out: exporter {target.exporter} writes files for this target"
        raise DmsflowError(f"--converter {settings.converter}", what, right)
    return {"converter": settings.converter} if known else {}


def choose_pixels(train: Manifest, settings: ExportSettings) -> str:
    """The type of pixels that the file takes.

    Raises:
        DmsflowError: uint8 for a file that is written otherwise than by us, or a float32 network.
    """
    wanted = settings.pixels
    if wanted == "uint8" and (settings.converter != "direct" or _is_float(train)):
        what = "is for a binary network that dmsflow itself writes"
        raise DmsflowError("--pixels uint8", what, "leave it out")
    can = settings.converter == "direct" and not _is_float(train)
    return wanted or ("uint8" if can and has_int8_stem(train.network) else "float32")


def _count_images(train: Manifest, settings: ExportSettings) -> int:
    """How many images to check on."""
    affordable = int(CHECK_MACS / cost.macs(train.network, train.widths))
    return settings.check_images or max(FEWEST_IMAGES, min(MOST_IMAGES, affordable))


def _is_float(train: Manifest) -> bool:
    return bool(train.settings.get("precision") == "float")


def _precision(train: Manifest, exporter: Any) -> str:
    """Of the weights in a written file: "1-bit", "float32" or "int8"."""
    return getattr(exporter, "PRECISION", "float32") if _is_float(train) else "1-bit"


def _memory_mib(train: Manifest) -> float:
    return float(cost.memory_bytes(train.network, train.widths, binary=not _is_float(train)) / cost.MIB)


def load_tensors(source: Path, train: Manifest, role: str) -> Weights:
    """A safetensors file that the manifest names."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if role not in train.artifacts:
        raise DmsflowError(source, f"names no {role}", "train again")
    path = manifest.verify(source, train.artifacts[role])
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DmsflowError(path, f"is not a safetensors file ({error})", "train again") from error


def load_data(train: Manifest, weights: Weights) -> Dataset:
    """The data set; of compact weights, which have its mean and std, random images where it is not on this machine."""
    network = train.network
    if "mean" not in weights:
        data = datasets.load_dataset(train.data)
        return datasets.with_one_mean(data) if has_int8_stem(network) else data
    try:
        data = datasets.load_dataset(train.data)
    except DmsflowError as error:
        print_line(f"the file is checked on random images: {error}")
        shape = MOST_IMAGES, network.resolution, network.resolution, network.channels
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        noise = ArraySplit(pixels, np.zeros(len(pixels), np.int64))
        data = Dataset(train.data.name, (), noise, noise, (), ())
    trained = folding.TrainedWeights(network, train.widths, weights)
    mean, std = (tuple(trained.take(name, network.channels).tolist()) for name in ("mean", "std"))
    return replace(data, mean=mean, std=std)


def _load_exporter(target: Target, train: Manifest) -> Any:
    exporter = plugin.load_plugin("exporters", target.exporter)
    if _is_float(train) and not hasattr(exporter, "write_float"):
        what = "takes binary networks only, and this one was trained in float"
        right = "use --target onnx or onnx-int8, or train with --precision binary"
        raise DmsflowError(f"target {target.name}", what, right)
    if not _is_float(train):
        check_takes_binary(target)
    return exporter


def check_takes_binary(target: Target) -> None:
    """Raise a DmsflowError where the target's exporter writes float32 networks only."""
    if not hasattr(plugin.load_plugin("exporters", target.exporter), "write"):
        what = "takes float32 networks only, and this one is binary"
        raise DmsflowError(f"target {target.name}", what, "train with --precision float, or use another, such as onnx")


def write_model(
    train: Manifest,
    weights: Weights,
    data: Dataset,
    path: Path,
    target: Target,
    pixels: str = "float32",
    **converter: str,
) -> tuple[SizeReport, Reference | None]:
    """Write a network; return the size of the file, and what it must compute.

    A float32 network is written one way, whatever the converter, and has no integer graph to be compared with.
    """
    exporter = _load_exporter(target, train)
    trained = train.network, train.widths, weights, data.mean, data.std
    if _is_float(train):
        count = min(getattr(exporter, "CALIBRATION_IMAGES", 0), len(data.train))
        # Evenly over the split, which may be sorted by class.
        images = [data.train.images(np.arange(count) * len(data.train) // count)] if count else []
        exporter.write_float(*trained, path, *images)
        sizes = Counter[str]()
        for name, array in weights.items():
            sizes[name.rpartition(".")[0]] += array.nbytes
        weighted = (each for each in train.network.layers if sizes[each.name])
        layers = [LayerSize(each.name, each.op, 0, sizes[each.name]) for each in weighted]
        return SizeReport(layers, exporter.layer_bytes(path), path.stat().st_size), None
    graph = folding.fold(*trained)
    exporter.write(msgspec.structs.replace(graph, pixels=pixels), path, **converter)
    check_packed(exporter, graph, path)
    granularity = getattr(exporter, "GRANULARITY", Granularity())
    ops = size_report.measure_ops(graph, granularity)
    warnings = size_report.find_warnings(graph, ops, granularity)
    report = SizeReport(ops, exporter.layer_bytes(path), path.stat().st_size, warnings)
    return report, functools.partial(integer_graph.compute_with_margins, graph)

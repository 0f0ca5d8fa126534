"""Trained networks that come with dmsflow: `models/NAME/` has the manifests, and compact weights instead of a file."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TextIO

from dmsflow import manifest, plugin
from dmsflow.errors import DmsflowError
from dmsflow.settings import BenchSettings, ExportSettings
from dmsflow.terminal import print_table

FILES = (".json", ".tflite", ".onnx")  # what a path that a command reads ends in
# The manifest of a model that a command reads; bench reads what it exports first.
READ_BY = {"widths": "search.json", "train": "search.json", "export": "train.json", "bench": "train.json"}
HEAD = ("name", "data set", "network", "MiB", "M MACs", "top-1 %", "file bytes")


def model_names() -> list[str]:
    return sorted(path.parent.name for path in plugin.shipped_folder("models").glob("*/train.json"))


def find_model(given: Path, command: str) -> Path:
    """The manifest that a command reads for a model's name; any other path is returned unchanged.

    Raises:
        DmsflowError: neither a path nor the name of a model.
    """
    name = str(given)
    if given.exists() or len(given.parts) != 1 or given.suffix in FILES:
        return given
    if name not in model_names():
        raise DmsflowError(name, "is neither a file nor a model", f"use a path, or one of {', '.join(model_names())}")
    return plugin.shipped_folder("models") / name / READ_BY.get(command, "bench.json")


def is_model(source: Path) -> bool:
    """Whether a manifest is that of a model."""
    return source.resolve().parent.parent == plugin.shipped_folder("models").resolve()


def default_out(source: Path, target: str = "") -> Path:
    """The folder of a manifest; for a model `runs/NAME`, or `runs/NAME/TARGET`: its own is not to be written to."""
    return Path("runs", source.resolve().parent.name, Path(target).stem) if is_model(source) else source.parent


def choose_target(settings: BenchSettings) -> str:
    """The target of the file that bench exports of a model; all but onnx have the same file."""
    if settings.runner == "onnxruntime":
        return "onnx"
    device = settings.device.partition(":")[0]
    if device in ("adb", "ssh", "qemu"):
        return "android-arm64" if device == "adb" else "arm64"
    arm = "macos-arm64" if platform.system() == "Darwin" else "arm64"
    return arm if platform.machine() in ("arm64", "aarch64") else "x86-64"


def export_model(source: Path, target: str, out: Path, *, force: bool = False) -> Path:
    """Export a model for a target, unless that is done; the path of export.json. Errors as export."""
    command = ("dmsflow", "export", source.resolve().parent.name, "--target", target, "--out", str(out))
    flow = manifest.Flow(command, resume=not force, force=force)
    return manifest.perform(["export"], source, {"export": ExportSettings(target=target)}, out, flow)


def print_models(stream: TextIO) -> None:
    """Print every model in a row."""
    rows = []
    for name in model_names():
        by_stage = {each.stage: each for _, each in manifest.chain(find_model(Path(name), "show"))}
        train, export = by_stage["train"], by_stage["export"].metrics
        costs = f"{train.metrics['memory_mib']:.4f}", f"{train.metrics['macs_m']:.2f}"
        top1 = f"{by_stage['bench'].metrics['top1_percent']:.2f}"
        rows.append((name, train.data.name, train.network.name, *costs, top1, f"{export['file_bytes']:,}"))
    print_table("models", HEAD, rows, stream=stream)

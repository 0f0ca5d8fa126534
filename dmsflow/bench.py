"""The fourth stage: how fast, how large and how right a model file is on a device.

The file and the float32 network of the same widths take turns in one process, so that whatever
disturbs the machine disturbs both. A bare .tflite or .onnx file is measured as well; it belongs to
no chain, so its bench.json has no network, widths or data and nothing goes on from it.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dmsflow import datasets, devices, manifest, plugin, progress, target
from dmsflow.cost import MIB
from dmsflow.datasets import Split
from dmsflow.errors import DmsflowError
from dmsflow.manifest import Manifest
from dmsflow.settings import BenchSettings
from dmsflow.table import print_table

FLOAT32 = "float32"
BATCH = 64  # images fetched from a split at once
PEAK = "peak: the largest resident set of a process that imports the runtime and loads and runs only this file"


@dataclass(frozen=True)
class Subject:
    """The file to measure, its runner, and the export it comes from (None: a bare file)."""

    path: Path
    runner: str
    export: Manifest | None


def run(source: Path, settings: BenchSettings, out: Path, *, command: tuple[str, ...], force: bool = False) -> Path:
    """Measure a file and write bench.json.

    Args:
        source: an export.json, or a .tflite or .onnx file.
        settings: of the stage.
        out: folder to write to.
        command: that runs this again.
        force: overwrite an earlier bench.json.

    Raises:
        DmsflowError: not such a file, or one that its runtime cannot run; a runtime is missing.
    """
    path = out / "bench.json"
    manifest.claim(path, resume=False, force=force)
    subject = _subject(source)
    timings = _measure(subject, settings)
    accuracy = _top1_percent(subject) if subject.export and settings.accuracy else None
    _print(subject, settings, timings, accuracy)
    written = out / "bench-timings.json"
    raw = {label: [round(ms, 5) for ms in timing.runs_ms] for label, timing in timings.items()}
    manifest.write_atomically(written, msgspec.json.encode(raw) + b"\n")
    return _save(path, subject, source, settings, command, {**_metrics(subject, timings), **_top1(accuracy)}, timings)


def plan(source: Path, settings: BenchSettings, out: Path) -> list[tuple[str, str]]:
    """What `run` would do, as rows of a label and a value.

    Raises:
        DmsflowError: as `run`, for what is known before measuring.
    """
    subject = _subject(source)
    plugin.load("devices", settings.device)
    baseline = bool(subject.export and settings.baseline)
    split = subject.export.data.name if subject.export and settings.accuracy else None
    return [
        ("file", f"{subject.path} ({subject.path.stat().st_size / 1024:.1f} KiB)"),
        ("runner", subject.runner),
        ("device", settings.device),
        ("baseline", "float32 network of the same widths, in onnxruntime" if baseline else "none"),
        ("runs", f"{settings.runs} of each, after {settings.warm_up} to warm up, {_threads(settings)}"),
        ("top-1", f"on the test split of {split}" if split else "not measured"),
        ("writes", str(out / "bench.json")),
    ]


def _subject(source: Path) -> Subject:
    runners = {one.suffix: one.runner for one in map(target.load, target.names())}
    if source.suffix == ".json":
        export = manifest.load(source, "export")
        path = manifest.verify(source, export.artifacts["model"])
        return Subject(path, target.load(export.settings["target"]).runner, export)
    if source.suffix not in runners:
        raise DmsflowError(
            source,
            "is neither a manifest nor a model file",
            f"give an export.json, or a {' or '.join(sorted(runners))} file",
        )
    if not source.is_file():
        raise DmsflowError(source, "no such file", "give the path of an existing file")
    return Subject(source, runners[source.suffix], None)


# --- measuring --------------------------------------------------------------------------------


def _measure(subject: Subject, settings: BenchSettings) -> dict[str, devices.Timing]:
    """Timings by label: the file's name, and "float32" if there is a baseline."""
    device = plugin.load("devices", settings.device)
    files = {subject.path.name: devices.File(path=str(subject.path), runner=subject.runner)}
    with tempfile.TemporaryDirectory() as folder:
        if subject.export and settings.baseline:
            path = Path(folder) / "float32.onnx"
            _write_float32(subject.export, path)
            files[FLOAT32] = devices.File(path=str(path), runner="onnxruntime")
        job = devices.Job(
            files=tuple(files.values()), threads=settings.threads, warm_up=settings.warm_up, runs=settings.runs
        )
        return dict(zip(files, device.measure(job).timings, strict=True))


def _write_float32(export: Manifest, path: Path) -> None:
    """Its weights are random: they change no time, and any chain has widths but few a float network."""
    channels = export.network.channels
    exporter = plugin.load("exporters", "onnx")
    exporter.write_float(export.network, export.widths, None, (128,) * channels, (64.0,) * channels, path)


def _top1_percent(subject: Subject) -> float:
    """Of the file, on the whole test split, run on this machine."""
    assert subject.export
    test = datasets.load(subject.export.data).test
    session = plugin.load("runners", subject.runner).open(subject.path, 1)
    if (shape := test.images(np.array([0])).shape) != session.input_shape:
        what = f"has images {list(shape[1:])}, and the file takes {list(session.input_shape[1:])}"
        raise DmsflowError(f"data set {subject.export.data.name}", what, "use the one of the search, or --no-accuracy")
    right = 0
    with progress.track("bench: top-1", total=len(test), unit="image") as track:
        for begin in range(0, len(test), BATCH):
            indices = np.arange(begin, min(begin + BATCH, len(test)))
            right += _right(session, test, indices)
            track.advance(len(indices), note=f"top-1 {100 * right / (indices[-1] + 1):.2f} %")
    return 100 * right / len(test)


def _right(session: Any, split: Split, indices: Any) -> int:
    images = split.images(indices).astype(np.float32)
    found = [int(session.run(image[None]).argmax()) for image in images]
    return int((found == split.labels[indices]).sum())


# --- telling ----------------------------------------------------------------------------------


def _latency(timing: devices.Timing) -> dict[str, float]:
    median, p90 = np.percentile(timing.runs_ms, (50, 90))
    return {"latency_ms_median": float(median), "latency_ms_p90": float(p90), "latency_ms_minimum": min(timing.runs_ms)}


def _numbers(timing: devices.Timing) -> dict[str, float]:
    return {**_latency(timing), "load_ms": timing.load_ms, "peak_memory_mib": timing.peak_memory_bytes / MIB}


def _metrics(subject: Subject, timings: dict[str, devices.Timing]) -> dict[str, Any]:
    """The file's numbers; the baseline's have a prefix."""
    metrics: dict[str, Any] = {"file_bytes": subject.path.stat().st_size, **_numbers(timings[subject.path.name])}
    if FLOAT32 in timings:
        baseline = _numbers(timings[FLOAT32])
        metrics |= {f"{FLOAT32}_{name}": number for name, number in baseline.items()}
        metrics["latency_ratio_to_float32"] = metrics["latency_ms_median"] / baseline["latency_ms_median"]
    return metrics


def _top1(percent: float | None) -> dict[str, float]:
    return {} if percent is None else {"top1_percent": percent}


def _print(
    subject: Subject, settings: BenchSettings, timings: dict[str, devices.Timing], top1_percent: float | None
) -> None:
    rows = []
    for label, timing in timings.items():
        numbers, mine = _numbers(timing), label != FLOAT32
        ratio = (
            numbers["latency_ms_median"] / _latency(timings[FLOAT32])["latency_ms_median"]
            if FLOAT32 in timings
            else None
        )
        rows.append(
            (
                label,
                timing.runtime,
                *(_ms(numbers[f"latency_ms_{name}"]) for name in ("median", "p90", "minimum")),
                None if ratio is None else f"{ratio:.2f}×",
                _ms(timing.load_ms),
                f"{numbers['peak_memory_mib']:.1f}",
                f"{subject.path.stat().st_size / 1024:.1f}" if mine else None,
                None if top1_percent is None or not mine else f"{top1_percent:.2f}",
            )
        )
    head = (
        "file",
        "runtime",
        "median ms",
        "p90 ms",
        "min ms",
        "÷ float32",
        "load ms",
        "peak MiB",
        "file KiB",
        "top-1 %",
    )
    print_table(f"{settings.device}, {_threads(settings)}, {settings.runs} runs of each in turn", head, rows)
    if FLOAT32 in timings:
        print("float32: the network of the same widths", file=sys.stderr)
    print(PEAK, file=sys.stderr)


def _threads(settings: BenchSettings) -> str:
    return "1 thread" if settings.threads == 1 else f"{settings.threads} threads"


def _ms(value: float) -> str:
    """Three significant digits, as far as they fit: 0.123, 1.23, 12.3, 1234."""
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def _save(
    path: Path,
    subject: Subject,
    source: Path,
    settings: BenchSettings,
    command: tuple[str, ...],
    metrics: dict[str, Any],
    timings: dict[str, devices.Timing],
) -> Path:
    out = path.parent
    fields: dict[str, Any] = {
        "stage": "bench",
        "command": command,
        "settings": msgspec.to_builtins(settings),
        "artifacts": {
            "model": manifest.artifact(subject.path, out),
            "timings": manifest.artifact(out / "bench-timings.json", out),
        },
        "metrics": metrics,
        "environment": manifest.environment(
            device=settings.device,
            threads=settings.threads,
            runtimes={label: timing.runtime for label, timing in timings.items()},
        ),
    }
    if subject.export is None:
        content = msgspec.json.format(msgspec.json.encode({"schema": manifest.SCHEMA, **fields}), indent=1)
        manifest.write_atomically(path, content + b"\n")
        return path
    chain = subject.export
    parent = manifest.artifact(source, out)
    return manifest.save(
        path, Manifest(parent=parent, network=chain.network, widths=chain.widths, data=chain.data, **fields)
    )

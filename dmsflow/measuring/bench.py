"""The fourth stage: how fast, how large and how right a model file is on a device.

The file and the float32 network of the same widths take turns in one process, so that whatever
disturbs the machine disturbs both. `prediction` says beforehand how fast it should be. A bare .tflite
or .onnx file is measured as well; it belongs to no chain, so its bench.json has no network, widths
or data and nothing goes on from it.

A device gets the file, and none of the images: `top1` is found on this machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dmsflow import environment, manifest, plugin
from dmsflow.environment import describe_environment
from dmsflow.errors import BudgetMissed
from dmsflow.files import describe_artifact, write_atomically
from dmsflow.manifest import Manifest
from dmsflow.measuring import accuracy, devices, predicted_latency
from dmsflow.measuring.devices import Machine, Timing
from dmsflow.measuring.predicted_latency import Prediction
from dmsflow.measuring.subject import Subject, subject_of
from dmsflow.network.cost import MIB
from dmsflow.settings import BenchSettings
from dmsflow.terminal import milliseconds, print_table, share_percent, spelled_method, spelled_threads

FLOAT32 = "float32"
BASELINE = "float32 network of the same widths"
PEAK = "peak: the largest resident set of a process that imports the runtime and loads and runs only this file"
TIME = "latency_ms_median"


@dataclass(frozen=True)
class Measured:
    """Timings by label, the file's name first, then "float32" if there is a baseline; and the device."""

    timings: dict[str, Timing]
    machine: Machine

    @property
    def file(self) -> Timing:
        return next(iter(self.timings.values()))


def run(
    source: Path,
    settings: BenchSettings,
    out: Path,
    *,
    command: tuple[str, ...],
    resume: bool = False,
    force: bool = False,
) -> Path:
    """Measure a file and write bench.json.

    Args:
        source: an export.json, or a .tflite or .onnx file.
        settings: of the stage.
        out: folder to write to.
        command: that runs this again.
        resume: leave a finished bench.json as it is.
        force: overwrite an earlier bench.json.

    Raises:
        DmsflowError: not such a file, or one that its runtime cannot run; a runtime is missing; a
            profile that says nothing of this file.
        BudgetMissed: it takes longer than required; bench.json is written all the same.
    """
    path = out / "bench.json"
    subject = subject_of(source)
    if manifest.is_finished(path, settings, resume=resume, force=force):
        check_required(path, settings)
        return path
    judge = accuracy.judge(subject, settings)
    predicted = predicted_latency.of(source, subject.export, settings)
    measured = _measure(subject, settings)
    metrics = {**_metrics(subject, measured, predicted), **_operations(measured)}
    if judge:
        metrics |= accuracy.found(subject, settings, judge)
    _print(subject, settings, measured, metrics)
    if predicted:
        predicted_latency.print_beside(predicted, measured.file, metrics[TIME], measured.machine)
    if settings.operations:
        _print_operations(measured, metrics)
    raw = {label: [round(ms, 5) for ms in timing.runs_ms] for label, timing in measured.timings.items()}
    write_atomically(out / "bench-timings.json", msgspec.json.encode(raw) + b"\n")
    _save(path, subject, source, settings, command, metrics, _environment(settings, measured, predicted))
    check_required(path, settings)
    return path


def plan(source: Path, settings: BenchSettings, out: Path) -> list[tuple[str, str]]:
    """What `run` would do, as rows of a label and a value.

    Raises:
        DmsflowError: as `run`, for what is known before measuring.
    """
    subject = subject_of(source)
    devices.find(settings.device)
    judge = accuracy.judge(subject, settings)
    predicted = predicted_latency.of(source, subject.export, settings)
    rows = [
        ("file", f"{subject.path} ({subject.path.stat().st_size / 1024:.1f} KiB)"),
        ("runner", settings.runner_file or settings.runner or " or ".join(subject.aim.runners)),
        ("device", settings.device),
        ("baseline", f"{BASELINE}, in onnxruntime" if _has_baseline(subject, settings) else "none"),
        ("runs", f"{settings.runs} of each, after {settings.warm_up} to warm up, {spelled_threads(settings.threads)}"),
        ("top-1", f"on {accuracy.images_of(subject, settings)}, by {judge}" if judge else "not measured"),
    ]
    if predicted:
        rows.append(("predicted", f"{milliseconds(predicted.ms)} ms with profile {predicted.profile.title}"))
    if settings.require_ms:
        rows.append(("required", f"at most {settings.require_ms:g} ms"))
    return [*rows, ("writes", str(out / "bench.json"))]


def check_required(path: Path, settings: BenchSettings) -> None:
    """Hold a finished bench.json, measured now or earlier, against what is required of it.

    Raises:
        BudgetMissed: the median is above `settings.require_ms`.
    """
    written = msgspec.json.decode(path.read_bytes())
    median = written["metrics"][TIME]
    if settings.require_ms is not None and median > settings.require_ms:
        file = os.path.normpath(path.parent / written["artifacts"]["model"]["path"])
        what = f"takes {median:.4g} ms (median), more than --require-ms {settings.require_ms:g}"
        raise BudgetMissed(file, what, f"search with a smaller --latency-ms; what was measured is in {path}")


# --- measuring --------------------------------------------------------------------------------


def _measure(subject: Subject, settings: BenchSettings) -> Measured:
    files = {subject.path.name: devices.File(path=str(subject.path), runner=devices.runner_of(subject.aim, settings))}
    with tempfile.TemporaryDirectory() as folder:
        if _has_baseline(subject, settings):
            environment.require("--baseline (--no-baseline leaves it out)", ["onnx", "onnxruntime"])
            path = Path(folder) / "float32.onnx"
            assert subject.export
            _write_float32(subject.export, path)
            files[FLOAT32] = devices.File(path=str(path), runner="onnxruntime")
        elif subject.export and settings.baseline:
            _say(f"no float32 baseline: {_without_onnxruntime(settings)} does not run onnxruntime")
        job = devices.Job(
            files=tuple(files.values()),
            threads=settings.threads,
            warm_up=settings.warm_up,
            runs=settings.runs,
            operations=settings.operations,
        )
        access = devices.Access(python=settings.python, runner_file=settings.runner_file)
        with devices.connect(settings.device, access) as measure:
            found = measure(job)
    return Measured(dict(zip(files, found.timings, strict=True)), found.machine)


def has_baseline(settings: BenchSettings) -> bool:
    """Whether a file of a chain is measured beside its float32 network."""
    return settings.baseline and not _without_onnxruntime(settings)


def _has_baseline(subject: Subject, settings: BenchSettings) -> bool:
    return subject.export is not None and has_baseline(settings)


def _without_onnxruntime(settings: BenchSettings) -> str | None:
    """What measures, if it can only run files of another runtime than the baseline's."""
    if settings.runner_file:
        return settings.runner_file
    return settings.device if settings.device.startswith("adb") else None


def _write_float32(export: Manifest, path: Path) -> None:
    """Its weights are random: they change no time, and any chain has widths but few a float network."""
    channels = export.network.channels
    exporter = plugin.load("exporters", "onnx")
    exporter.write_float(export.network, export.widths, None, (128,) * channels, (64.0,) * channels, path)


# --- telling ----------------------------------------------------------------------------------


def _numbers(timing: Timing) -> dict[str, float]:
    median, p90 = np.percentile(timing.runs_ms, (50, 90))
    numbers = {TIME: float(median), "latency_ms_p90": float(p90), "latency_ms_minimum": min(timing.runs_ms)}
    numbers["load_ms"] = timing.load_ms
    if timing.peak_memory_bytes is not None:
        numbers["peak_memory_mib"] = timing.peak_memory_bytes / MIB
    return numbers


def _metrics(subject: Subject, measured: Measured, predicted: Prediction | None) -> dict[str, Any]:
    """The file's numbers, predicted ones beside measured ones; the baseline's have a prefix."""
    numbers = _numbers(measured.file)
    metrics: dict[str, Any] = {"file_bytes": subject.path.stat().st_size, TIME: numbers[TIME]}
    if predicted:
        metrics |= predicted.metrics(numbers[TIME])
    metrics |= numbers
    if FLOAT32 in measured.timings:
        baseline = _numbers(measured.timings[FLOAT32])
        metrics |= {f"{FLOAT32}_{name}": number for name, number in baseline.items()}
        metrics["latency_ratio_to_float32"] = metrics[TIME] / baseline[TIME]
    return metrics


def _operations(measured: Measured) -> dict[str, list[dict[str, Any]]]:
    """A row for each operation that the runtime tells the time of; share is of their sum."""
    told = measured.file.operations
    total = sum(one.ms for one in told)
    rows = [
        {"op": one.op, "name": one.name, "ms": one.ms, "share_percent": share_percent(one.ms, total)} for one in told
    ]
    return {"operations": rows} if rows else {}


def _environment(settings: BenchSettings, measured: Measured, predicted: Prediction | None) -> dict[str, Any]:
    told = msgspec.to_builtins(measured.machine)
    environment = describe_environment(
        device=settings.device,
        machine={name: word for name, word in told.items() if word is not None},
        threads=settings.threads,
        runtimes={label: timing.runtime for label, timing in measured.timings.items()},
    )
    if predicted:
        environment["profile"] = predicted.facts()
    return environment


def _print(subject: Subject, settings: BenchSettings, measured: Measured, metrics: dict[str, Any]) -> None:
    rows = []
    for label, timing in measured.timings.items():
        numbers, mine = _numbers(timing), label != FLOAT32
        ratio = None
        if FLOAT32 in measured.timings:
            ratio = numbers[TIME] / _numbers(measured.timings[FLOAT32])[TIME]
        rows.append(
            (
                label,
                timing.runtime,
                *(milliseconds(numbers[f"latency_ms_{name}"]) for name in ("median", "p90", "minimum")),
                None if ratio is None else f"{ratio:.2f}×",
                milliseconds(timing.load_ms),
                f"{numbers['peak_memory_mib']:.1f}" if "peak_memory_mib" in numbers else None,
                f"{subject.path.stat().st_size / 1024:.1f}" if mine else None,
                f"{metrics['top1_percent']:.2f}" if mine and "top1_percent" in metrics else None,
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
    print_table(f"{settings.device}, {spelled_threads(settings.threads)}, {_runs(settings, measured)}", head, rows)
    _say(f"{spelled_method(measured.machine.method)}: {_machine(measured.machine)}")
    if FLOAT32 in measured.timings:
        _say(f"float32: the {BASELINE.removeprefix('float32 ')}")
    if measured.file.peak_memory_bytes is not None:
        _say(PEAK)
    if settings.device != "local" and "top1_percent" in metrics:
        _say("top-1: found on this machine, by the same file")


def _runs(settings: BenchSettings, measured: Measured) -> str:
    if measured.machine.method == "modelled":
        return "modelled: one run of each was counted"
    return f"{settings.runs} runs of each in turn"


def _print_operations(measured: Measured, metrics: dict[str, Any]) -> None:
    runtime = measured.file.runtime
    if "operations" not in metrics:
        _say(f"{runtime} does not tell the time of its operations")
        return
    cells = [
        (row["op"], row["name"], milliseconds(row["ms"]), f"{row['share_percent']:.1f}")
        for row in metrics["operations"]
    ]
    print_table(f"Operations as {runtime} tells them, which slows it", ("op", "name", "ms", "share %"), cells)


def _machine(machine: Machine) -> str:
    governor = machine.governor and f"governor {machine.governor}"
    degrees = None if machine.temperature_c is None else f"{machine.temperature_c:.0f} °C"
    return ", ".join(filter(None, (machine.processor, machine.system, governor, degrees)))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _save(
    path: Path,
    subject: Subject,
    source: Path,
    settings: BenchSettings,
    command: tuple[str, ...],
    metrics: dict[str, Any],
    environment: dict[str, Any],
) -> Path:
    out = path.parent
    fields: dict[str, Any] = {
        "stage": "bench",
        "command": command,
        "settings": msgspec.to_builtins(settings),
        "artifacts": {
            "model": describe_artifact(subject.path, out),
            "timings": describe_artifact(out / "bench-timings.json", out),
        },
        "metrics": metrics,
        "environment": environment,
    }
    if subject.export is None:
        content = msgspec.json.format(msgspec.json.encode({"schema": manifest.SCHEMA, **fields}), indent=1)
        write_atomically(path, content + b"\n")
        return path
    chain = subject.export
    parent = describe_artifact(source, out)
    return manifest.save(
        path, Manifest(parent=parent, network=chain.network, widths=chain.widths, data=chain.data, **fields)
    )

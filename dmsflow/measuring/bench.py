"""The fourth stage: how fast, how large and how accurate a model file is on a device.

The file and the float32 or int8 network of the same widths run by turns in one process, so that whatever slows
the machine down slows both. `predicted_latency` says beforehand how fast the file should be. A bare
.tflite or .onnx file is measured as well; it belongs to no chain, so its bench.json has no network,
widths or data, and no later stage reads it.

A device gets the file, and none of the images: `accuracy` computes top-1 on this machine.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dmsflow import environment, manifest
from dmsflow.deploying.target import load_target
from dmsflow.errors import BudgetMissed, DmsflowError
from dmsflow.files import read_bytes, write_atomically
from dmsflow.manifest import Flow
from dmsflow.measuring import accuracy, devices, predicted_latency
from dmsflow.measuring.benched import Benched, find_benched
from dmsflow.measuring.devices import Machine, Timing
from dmsflow.measuring.predicted_latency import Prediction
from dmsflow.measuring.random_weights import write_random
from dmsflow.modelfile.inputs import Port, images_per_run
from dmsflow.network.cost import MIB
from dmsflow.settings import BenchSettings
from dmsflow.terminal import format_method, format_threads, milliseconds, print_line, print_table, share_percent

# The networks of the same widths, by the label of a baseline: what is measured beside a file, and its target.
BASELINES = {"float32": "onnx", "int8": "onnx-int8"}
PEAK = "peak: the largest resident set of a process that imports the runtime and loads and runs only this file"
TIMES = ("latency_ms_median", "latency_ms_p90", "latency_ms_minimum", "load_ms")  # of each file
TIME = TIMES[0]

Timings = dict[str, Timing]  # by the file's name first, then by the label of each baseline


def run_stage(source: Path, settings: BenchSettings, out: Path, flow: Flow) -> Path:
    """Measure a file and write bench.json.

    Raises:
        DmsflowError: not such a file, or one that its runtime cannot run; a runtime is missing; a
            profile that does not predict this file.
        BudgetMissed: it takes longer than required; bench.json is written all the same.
    """
    path = out / "bench.json"
    benched = find_benched(source)
    if manifest.is_finished(path, settings, flow, source=source):
        check_required(path, settings)
        return path
    runner = accuracy.runner_for(benched, settings)
    prediction = predicted_latency.predict(source, benched.export, settings)
    timings, sizes, machine = _measure(benched, settings)
    metrics = _metrics(benched, timings, sizes, prediction)
    if runner:
        metrics |= accuracy.measure_top1(benched, settings, runner)
    if settings.baseline != "none" and not benched.export:
        print_line(f"no {settings.baseline} baseline: no manifest has the widths of this file")
    _print(settings, timings, machine, metrics)
    measured = timings[benched.path.name]
    if prediction:
        predicted_latency.print_beside(prediction, measured, metrics[TIME], machine)
    if settings.operations:
        _print_operations(measured.runtime, metrics)
    raw = {label: [round(ms, 5) for ms in timing.runs_ms] for label, timing in timings.items()}
    write_atomically(out / "bench-timings.json", msgspec.json.encode(raw) + b"\n")
    environment: dict[str, Any] = {"device": settings.device, "threads": settings.threads}
    environment["machine"] = {name: fact for name, fact in msgspec.to_builtins(machine).items() if fact is not None}
    environment["runtimes"] = {label: timing.runtime for label, timing in timings.items()}
    if prediction:
        used = prediction.profile
        environment["profile"] = {"name": used.name, "method": used.method, "sha256": prediction.sha256}
    done = manifest.Done({"model": benched.path, "timings": out / "bench-timings.json"}, metrics, environment)
    manifest.finish_stage(path, settings, flow, done, (source, benched.export) if benched.export else None)
    check_required(path, settings)
    return path


def plan_stage(source: Path, settings: BenchSettings, out: Path) -> list[tuple[str, str]]:
    """What `run_stage` would do, as rows of a label and a value; its errors, where they are known before measuring."""
    benched = find_benched(source)
    devices.find(settings.device)
    _check_alone(benched, settings)
    runner = accuracy.runner_for(benched, settings)
    prediction = predicted_latency.predict(source, benched.export, settings)
    images = f"the test split of {benched.export.data.name}" if benched.export else f"the images in {settings.images}"
    baselines = choose_baselines(settings) if benched.export else ()
    rows = [
        ("file", f"{benched.path} ({benched.file_bytes / 1024:.1f} KiB)"),
        ("runner", settings.runner_file or settings.runner or " or ".join(benched.target.runners)),
        ("device", settings.device),
        ("baseline", f"{' and '.join(baselines)} network of the same widths, in onnxruntime" if baselines else "none"),
        ("runs", f"{settings.runs} of each, after {settings.warm_up} to warm up, {format_threads(settings.threads)}"),
        ("top-1", f"on {images}, by {runner}" if runner else "not measured"),
    ]
    if prediction:
        rows.append(("predicted", f"{milliseconds(prediction.ms)} ms with profile {prediction.profile.title}"))
    if settings.require_ms:
        rows.append(("required", f"at most {settings.require_ms:g} ms"))
    return [*rows, ("writes", str(out / "bench.json"))]


def check_required(path: Path, settings: BenchSettings) -> None:
    """Raise BudgetMissed if the median of a bench.json, written now or earlier, is above `settings.require_ms`."""
    written = msgspec.json.decode(read_bytes(path))
    try:
        median, model = written["metrics"][TIME], written["artifacts"]["model"]["path"]
    except KeyError as error:
        raise DmsflowError(path, f"has no {error}", manifest.AGAIN) from error
    if settings.require_ms is not None and median > settings.require_ms:
        folder = manifest.home(path.parent)
        file = os.path.normpath(folder / model)
        what = f"takes {median:.4g} ms (median), more than --require-ms {settings.require_ms:g}"
        raise BudgetMissed(
            file, what, f"search with a smaller --latency-ms; what was measured is in {folder / path.name}"
        )


def choose_baselines(settings: BenchSettings) -> tuple[str, ...]:
    """The labels of the baselines that are measured too."""
    # A benchmark program, and a phone needs one, does not run their files.
    if settings.runner_file or settings.device.startswith("adb"):
        return ()
    return tuple(label for label in BASELINES if settings.baseline in (label, "both"))


def _check_alone(benched: Benched, settings: BenchSettings) -> None:
    """Refuse to send a file without its weights, which are in others beside it."""
    if benched.beside and not settings.device.startswith(("local", "qemu")):
        what = f"keeps its weights in {benched.beside[0].name} beside it, and a device gets one file"
        raise DmsflowError(benched.path, what, "put all into one: onnx.save_model(onnx.load(PATH), OTHER_PATH)")


def _measure(benched: Benched, settings: BenchSettings) -> tuple[Timings, dict[str, int], Machine]:
    """The times of each file, its bytes, and the machine."""
    _check_alone(benched, settings)
    runner = devices.runner_of(benched.target, settings)
    files = {benched.path.name: devices.File(path=str(benched.path), runner=runner)}
    sizes = {benched.path.name: benched.file_bytes}
    with tempfile.TemporaryDirectory() as folder:
        for label in choose_baselines(settings):
            if not benched.export:
                break
            environment.require("--baseline (none leaves it out)", ["onnx", "onnxruntime"])
            network, widths = benched.export.network, benched.export.widths
            # Random weights: they change no time, and few chains have trained the float network.
            files[label] = write_random(load_target(BASELINES[label]), "float", network, widths, Path(folder, label))
            sizes[label] = Path(files[label].path).stat().st_size
        if benched.export and settings.baseline != "none" and len(sizes) == 1:
            where = settings.runner_file or settings.device
            print_line(f"no {settings.baseline} baseline: {where} does not run onnxruntime")
        how = {name: getattr(settings, name) for name in ("threads", "warm_up", "runs", "operations")}
        access = devices.Access(python=settings.python, runner_file=settings.runner_file)
        with devices.connect(settings.device, access) as measure:
            measurement = measure(devices.Job(files=tuple(files.values()), **how))
    return dict(zip(files, measurement.timings, strict=True)), sizes, measurement.machine


def _prefix(label: str) -> str:
    """Of the metrics of a file: none of the one that is benched."""
    return f"{label}_" if label in BASELINES else ""


def _metrics(
    benched: Benched, timings: Timings, sizes: dict[str, int], prediction: Prediction | None
) -> dict[str, Any]:
    """What a manifest keeps: the prediction beside the file's numbers; those of baselines have a prefix."""
    numbers: dict[str, float] = {}
    for label, timing in timings.items():
        prefix = _prefix(label)
        times = (*map(float, np.percentile(timing.runs_ms, (50, 90))), min(timing.runs_ms), timing.load_ms)
        numbers |= {f"{prefix}{name}": ms for name, ms in zip(TIMES, times, strict=True)}
        if timing.peak_memory_bytes is not None:
            numbers[f"{prefix}peak_memory_mib"] = timing.peak_memory_bytes / MIB
    median = numbers[TIME]
    metrics: dict[str, Any] = {f"{_prefix(label)}file_bytes": size for label, size in sizes.items()}
    metrics[TIME] = median
    metrics |= prediction.metrics(median) if prediction else {}
    metrics |= numbers
    if (images := images_per_run(timings[benched.path.name].inputs)) > 1:
        metrics |= {"images_per_run": images, "latency_ms_per_image": median / images}
    for label in (each for each in BASELINES if each in timings):
        metrics[f"latency_ratio_to_{label}"] = median / numbers[f"{label}_{TIME}"]
    if operations := timings[benched.path.name].operations:
        total = sum(each.ms for each in operations)
        metrics["operations"] = [
            {**msgspec.to_builtins(each), "share_percent": share_percent(each.ms, total)} for each in operations
        ]
    return metrics


# --- what is printed --------------------------------------------------------------------------


def _print(settings: BenchSettings, timings: Timings, machine: Machine, metrics: dict[str, Any]) -> None:
    baselines = [label for label in timings if label in BASELINES]
    columns = []  # one a file, so that the table fits a narrow terminal
    for label in timings:
        prefix = _prefix(label)
        ms = [metrics[f"{prefix}{name}"] for name in TIMES]
        ratios = [f"{ms[0] / metrics[f'{each}_{TIME}']:.2f}×" for each in baselines]
        peak, top1 = metrics.get(f"{prefix}peak_memory_mib"), metrics.get("top1_percent")
        size = f"{metrics[f'{prefix}file_bytes'] / 1024:.1f}"
        correct = None if prefix or top1 is None else f"{top1:.2f}"
        columns.append([*map(milliseconds, ms), *ratios, f"{peak:.1f}" if peak else None, size, correct])
    labels = ["median ms", "p90 ms", "min ms", "load ms"]
    labels += [*(f"÷ {label}" for label in baselines), "peak MiB", "file KiB", "top-1 %"]
    if images := metrics.get("images_per_run"):
        labels.insert(1, f"÷ {images} images")
        columns[0].insert(1, milliseconds(metrics["latency_ms_per_image"]))
    modelled = machine.method == "modelled"
    runs = "modelled: one run of each was counted" if modelled else f"{settings.runs} runs of each in turn"
    title = f"{settings.device}, {format_threads(settings.threads)}, {runs}"
    print_table(title, ("", *timings), zip(labels, *columns, strict=True))
    governor = machine.governor and f"governor {machine.governor}"
    degrees = None if machine.temperature_c is None else f"{machine.temperature_c:.0f} °C"
    known = ", ".join(filter(None, (machine.processor, machine.system, governor, degrees)))
    print_line(f"{format_method(machine.method)}: {known}")
    for label, timing in timings.items():
        what = "the network of the same widths, in " if label in BASELINES else ""
        print_line(f"{label}: {what}{timing.runtime}")
        _print_inputs(label, timing.inputs)
    if "peak_memory_mib" in metrics:
        print_line(PEAK)
    if settings.device != "local" and "top1_percent" in metrics:
        print_line("top-1: computed on this machine, with the same file")


def _print_inputs(label: str, inputs: tuple[Port, ...]) -> None:
    """What a file takes, if that is not one image of float32 in a fixed shape."""
    images = images_per_run(inputs)
    for port in inputs:
        if port.free_batch:
            print_line(f"{label}: {port} leaves the batch open, and ran with 1")
        elif len(inputs) > 1 or images > 1 or port.dtype != "float32":
            print_line(f"{label}: takes {port}, random here")
    if images > 1:
        print_line(f"{label}: times are of {images} images a run")


def _print_operations(runtime: str, metrics: dict[str, Any]) -> None:
    if "operations" not in metrics:
        print_line(f"{runtime} does not report the time of its operations")
        return
    cells = [
        (row["op"], row["name"], milliseconds(row["ms"]), f"{row['share_percent']:.1f}")
        for row in metrics["operations"]
    ]
    print_table(f"Operations as timed by {runtime}, which slows it", ("op", "name", "ms", "share %"), cells)

"""The third stage: a trained network as a model file for a target, checked before it is kept.

The file is written aside, run on real test images, and only takes its place if every binary
convolution became an op on packed bits and its logits are those of the integer graph.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from dmsflow import datasets, manifest, plugin
from dmsflow.datasets import Dataset
from dmsflow.deploying import folding, integer_graph, size_report, target
from dmsflow.deploying.check import MOVED, Check, Reference, _check
from dmsflow.deploying.target import Target
from dmsflow.environment import describe_environment
from dmsflow.errors import DmsflowError
from dmsflow.files import describe_artifact
from dmsflow.manifest import Manifest
from dmsflow.modelfile import runners
from dmsflow.network import cost
from dmsflow.network.profile import Granularity
from dmsflow.settings import ExportSettings
from dmsflow.terminal import print_table

IMAGES, FEWEST_IMAGES = 256, 16  # of the check, unless the user says how many
CHECK_MACS = 5e10  # and no more than take that many multiply-accumulates: seconds of NumPy


def run(source: Path, settings: ExportSettings, out: Path, *, command: tuple[str, ...], force: bool = False) -> Path:
    """Write a model file and export.json.

    Args:
        source: a train.json.
        settings: of the stage.
        out: folder to write to.
        command: that runs this again.
        force: overwrite an earlier export.

    Raises:
        DmsflowError: the target cannot have this network, what it needs is missing, or the file
            written is not the network; no file is left then.
    """
    path = out / "export.json"
    train = manifest.load(source, "train")
    aim = target.load(settings.target)
    variant, runner = variant_of(aim, settings), _runner(aim)
    manifest.claim(path, resume=False, force=force)
    dataset = datasets.load_dataset(train.data)
    weights, logits = _tensors(source, train, "weights"), _tensors(source, train, "logits")["logits"]
    model = out / f"model{aim.suffix}"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
        candidate = Path(folder) / model.name
        trained = Trained(train, dataset, weights)
        written = _float(trained, aim, candidate) if _is_float(train) else _binary(trained, aim, candidate, **variant)
        check = _check(runner, candidate, written.reference, dataset.test, logits, _images(train, settings))
        metrics = {**_metrics(train, written, candidate), **_check_metrics(check)}
        candidate.replace(model)
    _print(model, written, check)
    return manifest.save(
        path,
        Manifest(
            stage="export",
            parent=describe_artifact(source, out),
            command=command,
            settings=msgspec.to_builtins(settings),
            network=train.network,
            widths=train.widths,
            data=train.data,
            artifacts={"model": describe_artifact(model, out)},
            metrics=metrics,
            environment=describe_environment(runtimes={model.name: plugin.load("runners", runner).version()}),
        ),
    )


def plan(source: Path, settings: ExportSettings, out: Path) -> list[tuple[str, str]]:
    """What `run` would do, as rows of a label and a value.

    Raises:
        DmsflowError: as `run`, for what is known before writing.
    """
    train = manifest.load(source, "train")
    aim = target.load(settings.target)
    variant = variant_of(aim, settings)
    if _is_float(train):
        _float_exporter(aim)
    memory = cost.memory_bytes(train.network, train.widths, binary=not _is_float(train))
    return [
        ("network", f"{train.network.name}, {'float32' if _is_float(train) else '1-bit'}, {memory / cost.MIB:.4f} MiB"),
        ("target", f"{aim.name}: {aim.description}"),
        ("exporter", ", ".join([aim.exporter, *variant.values()])),
        ("check", f"on {_images(train, settings)} test images of {train.data.name}, run by {_runner(aim)}"),
        ("writes", f"{out / 'model'}{aim.suffix}, {out / 'export.json'}"),
    ]


def _runner(aim: Target) -> str:
    """What runs the written file: the witness, whose kernels are not ours, where it is installed.

    Raises:
        DmsflowError: no runner of the target works here.
    """
    return runners.first_usable(aim.runners[::-1])[0]


def variant_of(aim: Target, settings: ExportSettings) -> dict[str, str]:
    """The exporter's variant as an argument of its `write`, if it has several.

    Raises:
        DmsflowError: the settings ask for a variant of another exporter.
    """
    for name in plugin.names("exporters"):
        other = plugin.load("exporters", name)
        asked = getattr(settings, other.OPTION)
        if name != aim.exporter and asked != other.VARIANTS[0]:
            option = f"--{other.OPTION.replace('_', '-')} {asked}"
            what = f"is not for target {aim.name}"
            raise DmsflowError(option, what, f"its files are written by exporter {aim.exporter}")
    exporter = plugin.load("exporters", aim.exporter)
    return {"variant": getattr(settings, exporter.OPTION)} if hasattr(exporter, "OPTION") else {}


def _images(train: Manifest, settings: ExportSettings) -> int:
    """How many images to check on."""
    affordable = int(CHECK_MACS / cost.macs(train.network, train.widths))
    return settings.check_images or max(FEWEST_IMAGES, min(IMAGES, affordable))


def _is_float(train: Manifest) -> bool:
    return bool(train.settings.get("precision") == "float")


def _tensors(source: Path, train: Manifest, role: str) -> dict[str, NDArray[Any]]:
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


# --- writing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        rows: of its account, one an op with parameters.
        remarks: lines on what makes it larger or slower than it need be.
        reference: what it must compute; None for a float32 network, which has no integer graph.
    """

    rows: list[dict[str, Any]]
    remarks: list[str]
    reference: Reference | None


@dataclass(frozen=True)
class Trained:
    """What there is to write."""

    manifest: Manifest
    dataset: Dataset
    weights: dict[str, NDArray[Any]]


def _binary(trained: Trained, aim: Target, path: Path, **variant: str) -> Written:
    train, data = trained.manifest, trained.dataset
    exporter = plugin.load("exporters", aim.exporter)
    form = folding.fold(train.network, train.widths, trained.weights, data.mean, data.std)
    exporter.write(form, path, **variant)
    _check_packed(exporter.census(path), exporter, form, path)
    steps = getattr(exporter, "GRANULARITY", Granularity())
    account, sizes = size_report.account(form, steps), exporter.layer_bytes(path)
    rows = [{**vars(row), "file_bytes": sizes.get(row.layer, 0)} for row in account]
    return Written(rows, size_report.remarks(form, account, steps), lambda images: integer_graph.run(form, images))


def _check_packed(census: dict[str, int], exporter: Any, form: integer_graph.IntegerGraph, path: Path) -> None:
    """Every binary convolution must be an op on packed bits, and only the stem a float one."""
    for op, kind in ((exporter.PACKED_CONV, integer_graph.BinaryConv), (exporter.FLOAT_CONV, integer_graph.Stem)):
        wanted, found = sum(isinstance(one, kind) for one in form.ops), census.get(op, 0)
        if found != wanted:
            raise DmsflowError(
                path.name, f"has {found} ops {op} for {wanted} layers", "report this: the exporter is wrong"
            )


def _float(trained: Trained, aim: Target, path: Path) -> Written:
    """A float32 network has one form, whatever the variant."""
    train, data = trained.manifest, trained.dataset
    exporter = _float_exporter(aim)
    exporter.write_float(train.network, train.widths, trained.weights, data.mean, data.std, path)
    layers = [
        layer for layer in train.network.layers if any(key.startswith(f"{layer.name}.") for key in trained.weights)
    ]
    sizes = exporter.layer_bytes(path)
    rows = []
    for layer in layers:
        floats = sum(array.nbytes for key, array in trained.weights.items() if key.rpartition(".")[0] == layer.name)
        rows.append(
            {
                "layer": layer.name,
                "op": layer.op,
                "binary_bytes": 0,
                "float_bytes": floats,
                "file_bytes": sizes.get(layer.name, 0),
            }
        )
    return Written(rows, [], None)


def _float_exporter(aim: Target) -> Any:
    exporter = plugin.load("exporters", aim.exporter)
    if not hasattr(exporter, "write_float"):
        raise DmsflowError(
            f"target {aim.name}",
            "takes binary networks only, and this one was trained in float",
            "use --target onnx, or train with --precision binary",
        )
    return exporter


# --- checking ---------------------------------------------------------------------------------


# --- telling ----------------------------------------------------------------------------------


def _metrics(train: Manifest, written: Written, path: Path) -> dict[str, Any]:
    rows = written.rows
    return {
        "memory_mib": cost.memory_bytes(train.network, train.widths, binary=not _is_float(train)) / cost.MIB,
        "binary_memory_bytes": _sum(rows, "binary_bytes"),
        "float_memory_bytes": _sum(rows, "float_bytes"),
        "file_bytes": path.stat().st_size,
        "trained_top1_percent": train.metrics["top1_percent"],
        "layers": rows,
        "remarks": written.remarks,
    }


def _check_metrics(check: Check) -> dict[str, Any]:
    exact = {} if check.difference is None else {"deploy_form_largest_logit_difference": check.difference}
    return {
        "check_images": check.images,
        **exact,
        "trained_compared_images": check.compared,
        "trained_agreement_percent": 100 * check.agreeing / check.compared,
        "trained_moved_images": check.moved,
    }


def _channels(row: dict[str, Any]) -> tuple[str, ...]:
    """Shape, and channels read and written: `55 (64)` where kernels pad them."""
    pairs = (row["reads"], row["padded_reads"]), (row["writes"], row["padded_writes"])
    return row["shape"], *(str(real) if real == padded else f"{real} ({padded})" for real, padded in pairs)


def _sum(rows: Iterable[dict[str, Any]], key: str) -> int:
    return sum(int(row[key]) for row in rows)


def _print(model: Path, written: Written, check: Check) -> None:
    rows, total = written.rows, model.stat().st_size
    sizes = ("binary_bytes", "float_bytes", "file_bytes")
    head = [
        "layer",
        "op",
        *(["shape", "reads", "writes"] if "shape" in rows[0] else []),
        "binary bytes",
        "float bytes",
        "file bytes",
    ]
    between = [""] * (len(head) - 5)
    cells = [
        (row["layer"], row["op"], *(_channels(row) if between else ()), *(f"{row[key]:,}" for key in sizes))
        for row in rows
    ]
    cells.append(("", "graph, names, alignment", *between, "0", "0", f"{total - _sum(rows, 'file_bytes'):,}"))
    cells.append(("sum", "", *between, *(f"{_sum(rows, key):,}" for key in sizes[:2]), f"{total:,}"))
    print_table(str(model), head, cells)
    for line in written.remarks:
        print(line, file=sys.stderr)
    if check.difference is not None:
        print(
            f"{check.images} test images: equal to the integer graph, no logit differs by more than {check.difference:.1e}",
            file=sys.stderr,
        )
    agreement = f"{check.agreeing} of {check.compared} in the class found, {check.moved} with a logit moved by more than {MOVED}"
    print(f"beside the network as it was trained: {agreement}", file=sys.stderr)

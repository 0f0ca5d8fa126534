"""Files as tables: a chain of manifests, a profile, a model; and lists of what options can name."""

from __future__ import annotations

import ast
import json
import math
import shlex
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec

from dmsflow import manifest, plugin, settings
from dmsflow.deploying.target import list_targets, load_target
from dmsflow.environment import measured_machine
from dmsflow.errors import DmsflowError
from dmsflow.manifest import Chain, Manifest
from dmsflow.modelfile import reader
from dmsflow.network import cost, profile
from dmsflow.network.latency import Grid, build_latency
from dmsflow.network.profile import Granularity, Profile, Table
from dmsflow.plugin import list_plugins
from dmsflow.reporting import models
from dmsflow.terminal import block, milliseconds, print_table, spelled_threads

WITHIN_PERCENT = 10.0
SAMPLES = 64  # of a staircase drawn in a line


def show_file(path: Path, as_json: bool, stream: TextIO) -> None:
    """Print a manifest with those it was made from, a profile, or what is in a .tflite or .onnx file.

    Raises:
        DmsflowError: it is none of them, or it is damaged.
    """
    if reader.is_model_file(path):
        found_model = reader.read_model_file(path)
        if as_json:
            print(models.as_json(found_model), file=stream)
        else:
            models.print_model(found_model, stream)
        return
    if _is_profile(path):
        found = profile.load_profile(str(path))
        if as_json:
            stream.write(path.read_text(encoding="utf-8"))
        else:
            print_profile(found, stream)
        return
    manifests = manifest.chain(path)
    if as_json:
        print(chain_json(manifests), file=stream)
    else:
        print_chain(manifests, stream)


def _is_profile(path: Path) -> bool:
    """By what the file holds: a profile has tables, a manifest the stage that wrote it."""
    right = "give a manifest that a stage wrote, a profile, or a .tflite or .onnx file"
    try:
        content = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise DmsflowError(path, error.strerror or str(error), right) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DmsflowError(path, f"is neither a manifest nor a profile ({error})", right) from error
    if not isinstance(content, dict) or not {"stage", "tables"} & set(content):
        raise DmsflowError(path, "is neither a manifest nor a profile", right)
    return "stage" not in content


# --- a chain ------------------------------------------------------------------------------------


def chain_json(manifests: Chain) -> str:
    """A JSON array of the manifests, each with the path it was read from."""
    return json.dumps([{"path": str(path), **msgspec.to_builtins(each)} for path, each in manifests], indent=1)


def print_chain(manifests: Chain, stream: TextIO) -> None:
    """Print the widths once, then what each stage found, where and when."""
    copy = manifest.inherited(manifests, "profile")
    used = profile.load_profile(str(copy)) if copy else None
    _print_widths(manifests[-1][1], used, stream)
    for path, each in manifests:
        _print_stage(path, each, used if each.stage == "search" else None, stream)


def _print_widths(last: Manifest, used: Profile | None, stream: TextIO) -> None:
    base = last.network.widths
    rows = [(name, base[name], width, f"{width / base[name]:.2f}") for name, width in last.widths.items()]
    title = f"{last.network.name} on {last.data.name}, {last.network.resolution}×{last.network.resolution} pixels"
    print_table(title, ("width", "base", "chosen", "ratio"), rows, stream=stream)
    head = ["widths", "memory MiB", "million MACs", *([f"ms, predicted by {used.title}"] if used else [])]
    costs = [
        (
            name,
            f"{cost.memory_bytes(last.network, widths) / cost.MIB:.4f}",
            f"{cost.macs(last.network, widths) / 1e6:.2f}",
            *([_predicted_ms(last, used, widths)] if used else []),
        )
        for name, widths in (("base", base), ("chosen", last.widths))
    ]
    print_table("cost", head, costs, stream=stream)


def _predicted_ms(last: Manifest, used: Profile, widths: dict[str, int]) -> str | None:
    """None where the profile says nothing of widths so large, or of a network that was not searched with it."""
    try:
        return milliseconds(build_latency(last.network, used)(widths))
    except DmsflowError:
        return None


def _print_stage(path: Path, each: Manifest, used: Profile | None, stream: TextIO) -> None:
    """`used` predicted what the stage writes; a bench names its own."""
    ran = each.environment
    modelled = (used.method if used else ran.get("profile", {}).get("method")) == "modelled"
    flat = [
        (_marked(name, modelled), number(value))
        for name, value in each.metrics.items()
        if not isinstance(value, (dict, list))
    ]
    machine = measured_machine(ran)
    told = {"governor": machine.get("governor"), "temperature °C": machine.get("temperature_c")}
    flat += [("on", f"{machine.get('processor')}, {machine.get('system')}")]
    flat += [(name, number(value)) for name, value in told.items() if value is not None]
    flat += [
        (name, number(ran[name])) for name in ("torch_device", "device", "threads", "mixed", "runtimes") if name in ran
    ]
    if used or "profile" in ran:
        flat += [("profile", used.title if used else _titled(ran["profile"]))]
    flat += [("date", ran.get("date")), ("command", shlex.join(each.command))]
    flat += [
        (f"file: {role}", f"{path.parent / file.path} ({file.size_bytes:,} bytes)")
        for role, file in each.artifacts.items()
    ]
    print_table(f"{each.stage}: {path}", (), flat, stream=stream)
    for name, value in each.metrics.items():
        if rows := _records(value):
            keys = list(dict.fromkeys(key for row in rows for key in row))
            head = [_marked(key, modelled) for key in keys]
            print_table(name, head, [[number(row.get(key)) for key in keys] for row in rows], stream=stream)
        elif isinstance(value, (dict, list)) and value:
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            print_table(name, (), [(key, number(inner)) for key, inner in pairs], stream=stream)


def _marked(name: str, modelled: bool) -> str:
    """The name of a number, with the word that must stand beside what nobody measured."""
    return f"{name} (modelled)" if modelled and name.startswith("predict") else name


def _titled(used: dict[str, Any]) -> str:
    return f"{used['name']} (modelled)" if used["method"] == "modelled" else str(used["name"])


def _records(value: Any) -> list[dict[str, Any]]:
    """The rows of a list of records, or of records by name; none for anything else."""
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return value
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        return [{"": name, **row} for name, row in value.items()]
    return []


def number(value: Any) -> Any:
    """Four significant digits of a fraction, a comma at each thousand of a whole number, widths as a row."""
    if isinstance(value, dict) and all(isinstance(inner, int) for inner in value.values()):
        return " ".join(map(str, value.values()))  # widths, in the order of the table above
    if isinstance(value, dict):
        return ", ".join(f"{name} {number(inner)}" for name, inner in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else value


def listing(kind: str) -> list[tuple[str, str]]:
    """Names and descriptions of one kind of plug-in, preset or file.

    Args:
        kind: "networks", "datasets", "targets", "profiles", "devices" or "presets".
    """
    if kind == "targets":
        return [(name, load_target(name).description) for name in list_targets()]
    if kind == "presets":
        return [(path.stem, _comment(path)) for path in sorted(settings.PRESETS.glob("*.toml"))]
    if kind == "profiles":
        return [(name, _profile_line(name)) for name in profile.profile_names()]
    return [(name, _docstring(kind, name)) for name in list_plugins(kind)]


def _profile_line(name: str) -> str:
    """One damaged file does not hide the others."""
    try:
        found = profile.load_profile(name)
    except DmsflowError as error:
        return str(error)
    words = [measured_machine(found.environment).get("processor"), found.runtime, spelled_threads(found.threads)]
    words += ["float32 networks"] if found.precision == "float" else []
    words += [f"median error {statistics.median(_errors(found)):.1f} %" if found.checked else "error not checked"]
    return ", ".join([*(["modelled"] if found.method == "modelled" else []), *filter(None, words)])


def _docstring(folder: str, name: str) -> str:
    """The first line of a plug-in's docstring; the file is read, not imported."""
    text = plugin.path_of(folder, name).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def _comment(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def print_result(path: Path, stream: TextIO) -> None:
    """The end of `dmsflow run`: what was chosen and what was measured, from the manifest of the bench."""
    by_stage = {each.stage: each for _, each in manifest.chain(path)}
    bench, train, export = by_stage["bench"], by_stage["train"], by_stage["export"]
    rows = [
        *_result_costs(bench, export),
        ("top-1, trained network", f"{train.metrics['top1_percent']:.2f} %"),
        *_result_measured(bench),
    ]
    ran = bench.environment
    runtimes = ", ".join(dict.fromkeys(ran["runtimes"].values()))
    where = f"{measured_machine(ran)['processor']}, {spelled_threads(ran['threads'])}"
    rows.append(("measured", f"{where}, {runtimes}, {bench.settings['runs']} runs, {ran['date']}"))
    print_table(f"{bench.network.name} on {bench.data.name}", (), rows, stream=stream)


def _result_costs(bench: Manifest, export: Manifest) -> list[tuple[str, str]]:
    base, widths, network = bench.network.widths, bench.widths, bench.network
    binary, floats = export.metrics["binary_memory_bytes"], export.metrics["float_memory_bytes"]
    return [
        ("widths", ", ".join(map(str, widths.values()))),
        ("base widths", ", ".join(map(str, base.values()))),
        (
            "memory",
            f"{cost.memory_bytes(network, widths) / cost.MIB:.4f} MiB (base widths: {cost.memory_bytes(network, base) / cost.MIB:.4f})",
        ),
        (
            "file",
            f"{bench.metrics['file_bytes']:,} bytes, of them {binary:,.0f} binary and {floats:,.0f} float weights",
        ),
        (
            "multiply-accumulates",
            f"{cost.macs(network, widths) / 1e6:.2f} million (base widths: {cost.macs(network, base) / 1e6:.2f})",
        ),
    ]


def _result_measured(bench: Manifest) -> list[tuple[str, str]]:
    """What the user asked the bench to measure."""
    found, rows = bench.metrics, []
    if "top1_percent" in found:
        rows.append(("top-1, exported file", f"{found['top1_percent']:.2f} %"))
    rows.append(("latency, 1-bit file", f"{found['latency_ms_median']:.3f} ms (median)"))
    if "predicted_latency_ms" in found:
        title = _titled(bench.environment["profile"])
        told = f"{found['predicted_latency_ms']:.3f} ms by profile {title}, {found['prediction_error_percent']:+.1f} %"
        rows.append(("latency, predicted", told))
    if "float32_latency_ms_median" in found:
        ratio = found["latency_ratio_to_float32"]
        rows.append(
            (
                "latency, float32 of these widths",
                f"{found['float32_latency_ms_median']:.3f} ms in onnxruntime; the file takes {ratio:.2f} of it",
            )
        )
    return rows


# --- a profile ----------------------------------------------------------------------------------


def print_profile(found: Profile, stream: TextIO) -> None:
    """Print where a profile comes from, every block as a table of widths, and its error on other networks."""
    word = " (modelled)" if found.method == "modelled" else ""
    print_table(f"profile {found.title}", (), [*_origin(found), *_quality(found)], stream=stream)
    for table in found.tables:
        _print_table(table, found.steps.get(table.block.partition(" ")[0], Granularity()), word, stream)
    if found.checked:
        rows = [
            (
                row.network,
                row.resolution,
                " ".join(map(str, row.widths)),
                milliseconds(row.predicted_ms),
                milliseconds(row.measured_ms),
                f"{row.error_percent:+.1f}",
            )
            for row in found.checked
        ]
        head = ("network", "pixels", "widths", "predicted ms", "measured ms", "error %")
        print_table(f"networks that gave no point of the profile{word}", head, rows, stream=stream)


def _origin(found: Profile) -> list[tuple[str, object]]:
    machine = measured_machine(found.environment)
    steps = [f"{op} {each.inputs} in, {each.outputs} out" for op, each in found.steps.items()]
    degrees = {"before": machine.get("temperature_before_c"), "after": machine.get("temperature_c")}
    return [
        ("method", found.method),
        ("target", found.target),
        ("networks", "1-bit" if found.precision == "binary" else "float32"),
        ("device", found.device),
        ("processor", machine.get("processor")),
        ("system", machine.get("system")),
        ("governor", machine.get("governor")),
        ("temperature", ", ".join(f"{value:.0f} °C {when}" for when, value in degrees.items() if value) or None),
        ("runtime", f"{found.runtime}, {spelled_threads(found.threads)}"),
        ("date", found.environment.get("date")),
        ("overhead of a run", f"{milliseconds(found.overhead_ms)} ms"),
        ("steps of widths", "; ".join(steps) or "none"),
    ]


def _quality(found: Profile) -> list[tuple[str, object]]:
    spreads = [spread for table in found.tables for row in table.spread_percent for spread in row]
    rows: list[tuple[str, object]] = [
        ("points", f"{len(spreads)}, of {len(found.tables)} fused blocks"),
        ("spread of a point", f"median {statistics.median(spreads):.1f} %, largest {max(spreads):.1f} %"),
        ("drift", f"{found.drift_percent:+.1f} % from start to end"),
    ]
    if errors := _errors(found):
        within = sum(error <= WITHIN_PERCENT for error in errors)
        told = f"median {statistics.median(errors):.1f} %, largest {max(errors):.1f} %"
        rows.append(("error on other networks", f"{told}; {within} of {len(errors)} within ±{WITHIN_PERCENT:g} %"))
    else:
        rows.append(("error on other networks", "not checked"))
    return [*rows, *(("command", shlex.join(command)) for command in found.commands)]


def _errors(found: Profile) -> list[float]:
    return [abs(row.error_percent) for row in found.checked]


def _print_table(table: Table, steps: Granularity, word: str, stream: TextIO) -> None:
    """Widths in go down and widths out across; a block with one of them has one row."""
    largest = max(max(row) for row in table.ms)
    least = min((ms for row in table.ms for ms in row if ms), default=largest)
    cells = [[f"{_shade(ms, least, largest)} {milliseconds(ms)}" for ms in row] for row in table.ms]
    if table.outputs:
        head = ["in \\ out", *map(str, table.outputs)]
        rows = [[label, *row] for label, row in zip(table.inputs or ("image",), cells, strict=True)]
    else:
        head = ["in" if table.inputs else "", *(map(str, table.inputs or ("any width",)))]
        rows = [["ms", *(cell for row in cells for cell in row)]]
    print_table(f"{table.block}, ms{word}", head, rows, stream=stream)
    if drawn := list(_staircases(Grid.of(table, steps), table, largest)):
        print(*drawn, sep="\n", end="\n\n", file=stream)


def _shade(ms: float, least: float, largest: float) -> str:
    """Each block is the same factor longer than the one before: a table's times span several powers of ten."""
    if ms <= least:
        return block(ms == largest > 0)
    return block(math.log(ms / least) / math.log(largest / least))


def _staircases(grid: Grid, table: Table, largest: float) -> Iterator[str]:
    """The time along each direction, with the other at its widest: a line whose height is the time."""
    reads, writes = max(table.inputs, default=1), max(table.outputs, default=1)
    along_out = [grid(reads, width) for width in _samples(table.outputs)]
    along_in = [grid(width, writes) for width in _samples(table.inputs)]
    for label, widths, times in (("in", table.inputs, along_in), ("out", table.outputs, along_out)):
        if len(widths) > 1 and largest:
            drawn = "".join(block(ms / largest) for ms in times)
            yield f"  {label:>3} {widths[0]:>4} {drawn} {widths[-1]}"


def _samples(widths: Sequence[int]) -> list[int]:
    """All widths between the narrowest and the widest, or as many as a line can show."""
    if len(widths) < 2:
        return []
    low, high = widths[0], widths[-1]
    count = min(SAMPLES, high - low + 1)
    return [low + (high - low) * index // (count - 1) for index in range(count)]

"""Files as tables: a chain of manifests, a profile, a model file; and a network; lists of what options can name."""

from __future__ import annotations

import ast
import json
import math
import os
import shlex
import shutil
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec

from dmsflow import manifest, plugin, preset
from dmsflow.deploying.target import list_targets, load_target
from dmsflow.environment import measured_machine
from dmsflow.errors import DmsflowError
from dmsflow.files import read_record
from dmsflow.importing import load_network
from dmsflow.manifest import Chain, Manifest
from dmsflow.modelfile import reader
from dmsflow.network import cost, profile
from dmsflow.network.network import out_widths, resolutions, with_stem
from dmsflow.network.network import value as channels_of
from dmsflow.network.profile import Profile, Table
from dmsflow.plugin import list_plugins
from dmsflow.reporting import models, shipped
from dmsflow.reporting.collect import find_lasts, read_running
from dmsflow.reporting.result import describe_progress
from dmsflow.reporting.runs import costs_of, with_present_methods
from dmsflow.settings import SearchSettings, with_present_names
from dmsflow.terminal import block, format_threads, list_names, milliseconds, print_table

LINE, GAP = 120, 3  # characters of a line that is not a terminal's, and between two columns
WITHIN_PERCENT = 10.0  # an error below it is called small, as in the papers on latency prediction


def show_file(path: Path, as_json: bool, stream: TextIO) -> None:
    """Print a manifest with those it was made from, a profile, or what is in a .tflite or .onnx file.

    What a JSON file is, its content says: a manifest has the stage that wrote it, a profile has tables. Of the folder
    of a run it is the last manifest, or where a search stands that is not finished.

    Raises:
        DmsflowError: it is none of them, or it is damaged.
    """
    if path.is_dir():
        lasts = find_lasts(path)  # in folders of its own it may have other widths, and times of other devices
        own = [each for each in lasts if each.parent == path] or lasts
        if len(own) > 1:
            what = f"has several runs: {list_names([each.parent.name for each in own])}"
            raise DmsflowError(path, what, "give the folder of one run")
        path = own[0]
    if path.suffix == ".jsonl":
        run = read_running(path)
        record = {"path": str(path), "settings": run.settings("search"), "rounds": run.rounds}
        title = f"{path}: a search that is not finished"
        rows = describe_progress(run).items()
        print(json.dumps(record, indent=1), file=stream) if as_json else print_table(title, (), rows, stream=stream)
        return
    if reader.is_model_file(path):
        model = reader.read_model_file(path)
        print(models.format_json(model), file=stream) if as_json else models.print_model(model, stream)
        return
    right = "give a manifest that a stage wrote, a profile, or a .tflite or .onnx file"
    content = read_record(path, object, name="a manifest or a profile", right=right, again=right)
    if not isinstance(content, dict) or not {"stage", "tables"} & set(content):
        raise DmsflowError(path, "is not a manifest or a profile", right)
    if "stage" in content:
        chain = manifest.chain(path, bare=True)
        records = [{"path": str(each), **msgspec.to_builtins(record)} for each, record in chain]
        print(json.dumps(records, indent=1), file=stream) if as_json else print_chain(chain, stream)
    else:
        shown = profile.load_profile(str(path))
        print(json.dumps(content, indent=1), file=stream) if as_json else print_profile(shown, stream)


def show_network(name: str, images: tuple[int, int, int], as_json: bool, stream: TextIO) -> None:
    """Print the layers and widths of a network for images of these channels, pixels a side and classes.

    Its stem is that of a search by default.
    """
    network = with_stem(load_network(name, *images), SearchSettings().stem)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(network), indent=1).decode(), file=stream)
        return
    keys, sizes = out_widths(network), resolutions(network)
    size_of = {each.layer: each for each in cost.layer_bytes(network, network.widths)}
    rows = []
    for layer in network.layers:
        shape = "×".join(map(str, (channels_of(network.widths, keys[layer.name]), *[sizes[layer.name]] * 2)))
        bytes_ = size_of.get(layer.name)
        weights = f"{bytes_.binary_bytes + bytes_.float_bytes:,.0f}" if bytes_ else ""
        rows.append((layer.name, layer.op, " + ".join(layer.inputs), layer.width or "", shape, weights))
    title = f"{network.name} on {images[0]}×{images[1]}×{images[1]} pixels, {images[2]} classes"
    print_table(title, ("layer", "op", "reads", "width", "puts out", "bytes"), rows, stream=stream)
    shared = {key: [layer.name for layer in network.layers if layer.width == key] for key in network.widths}
    named = [(key, str(base), ", ".join(shared[key])) for key, base in network.widths.items()]
    print_table("widths that a search chooses", ("width", "base", "of layers"), named, stream=stream)
    memory, macs = costs_of(network, network.widths)
    facts = [("memory", f"{memory:.4f} MiB"), ("multiply-accumulates", f"{macs:.2f} million")]
    print_table("cost of the base widths", (), facts, stream=stream)


# --- a chain ------------------------------------------------------------------------------------


def print_chain(chain: Chain, stream: TextIO) -> None:
    """Print the widths and their costs once, then what each stage found, where and when."""
    last, copy = chain[-1][1], manifest.inherited(chain, "profile")
    used = profile.load_profile(str(copy)) if copy else None
    if not last.network:  # of a file without a manifest
        _print_stage(*chain[-1], used, stream)
        return
    is_binary = all(each.settings["precision"] == "binary" for _, each in chain if each.stage == "train")
    base = last.network.widths
    rows = [(name, base[name], width, f"{width / base[name]:.2f}") for name, width in last.widths.items()]
    title = f"{last.network.name} on {last.data.name}, {last.network.resolution}×{last.network.resolution} pixels"
    print_table(title, ("width", "base", "chosen", "ratio"), rows, stream=stream)
    costs = []
    for name, widths in (("base", base), ("chosen", last.widths)):
        memory, macs = costs_of(last.network, widths, binary=is_binary)
        costs.append((name, f"{memory:.4f}", f"{macs:.2f}"))
    print_table("cost", ("widths", "memory MiB", "million MACs"), costs, stream=stream)
    for path, each in chain:
        _print_stage(path, each, used if each.stage == "search" else None, stream)


def _print_stage(path: Path, each: Manifest, used: Profile | None, stream: TextIO) -> None:
    """What is a number or a word in one table, every list or record in one of its own.

    `used` is the profile that predicted what the stage writes; a bench names its own.
    """
    ran = with_present_names(each.environment)
    named = {"name": used.name, "method": used.method} if used else ran.get("profile")
    word = " (modelled)" if named and named["method"] == "modelled" else ""
    metrics = with_present_methods(each.metrics)
    tables = {name: value for name, value in metrics.items() if isinstance(value, (dict, list))}
    rows = [
        (name + word if name.startswith("predict") else name, format_value(value))
        for name, value in metrics.items()
        if name not in tables
    ]
    machine = measured_machine(ran)
    facts = {"governor": machine.get("governor"), "temperature °C": machine.get("temperature_c")}
    facts |= {name: ran.get(name) for name in ("torch_device", "device", "threads", "amp", "runtimes")}
    rows.append(("on", f"{machine.get('processor')}, {machine.get('system')}"))
    rows += [(name, format_value(value)) for name, value in facts.items() if value is not None]
    rows += [("profile", named["name"] + word)] if named else []
    rows += [("date", ran.get("date")), ("command", shlex.join(each.command))]
    for role, file in each.artifacts.items():
        rows.append((f"file: {role}", f"{os.path.normpath(path.parent / file.path)} ({file.size_bytes:,} bytes)"))
    print_table(f"{each.stage}: {os.path.normpath(path)}", (), rows, stream=stream)
    for name, value in tables.items():
        _print_nested(name, value, word, stream)


def _print_nested(name: str, value: dict[str, Any] | list[Any], word: str, stream: TextIO) -> None:
    """A list or record as a table of its own: of records a row each, of other values beside their names or numbers.

    `word` stands beside the name of what was predicted, unless it is empty.
    """
    pairs = [*(value.items() if isinstance(value, dict) else enumerate(value))]
    if pairs and all(isinstance(row, dict) for _, row in pairs):
        records = [{"": key, **row} if isinstance(value, dict) else row for key, row in pairs]
        keys = list(dict.fromkeys(key for row in records for key in row))
        cells = [[format_value(row.get(key)) for key in keys] for row in records]
        head = [key.replace("_", " ") + word if key.startswith("predict") else key.replace("_", " ") for key in keys]
        _print_columns(name, head, cells, stream)
    elif pairs:
        print_table(name, (), [(key, format_value(inner)) for key, inner in pairs], stream=stream)


def _print_columns(title: str, head: Sequence[str], rows: Sequence[Sequence[object]], stream: TextIO) -> None:
    """A table that breaks its cells at spaces alone.

    Where a line has no room for the longest words of all columns there are several tables, each with the first column.
    """
    room = shutil.get_terminal_size().columns if stream.isatty() else LINE
    cells = [["–" if cell is None else str(cell) for cell in column] for column in zip(head, *rows, strict=True)]
    least = [GAP + max(len(word) for cell in column for word in cell.split() or [""]) for column in cells]
    parts = [[0]]
    for column in range(1, len(head)):
        if len(parts[-1]) > 1 and sum(least[at] for at in parts[-1]) + least[column] > room:
            parts.append([0])
        parts[-1].append(column)
    for part in parts:
        spare, wrapped = room - sum(least[at] for at in part), []
        for at in part:  # what a line has left is for those that come first
            width = min(GAP + max(map(len, cells[at])), least[at] + max(0, spare))
            spare -= width - least[at]
            wrapped.append([textwrap.fill(cell, width - GAP, break_on_hyphens=False) for cell in cells[at]])
        top, *below = zip(*wrapped, strict=True)
        print_table(title if part is parts[0] else f"{title}, continued", top, below, stream=stream)


def format_value(value: Any) -> Any:
    """Four significant digits of a fraction, a comma at each thousand of a whole number, widths as a row."""
    if isinstance(value, dict) and all(isinstance(inner, int) for inner in value.values()):
        return " ".join(map(str, value.values()))  # widths, in the order of the table above
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_value(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else value


def print_result(path: Path, stream: TextIO) -> None:
    """The end of `dmsflow run`: what was chosen and what was measured, from the manifest of the bench."""
    by_stage = {each.stage: each for _, each in manifest.chain(path)}
    bench, train, export = by_stage["bench"], by_stage["train"].metrics, by_stage["export"].metrics
    network, measured, ran = bench.network, bench.metrics, bench.environment
    (memory, macs), (base_memory, base_macs) = costs_of(network, bench.widths), costs_of(network, network.widths)
    weights = f"{export['binary_memory_bytes']:,.0f} binary and {export['float_memory_bytes']:,.0f} other weights"
    rows = [
        ("widths", ", ".join(map(str, bench.widths.values()))),
        ("base widths", ", ".join(map(str, network.widths.values()))),
        ("memory", f"{memory:.4f} MiB (base widths: {base_memory:.4f})"),
        ("file", f"{measured['file_bytes']:,} bytes, of them {weights}"),
        ("multiply-accumulates", f"{macs:.2f} million (base widths: {base_macs:.2f})"),
        ("top-1, trained network", f"{train['top1_percent']:.2f} %"),
    ]
    if "top1_percent" in measured:
        rows.append(("top-1, exported file", f"{measured['top1_percent']:.2f} %"))
    rows.append(("latency, 1-bit file", f"{measured['latency_ms_median']:.3f} ms (median)"))
    if "predicted_latency_ms" in measured:
        used, error = ran["profile"], f"{measured['prediction_error_percent']:+.1f} %"
        title = used["name"] + " (modelled)" * (used["method"] == "modelled")
        rows.append(("latency, predicted", f"{measured['predicted_latency_ms']:.3f} ms by profile {title}, {error}"))
    for label in ("float32", "int8"):
        if (ms := measured.get(f"{label}_latency_ms_median")) is not None:
            ratio = f"the file takes {measured[f'latency_ratio_to_{label}']:.2f} of it"
            rows.append((f"latency, {label} of these widths", f"{ms:.3f} ms in onnxruntime; {ratio}"))
    runtimes = dict.fromkeys(ran["runtimes"].values())
    where = [measured_machine(ran)["processor"], format_threads(ran["threads"]), *runtimes]
    rows.append(("measured", ", ".join([*where, f"{bench.settings['runs']} runs", ran["date"]])))
    print_table(f"{network.name} on {bench.data.name}", (), rows, stream=stream)


# --- what options can name ----------------------------------------------------------------------


def print_listing(kind: str, stream: TextIO) -> None:
    """Print names and descriptions, one a line; of models a table."""
    if kind == "models":
        shipped.print_models(stream)
        return
    rows = listing(kind)
    width = max((len(name) for name, _ in rows), default=0)
    for name, description in rows:
        print(f"{name:<{width}}  {description}".rstrip(), file=stream)


def listing(kind: str) -> list[tuple[str, str]]:
    """Names and descriptions of one kind of plug-in, preset or file.

    Args:
        kind: "networks", "datasets", "targets", "profiles", "devices" or "presets".
    """
    if kind == "targets":
        return [(name, load_target(name).description) for name in list_targets()]
    if kind == "presets":  # described by a comment on their first line
        paths = sorted(preset.PRESETS.glob("*.toml"))
        return [(path.stem, path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")) for path in paths]
    if kind == "profiles":
        return [(name, _describe_profile(name)) for name in profile.profile_names()]
    rows = []
    for name in list_plugins(kind):  # described by their docstring's first line; the file is read, not imported
        text = plugin.path_of(kind, name).read_text(encoding="utf-8")
        rows.append((name, (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]))
    return rows


def _describe_profile(name: str) -> str:
    """In a line; one damaged file does not hide the others."""
    try:
        listed = profile.load_profile(name)
    except DmsflowError as error:
        return str(error)
    errors = [abs(row.error_percent) for row in listed.checked]
    words = [
        "modelled" if listed.method == "modelled" else "",
        measured_machine(listed.environment).get("processor"),
        listed.runtime,
        format_threads(listed.threads),
        "float32 networks" if listed.precision == "float" else "",
        f"median error {statistics.median(errors):.1f} %" if errors else "error not checked",
    ]
    return ", ".join(filter(None, words))


# --- a profile ----------------------------------------------------------------------------------


def print_profile(shown: Profile, stream: TextIO) -> None:
    """Print where a profile comes from, every block as a table of widths, and its error on other networks."""
    word, record = " (modelled)" if shown.method == "modelled" else "", msgspec.to_builtins(shown)
    spreads = [spread for table in shown.tables for row in table.spread_percent for spread in row]
    quality, errors = "not checked", [abs(row.error_percent) for row in shown.checked]
    if errors:
        within = sum(error <= WITHIN_PERCENT for error in errors)
        quality = f"{_median_and_largest(errors)}; {within} of {len(errors)} within ±{WITHIN_PERCENT:g} %"
    facts = {**record, **measured_machine(shown.environment), "date": shown.environment.get("date")}
    del facts["schema"], facts["name"]
    rows = [(name, format_value(value)) for name, value in facts.items() if not isinstance(value, (dict, tuple))]
    rows.append(("points", f"{len(spreads)}, of {len(shown.tables)} fused blocks"))
    rows += [("spread of a point", _median_and_largest(spreads)), ("error on other networks", quality)]
    rows += [("command", shlex.join(command)) for command in shown.commands]
    print_table(f"profile {shown.title}", (), rows, stream=stream)
    _print_nested("steps of widths", record["steps"], "", stream)
    for table in shown.tables:
        _print_times(table, word, stream)
    checked = [{**msgspec.to_builtins(row), "error_percent": row.error_percent} for row in shown.checked]
    _print_nested(f"held-out networks{word}", checked, "", stream)


def _median_and_largest(percents: list[float]) -> str:
    return f"median {statistics.median(percents):.1f} %, largest {max(percents):.1f} %"


def _print_times(table: Table, word: str, stream: TextIO) -> None:
    """Widths in go down and widths out across; a block with one of them has one row."""
    times = [ms for row in table.ms for ms in row]
    largest, least = max(times), min((ms for ms in times if ms), default=0.0)

    def cell(ms: float) -> str:
        """The time, with a shade: each is the same factor longer than the one before, as times span powers of ten."""
        part = math.log(ms / least) / math.log(largest / least) if ms > least else float(ms == largest > 0)
        return f"{block(part)} {milliseconds(ms)}"

    if table.outputs:
        head = ["in \\ out", *map(str, table.outputs)]
        rows = [[str(label), *map(cell, row)] for label, row in zip(table.inputs or ("image",), table.ms, strict=True)]
    else:
        head = ["in" if table.inputs else "", *map(str, table.inputs or ("any width",))]
        rows = [["ms", *map(cell, times)]]
    print_table(f"{table.block}, ms{word}", head, rows, stream=stream)

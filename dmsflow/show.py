"""A chain of manifests as tables, and lists of what options can name."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path
from typing import Any, TextIO

import msgspec

from dmsflow import cost, manifest, plugin, settings, target
from dmsflow.manifest import Manifest
from dmsflow.table import print_table

Chain = list[tuple[Path, Manifest]]  # the search first


def chain(path: Path) -> Chain:
    """A manifest and those it was made from, each verified.

    Raises:
        DmsflowError: one of them is missing, changed, or not a manifest.
    """
    found: Chain = [(path, manifest.load(path))]
    while parent := found[0][1].parent:
        above = manifest.verify(found[0][0], parent)
        found.insert(0, (above, manifest.load(above)))
    return found


def as_json(manifests: Chain) -> str:
    """A JSON array of the manifests, each with the path it was read from."""
    return json.dumps([{"path": str(path), **msgspec.to_builtins(each)} for path, each in manifests], indent=1)


def print_chain(manifests: Chain, stream: TextIO) -> None:
    """Print the widths once, then what each stage measured, where and when."""
    _print_widths(manifests[-1][1], stream)
    for path, each in manifests:
        _print_stage(path, each, stream)


def _print_widths(last: Manifest, stream: TextIO) -> None:
    base = last.network.widths
    rows = [(name, base[name], width, f"{width / base[name]:.2f}") for name, width in last.widths.items()]
    title = f"{last.network.name} on {last.data.name}, {last.network.resolution}×{last.network.resolution} pixels"
    print_table(title, ("width", "base", "chosen", "ratio"), rows, stream=stream)
    costs = [(name, f"{cost.memory_bytes(last.network, widths) / cost.MIB:.4f}", f"{cost.macs(last.network, widths) / 1e6:.2f}")
             for name, widths in (("base", base), ("chosen", last.widths))]  # fmt: skip
    print_table("cost", ("widths", "memory MiB", "million MACs"), costs, stream=stream)


def _print_stage(path: Path, each: Manifest, stream: TextIO) -> None:
    flat = [(name, number(value)) for name, value in each.metrics.items() if not isinstance(value, (dict, list))]
    ran = each.environment
    flat += [("on", f"{ran.get('processor')}, {ran.get('system')}")]
    flat += [
        (name, number(ran[name])) for name in ("torch_device", "device", "threads", "mixed", "runtimes") if name in ran
    ]
    flat += [("date", ran.get("date")), ("command", shlex.join(each.command))]
    flat += [
        (f"file: {role}", f"{path.parent / file.path} ({file.size_bytes:,} bytes)")
        for role, file in each.artifacts.items()
    ]
    print_table(f"{each.stage}: {path}", (), flat, stream=stream)
    for name, value in each.metrics.items():
        if rows := _records(value):
            head = list(dict.fromkeys(key for row in rows for key in row))
            print_table(name, head, [[number(row.get(key)) for key in head] for row in rows], stream=stream)
        elif isinstance(value, (dict, list)) and value:
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            print_table(name, (), [(key, number(inner)) for key, inner in pairs], stream=stream)


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
        return [(name, target.load(name).description) for name in target.names()]
    if kind == "presets":
        return [(path.stem, _comment(path)) for path in sorted(settings.PRESETS.glob("*.toml"))]
    if kind == "profiles":
        return [(path.stem, "") for path in sorted(profiles().glob("*.json"))]
    return [(name, _docstring(kind, name)) for name in plugin.names(kind)]


def profiles() -> Path:
    """Where the profiles that come with dmsflow are: in a wheel inside the package, in a checkout beside it."""
    packed = plugin.PACKAGE / "profiles"
    return packed if packed.is_dir() else plugin.PACKAGE.parent / "profiles"


def _docstring(folder: str, name: str) -> str:
    """The first line of a plug-in's docstring; the file is read, not imported."""
    text = (plugin.PACKAGE / folder / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def _comment(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def print_result(path: Path, stream: TextIO) -> None:
    """The end of `dmsflow run`: what was chosen and what was measured, from the manifest of the bench."""
    by_stage = {each.stage: each for _, each in chain(path)}
    bench, train, export = by_stage["bench"], by_stage["train"], by_stage["export"]
    rows = [
        *_result_costs(bench, export),
        ("top-1, trained network", f"{train.metrics['top1_percent']:.2f} %"),
        *_result_measured(bench),
    ]
    ran = bench.environment
    runtimes = ", ".join(dict.fromkeys(ran["runtimes"].values()))
    threads = "1 thread" if ran["threads"] == 1 else f"{ran['threads']} threads"
    rows.append(
        ("measured", f"{ran['processor']}, {threads}, {runtimes}, {bench.settings['runs']} runs, {ran['date']}")
    )
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
    if "float32_latency_ms_median" in found:
        ratio = found["latency_ratio_to_float32"]
        rows.append(
            (
                "latency, float32 of these widths",
                f"{found['float32_latency_ms_median']:.3f} ms in onnxruntime; the file takes {ratio:.2f} of it",
            )
        )
    return rows

"""The parts of docs/results.md about time: predictions, kernels, runtimes, steps of search and training, start-up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import figures
from figures import NETWORKS, Row

IMAGENET = 64  # pixels from which networks have their ImageNet widths
WORD = 32  # input channels that LCE packs together


def predicted(content: Any) -> str:
    """Of benchmarks/predict.py."""
    rows = content["networks"]
    groups = {
        key: list(group) for key, group in itertools.groupby(rows, key=lambda row: (row["resolution"], row["network"]))
    }
    lines = [_predicted(*key, group) for key, group in groups.items()]
    whole = [
        f"all {content['count']}",
        "",
        "",
        f"**{content['median_error_percent']:.1f}**",
        f"{content['largest_error_percent']:.1f}",
    ]
    worst = max(rows, key=lambda row: abs(row["error_percent"]))
    first = worst["widths"][0]
    reason = (
        "LCE packs bits faster from\nfull words of 32 than from the widths around them, but a prediction never falls as a width grows\n([profiles](profiles.md))"
        if first % WORD == 0
        else "[profiles](profiles.md) has the limits of predictions"
    )
    return f"""## Latency, predicted and measured

A fresh profile of the host, then {content["count"]} held-out networks of random widths ({figures.listed(map(len, groups.values()))} of each kind,
every layer scaled by its own factor), predicted and measured in the same run:

{figures.table(("networks", "pixels", "measured ms", "median error %", "largest error %"), [*lines, whole])}

{content["within_10_percent"]} of {content["count"]} are within ±10 %. The profile, {content["points"]:,} points, took {content["profile_seconds"]} s. The largest error is that of a
{NETWORKS[worst["network"]]} at {worst["resolution"]} pixels whose first layer is {first} channels wide: {reason}.

    python benchmarks/predict.py --target {content["target"]} --runner lce

{figures.machine([content["environment"]])}, {content["runtime"]} with its indirect kernels, {content["threads"]} thread.
Every network: [results/predict-x86-64-binary-lce.json](results/predict-x86-64-binary-lce.json).
`dmsflow list profiles` shows the error of each profile that comes with dmsflow, on such networks.
"""


def _predicted(pixels: int, network: str, group: Sequence[Row]) -> list[str]:
    measured = [row["measured_ms"] for row in group]
    errors = [abs(row["error_percent"]) for row in group]
    name = NETWORKS[network] + (", ImageNet widths" if pixels >= IMAGENET else "")
    return [
        name,
        str(pixels),
        f"{min(measured):.2g} to {max(measured):.3g}",
        f"{figures.median(errors):.1f}",
        f"{max(errors):.1f}",
    ]


def kernels(layers: Any, narrower: Any, networks: Any) -> str:
    """Of benchmarks/kernels.py and runtimes.py."""
    rows = [
        (row["layer"], row["out"], f"{row['lce_ms']:.3f}", f"{row['dmsflow_ms']:.3f}", f"{row['ratio']:.1f}")
        for row in layers["layers"]
    ]
    files = _files(networks)
    equal = all(row["equal"] for row in layers["layers"])
    classes = all(row["classes_equal"] for row in networks["networks"])
    ratios = " and ".join(dict.fromkeys(f"{row['ratio']:g}" for row in networks["networks"]))
    return f"""## LCE's operations on LiteRT, by dmsflow's kernels

One 3×3 layer, ms, one thread; the official interpreter in its best mode on x86-64 (indirect kernels, XNNPACK),
turn by turn in one process. Outputs {"are equal, bit for bit" if equal else "differ"}.

{figures.table(("layer", "out", "LCE ms", "dmsflow ms", "LCE ÷ dmsflow"), rows)}

    python benchmarks/kernels.py --out docs/results/kernels-x86-64.json

Complete networks with random weights at {ratios} times the base widths: ms and, in brackets, the ratio to float32 (the
network of the same widths in onnxruntime). dmsflow and LCE run the same file{_forms(files)}.
Classes {"are equal; logits differ by the rounding of the float layers" if classes else "differ"}.

{_networks(networks)}
{_operations(networks)}
    python benchmarks/runtimes.py --out docs/results/runtimes-x86-64.json

{figures.machine([layers["environment"], networks["environment"]])},
{figures.listed((*layers["environment"]["runtimes"].values(), *networks["environment"]["runtimes"].values()))}; seed 0.
Processors without AVX-512 take the AVX2 kernels (`--kernels avx2`), which are slower{_slower(layers, narrower)}.
"""


# What benchmarks/runtimes.py measures, in the order of the table's columns.
FILES = {
    "float32": "float32",
    "int8": "int8",
    "onnx_float": "ONNX, float form",
    "onnx_mixed": "ONNX, mixed form",
    "lce": "LCE",
    "litert": "dmsflow",
    "litert_int8_stem": "dmsflow, int8 stem",
}
BESIDES = {"batch_image_ms": "dmsflow, 8 images at once, each", "limit_ms": "limit"}


def _files(networks: Any) -> list[str]:
    return [label for label in FILES if label in networks["environment"]["runtimes"]]


def _networks(networks: Any) -> str:
    files = _files(networks)
    known = {key: name for key, name in BESIDES.items() if all(key in row for row in networks["networks"])}
    rows = [
        (
            row["network"],
            str(row["pixels"]),
            f"{row['ratio']:g}×",
            *(_beside(row, label) for label in files),
            *(f"{row[key]:.3f}" for key in known),
        )
        for row in networks["networks"]
    ]
    return figures.table(("network", "pixels", "widths", *(FILES[label] for label in files), *known.values()), rows)


def _operations(networks: Any) -> str:
    """Where the time goes that is left above the limit."""
    rows = []
    for row in networks["networks"]:
        if parts := row.get("operations_ms"):
            whole = sum(parts.values())
            shares = [f"{kind} {100 * ms / whole:.0f} %" for kind, ms in parts.items() if ms >= whole / 50]
            name = f"{row['network']}, {row['pixels']} pixels, {row['ratio']:g}×"
            rows.append((name, f"{row['litert_int8_stem_ms'] / row['limit_ms']:.1f}", ", ".join(shares)))
    if not rows:
        return ""
    head = ("network", "time ÷ limit", "operations of the file with an int8 stem")
    return f"""
The limit is what counting the bits of the binary layers and multiplying the bytes of the stem take at best, by loops
with all operands in registers (`benchmarks/rates.c`), in the same turns.

{figures.table(head, rows)}
"""


def _beside(row: Row, label: str) -> str:
    ms = row[f"{label}_ms"]
    return f"{ms:.3f}" if label == "float32" else f"{ms:.3f} ({ms / row['float32_ms']:.2f})"


def _forms(files: Sequence[str]) -> str:
    return "; ONNX files run in stock onnxruntime" if "onnx_mixed" in files else ""


def _slower(layers: Any, narrower: Any) -> str:
    """By what the interpreter, measured beside both, says: the machine need not be equally busy."""
    if narrower is None:
        return ""
    factors = [
        wide["ratio"] / narrow["ratio"] for wide, narrow in zip(layers["layers"], narrower["layers"], strict=True)
    ]
    return f": {figures.median(factors):.1f} times on the layers here"


def arm(content: Any) -> str:
    """Of benchmarks/kernels.py on an emulated core."""
    bits = {row["layer"]: row for row in content["layers"] if row["out"] == "bits"}
    rows = [
        (
            row["layer"],
            f"{row['million_cycles']:.3f}",
            f"{row['lce_million_cycles']:.2f}",
            f"{bits[row['layer']]['million_cycles']:.3f}",
            f"{bits[row['layer']]['lce_million_cycles']:.2f}",
            f"{bits[row['layer']]['million_cycles'] / content['bound_million_cycles']:.2f}",
        )
        for row in content["layers"]
        if row["out"] == "floats"
    ]
    environment = content["environment"]
    return f"""## The kernels on 64-bit ARM: {content["method"]}

Million cycles of one 3×3 layer, for the aarch64 library in stock LiteRT for aarch64. An emulator counts each
instruction, and a model of the processor gives the cycles: {environment["machine"]["processor"]}.
The model has no caches and no mispredicted branches. LCE's figures are for its best kernels (the better
of default and indirect) in the same model. Counting alone (three instructions for 128 bits on two pipes)
takes {content["bound_million_cycles"]:.3f} in every row.

{figures.table(("layer", "floats out", "LCE", "bits out", "LCE", "bits ÷ counting alone"), rows)}

    {content["command"]}

{environment["date"][:10]}, {environment["machine"]["system"]}, {figures.listed(environment["runtimes"].values())}, dmsflow at {environment["commit"]}; no ARM processor ran anything.
[results/kernels-aarch64.json](results/kernels-aarch64.json).
"""


def first_layer(content: Any) -> str:
    """Of benchmarks/first_layer.py."""
    command = "python benchmarks/first_layer.py --out docs/results/first-layer.json"
    return figures.part("## The first layer", command, content and _first_layer(content))


def _first_layer(content: Any) -> tuple[str, str]:
    rows = [
        (
            f"here, {each['unit']}" if each["device"] == "local" else f"{each['device']}, {each['unit']}",
            row["layer"],
            *(f"{row[label]:.3f}" for label in ("float32", "apart", "together")),
            *(
                (f"{row['bound']:.3f}", f"{row['together'] / row['bound']:.2f}")
                if row["bound"]
                else (figures.NONE,) * 2
            ),
        )
        for each in content["devices"]
        for row in each["layers"]
    ]
    head = ("processor", "layer", "float32", "int8, XNNPACK", "int8, dmsflow", "bound", "dmsflow ÷ bound")
    before = f"""\
A first convolution with its thresholds, from pixels to bits, one thread, in stock LiteRT: as float32, as int8 by
XNNPACK with LceQuantize behind it, and as int8 by dmsflow's kernels, which make one operation of both. The bound is what
its products of bytes take at best. The cycles of the cores are modelled, without caches.

{figures.table(head, rows)}"""
    return before, f"{figures.machine([content['environment']])}, {content['environment']['runtimes']['litert']}."


def search_cost(content: Any) -> str:
    """Of benchmarks/search_cost.py."""
    command = "python benchmarks/search_cost.py --out docs/results/search-cost.json"
    return figures.part("## What the search costs", command, content and _search_cost(content))


def _search_cost(content: Any) -> tuple[str, str]:
    head = ("largest widths", "widths in the window of the last layer", "search step ms", "plain step ms", "ratio")
    rows = [
        (
            " ".join(map(str, row["largest_widths"])),
            str(row["window"]),
            f"{row['search_ms']:.1f}",
            f"{row['plain_ms']:.1f}",
            f"{row['ratio']:.3f}",
        )
        for row in content["rows"]
    ]
    before = f"""\
The ratio of one weight step of the search with masks to one training step of the plain network at the same
largest widths, on the same batch, in turns. The number of widths that the masks mix does not matter.

{figures.table(head, rows)}"""
    how = f"{content['threads']} thread, float32, processor time, medians of {content['steps']} steps"
    return before, f"{how}; {figures.machine([content['environment']], 'torch')}."


STEP_KINDS = {
    "float32_first_ms": "float32, channels first",
    "float32_last_ms": "float32, channels last",
    "mixed_ms": "bfloat16 mixed, channels last",
    "convolutions_ms": "its convolutions alone",
}
PARTS = {
    "binarise": "binarising",
    "quantize": "quantising",
    "batch_norm": "batch norm",
    "max_pool": "max pooling",
    "optimiser": "SGD",
}


def train_step(content: Any) -> str:
    """Of benchmarks/train_step.py."""
    command = "python benchmarks/train_step.py --out docs/results/train-step.json"
    return figures.part("## What makes a training step fast on a CPU", command, content and _train_step(content))


def _train_step(content: Any) -> tuple[str, str]:
    rows = [
        (
            str(row["batch"]),
            str(row["threads"]),
            *(f"{row[key]:.1f} ms" for key in STEP_KINDS),
            f"{row['mixed_ms'] / row['convolutions_ms']:.2f}",
            *(f"{row[key]:.0f} µs" for key in ("epoch_image_us", "convolutions_image_us")),
            f"{row['epoch_ratio']:.2f}",
        )
        for row in content["rows"]
    ]
    head = (
        "batch",
        "threads",
        *STEP_KINDS.values(),
        "mixed ÷ convolutions",
        "an epoch, by image",
        "its convolutions",
        "epoch ÷ convolutions",
    )
    parts = [
        (str(row["batch"]), str(row["threads"]), *(f"{row['parts_ms'][part]:.1f} ms" for part in PARTS))
        for row in content["rows"]
    ]
    before = f"""\
VGG-11 at its base widths, 32×32 pixels: one step, and an epoch of {content["images"]:,} images through
the same batches and steps as `dmsflow train`, each in turns with the convolutions alone:

{figures.table(head, rows)}

The other parts of a mixed-precision step, each measured alone:

{figures.table(("batch", "threads", *PARTS.values()), parts)}"""
    behind = f"""\
{figures.machine([content["environment"]], "torch")}. bfloat16 (`amp`: `auto`) is used where it is faster. The convolutions alone are torch's; a step has a faster weight gradient for small outputs. Binarising, quantising
and max pooling are dmsflow's own (`native/training.cc`) in every column."""
    return before, behind


def elsewhere(networks: Any, steps: Any) -> str:
    """Of benchmarks/runtimes.py and train_step.py, on another processor than the other parts of the page."""
    environments = [networks["environment"], steps["environment"]]
    rows = [
        (
            str(row["batch"]),
            str(row["threads"]),
            f"{row['mixed_ms']:.1f} ms",
            f"{row['epoch_image_us']:.0f} µs",
            f"{row['convolutions_image_us']:.0f} µs",
            f"{row['epoch_ratio']:.2f}",
        )
        for row in steps["rows"]
    ]
    head = (
        "batch",
        "threads",
        STEP_KINDS["mixed_ms"],
        "an epoch, by image",
        "its convolutions",
        "epoch ÷ convolutions",
    )
    return f"""## The same on another processor: {environments[0]["processor"]}

Complete networks, as in the table of files on LiteRT above: ms and, in brackets, the ratio to float32.

{_networks(networks)}

Training VGG-11 at its base widths, as in the part before this one:

{figures.table(head, rows)}

    python benchmarks/runtimes.py --out docs/results/runtimes-x86-64-intel.json
    python benchmarks/train_step.py --out docs/results/train-step-intel.json

{figures.machine(environments, "torch")}, {figures.listed(networks["environment"]["runtimes"].values())}.
"""


def without_avx512(one: Any, two: Any) -> str:
    """Of benchmarks/runtimes.py on a processor whose vectors have 256 bits, with one thread and with two."""
    command = """python benchmarks/runtimes.py --out docs/results/runtimes-x86-64-avx2.json
    python benchmarks/runtimes.py --threads 2 --out docs/results/runtimes-x86-64-avx2-2-threads.json"""
    return figures.part("## Without AVX-512", command, one and two and _without_avx512(one, two))


def _without_avx512(one: Any, two: Any) -> tuple[str, str]:
    before = f"""\
The same complete networks on a processor that has AVX2 alone, as many PCs have: ms and, in brackets, the ratio to
float32. *8 images at once*: the file's input is resized, as LiteRT allows, and the time is that of one image.

{_networks(one)}

With two threads:

{_networks(two)}
{_operations(one)}"""
    behind = f"""\
{figures.machine([one["environment"], two["environment"]])}, {figures.listed(one["environment"]["runtimes"].values())}."""
    return before, behind


def processes(content: Any) -> str:
    """Of benchmarks/processes.py."""
    command = "python benchmarks/processes.py --out docs/results/processes.json"
    return figures.part("## Many processes", command, content and _processes(content))


def _processes(content: Any) -> tuple[str, str]:
    head = ("processes", "threads of each", "images a second")
    rows = [(str(row["processes"]), str(row["threads"]), f"{row['images_per_second']:,.0f}") for row in content["rows"]]
    before = f"""`dmsflow train` on {content["dataset"]}, batches of {content["batch"]}, by torchrun and in one process in turns; medians of {content["turns"]} turns.

{figures.table(head, rows)}"""
    return before, f"{figures.machine([content['environment']], 'python', 'torch')}."


def startup(content: Any) -> str:
    """Of benchmarks/startup.py."""
    command = "python benchmarks/startup.py --out docs/results/startup.json"
    return figures.part("## The command line", command, content and _startup(content))


def _startup(content: Any) -> tuple[str, str]:
    *absent, last = content["absent"]
    took = f"`dmsflow --help` takes {content['seconds']:.2f} s (best of {content['runs']})"
    before = f"{took} in a fresh environment without {', '.join(absent)} and {last}:"
    return before, f"{figures.machine([content['environment']], 'python')}."


def modules(content: Any) -> str:
    """Of benchmarks/modules.py."""
    rows = content["rows"] if content else []
    command = "python benchmarks/modules.py --out runs/modules"
    return figures.part("## Modules of torchvision", command, _modules(content) if rows else None)


def _modules(content: Any) -> tuple[str, str]:
    rows, pixels = content["rows"], content["resolution"]
    through = sum("refused" not in row for row in rows)
    before = (
        f"Of {len(rows)} classifiers of torchvision, {through} go through all stages as they are: a search without training, a "
        f"training of a few steps on noise, an export and a benchmark, for images of {pixels}×{pixels} pixels and "
        f"{content['classes']} classes. The others are refused in one line before anything runs. *÷ float32*: the median time of "
        "the file by that of the float32 network of the same widths."
    )
    cells = [
        (row["module"], *[figures.NONE] * 5, row["refused"].removeprefix("dmsflow: ").partition("; ")[0])
        if "refused" in row
        else (
            row["module"],
            f"{row['memory_mib']:.2f}",
            f"{row['macs_m']:,.0f}",
            f"{row['file_bytes'] / 2**20:.2f}",
            f"{row['latency_ms_median']:.1f}",
            f"{row['latency_ratio_to_float32']:.2f}",
            "",
        )
        for row in rows
    ]
    head = ("module", "MiB", "M MACs", "file MiB", "ms", "÷ float32", "refused")
    made = figures.machine([row["environment"] for row in rows], "python", "torch", "torchvision", "ai-edge-litert")
    return f"{before}\n\n{figures.table(head, cells)}", f"{made}, one thread."


def larq_zoo(content: Any) -> str:
    """Of benchmarks/larq_zoo.py."""
    title, command = "## Networks of larq-zoo in both converters' files", ".witness/bin/python benchmarks/larq_zoo.py"
    return figures.part(title, command, content and _larq_zoo(content))


def _larq_zoo(content: Any) -> tuple[str, str]:
    pixels, runs = content["resolution"], content["runs"]
    before = (
        f"Bi-Real-18 and QuickNet small as dmsflow has them, for {pixels}×{pixels} pixels and {content['classes']:,} classes, "
        "with random weights: written by dmsflow itself, and by LCE's official converter. Both files compute the same. "
        f"Medians of {runs} runs in turns, one thread, milliseconds of the processor. *LCE*: the official interpreter. "
        "*LiteRT*: with dmsflow's kernels."
    )
    cells = [
        (
            row["network"],
            {"dmsflow": "dmsflow", "official": "LCE's converter"}[writer],
            f"{file['file_bytes']:,}",
            f"{sum(file['operators'].values())}",
            ", ".join(f"{count} {op}" for op, count in sorted(file["operators"].items(), key=lambda each: -each[1])),
            *(
                f"{file[f'{runner}_ms']:.2f}" if f"{runner}_ms" in file else figures.NONE
                for runner in ("lce", "litert")
            ),
        )
        for row in content["rows"]
        for writer, file in row["files"].items()
    ]
    head = ("network", "written by", "bytes", "operators", "of kinds", "LCE ms", "LiteRT ms")
    made = figures.machine([content["environment"]], "python")
    return (
        f"{before}\n\n{figures.table(head, cells)}",
        f"{made}, {', '.join(content['environment']['runtimes'].values())}.",
    )


def campaign(content: Any) -> str:
    """Of benchmarks/campaign.py."""
    return figures.part("## Damaged files, kills and limits", "make campaign", content and _campaign(content))


def _campaign(content: Any) -> tuple[str, str]:
    rows = content["rows"]
    tries, faults = (sum(row[name] for row in rows) for name in ("tries", "faults"))
    seeds = sorted({row["seed"] for row in rows})
    before = (
        f"Of {tries:,} tries, {faults:,} ended in a fault: a traceback, another exit code than 0 to 3, an error of several "
        "lines, a hang, memory without bounds, control characters for a terminal, a file that is not whole, a resumed run "
        f"that differs from an uninterrupted one, or a report of a sanitizer. Seed {figures.listed(seeds)}:"
    )
    cells = [
        (
            row["kind"],
            *(f"{row[name]:,}" for name in ("tries", "faults", "seconds")),
            " ".join(", ".join(row["kinds"]).split()),
        )
        for row in rows
    ]
    head = ("kind", "tries", "faults", "seconds", "which")
    environments = [row["environment"] for row in rows]
    return before, f"{figures.machine(environments, 'python')}.\n\n{figures.table(head, cells)}"

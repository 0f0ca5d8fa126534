"""The report: what it groups and draws, what it refuses, and how a real browser shows it."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import browser
import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import build

from dmsflow import cli, manifest, settings
from dmsflow.environment import describe_environment
from dmsflow.errors import DmsflowError
from dmsflow.files import describe_artifact
from dmsflow.manifest import load_manifest, save_manifest
from dmsflow.network import cost, profile
from dmsflow.network.network import Network
from dmsflow.plugin import load_plugin
from dmsflow.reporting import collect, figures, fronts, page, precisions, report, runs, sections
from dmsflow.reporting import rounds as over_rounds
from dmsflow.settings import Data

VGG11: Network = load_plugin("networks", "vgg11").build(1, 32, 10)
SMALL = build(1, 32, 10)
DATA = Data(name="digits", train_images=200)
ROUNDS = 4
SECTIONS = (
    "result",
    "accuracy",
    "fronts",
    "precisions",
    "widths",
    "error",
    "rounds",
    "budgets",
    "size",
    "files",
    "comparison",
    "facts",
)


# --- chains, written by hand --------------------------------------------------------------------


def rounds(seed: int, network: Network = SMALL) -> list[dict[str, Any]]:
    """What a search logs."""
    names = list(network.widths)
    found = []
    for number in range(ROUNDS):
        mu = [1.2 + 0.1 * math.sin(number + index + seed) for index in range(len(names))]
        widths = {name: round(base * ratio) for (name, base), ratio in zip(network.widths.items(), mu, strict=True)}
        found.append(
            {
                "round": number + 1,
                "names": names,
                "mu": mu,
                "sigma": [0.3 - 0.05 * number] * len(names),
                "widths": widths,
                "memory_mib": cost.memory_bytes(network, widths) / cost.MIB,
                "macs_m": cost.macs(network, widths) / 1e6,
                "weight_loss": 2.0,
                "weight_top1_percent": 20.0 + 15 * number + seed,
                "width_loss": 2.0,
                "width_top1_percent": 25.0 + 10 * number,
                "gradient": [(-1) ** index * 0.1 for index in range(len(names))],
                "gradient_error": [0.02 * index for index in range(len(names))],
            }
        )
    return found


def write(
    folder: Path,
    method: str = "gradient",
    seed: int = 0,
    *,
    top1: float | None = 50.0,
    bench: bool = False,
    log: list[dict[str, Any]] | None = None,
    network: Network = SMALL,
    **chosen: Any,
) -> Path:
    """A chain of manifests without its models; the path of the last one."""
    folder.mkdir(parents=True)
    asked = {
        **msgspec.to_builtins(settings.SearchSettings()),
        "memory_mib": 0.1,
        "method": method,
        "seed": seed,
        **chosen,
    }
    factor = {"uniform": 1.1, "equal": 1.0}.get(method, 1.2 + 0.01 * seed)
    widths = {name: round((64 if method == "equal" else base) * factor) for name, base in network.widths.items()}
    memory, macs = cost.memory_bytes(network, widths) / cost.MIB, cost.macs(network, widths) / 1e6
    metrics: dict[str, Any] = {"memory_mib": memory, "macs_m": macs, "seconds": 1.0}
    artifacts = {}
    if method == "gradient":
        content = b"".join(msgspec.json.encode(row) + b"\n" for row in (rounds(seed, network) if log is None else log))
        (folder / "search.jsonl").write_bytes(content)
        artifacts["log"] = describe_artifact(folder / "search.jsonl", folder)
        rows = [("searched", 1.2, 0.0, 0.0), ("equal", 1.3, 0.1, 0.02), ("uniform", 1.4, 0.2, 0.03)]
        metrics["chosen"] = "searched"
        metrics["comparison"] = [
            {
                "name": name,
                "widths": widths,
                "memory_mib": memory,
                "macs_m": macs,
                "loss": loss,
                "top1_percent": 41.0,
                "loss_difference": difference,
                "standard_error": error,
                "images": 128,
            }
            for name, loss, difference, error in rows
        ]
    stages: list[tuple[manifest.Stage, dict[str, Any], dict[str, Any], dict[str, Any]]] = []
    stages.append(("search", asked, metrics, artifacts))
    if top1 is not None:
        trained = settings.resolve(settings.TrainSettings, seed=seed)
        stages.append(
            ("train", msgspec.to_builtins(trained), {"top1_percent": top1, "memory_mib": memory, "seconds": 9}, {})
        )
    if bench:
        stages.append(("export", {"target": "x86-64"}, {"file_bytes": 90_000}, {}))
        measured: dict[str, Any] = {"latency_ms_median": 0.3, "latency_ms_p90": 0.33, "float32_latency_ms_median": 0.5}
        measured |= {"predicted_latency_ms": 0.28, "prediction_error_percent": -6.7, "latency_ratio_to_float32": 0.6}
        measured["operations"] = [{"op": "LceBconv2d", "name": f"conv{at}", "ms": 0.01 * (at + 1)} for at in range(20)]
        stages.append(("bench", {"device": "local"}, measured, {}))
    parent = None
    for stage, made, found, files in stages:
        ran = {**describe_environment(), "threads": 1, "runtimes": {"model.tflite": "LCE 9.9", "float32": "ort 9"}}
        record = manifest.Manifest(
            stage=stage,
            parent=parent,
            command=("dmsflow", stage, "--out", str(folder)),
            settings=made,
            network=network,
            widths=widths,
            data=DATA,
            artifacts=files,
            metrics=found,
            environment=ran,
        )
        last = save_manifest(folder / f"{stage}.json", record)
        parent = describe_artifact(last, folder)
    return last


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a search, of uniform and of equal widths, two random draws, one of them trained twice, two more searches."""
    folder = tmp_path_factory.mktemp("study")
    for seed in (0, 1):
        write(folder / f"gradient-{seed}", "gradient", seed, top1=50.0 + 2 * seed, bench=seed == 0, network=VGG11)
        write(folder / f"uniform-{seed}", "uniform", seed, top1=40.0, network=VGG11)
        write(folder / f"equal-{seed}", "equal", seed, top1=45.0, bench=True, network=VGG11)
        write(folder / f"random-{seed}", "random", seed, top1=30.0 + 10 * seed, network=VGG11)
        write(folder / f"rounds-{seed}", rounds=10 + seed, top1=None, network=VGG11)
    copy = write(folder / "random-1-again", "random", 1, top1=44.0, network=VGG11)
    assert load_manifest(copy).widths == load_manifest(folder / "random-1" / "train.json").widths
    return folder


@pytest.fixture(scope="module")
def written(study: Path) -> Path:
    return report.write_report([study], None)


@pytest.fixture(scope="module")
def text(written: Path) -> str:
    return written.read_text("utf-8")


# --- runs and groups ----------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_alone_stand_together(study: Path) -> None:
    groups = {group.label: group for group in collect.collect([study])}
    assert {label: len(group.runs) for label, group in groups.items()} == {
        "gradient, 0.1 MiB (gradient-0)": 2,
        "gradient, 0.1 MiB (rounds-0)": 1,
        "gradient, 0.1 MiB (rounds-1)": 1,
        "equal, 0.1 MiB": 2,
        "random, 0.1 MiB": 3,
        "uniform, 0.1 MiB": 2,
    }
    assert [row[2] for row in groups["gradient, 0.1 MiB (gradient-0)"].results()] == [50.0, 52.0]
    assert [row[2] for row in groups["random, 0.1 MiB"].results()] == [30.0, 42.0]  # draws, not trainings
    labels = [run.label for group in groups.values() for run in group.runs]
    assert len(set(labels)) == len(labels)
    assert "uniform, 0.1 MiB (uniform-1)" in labels
    assert [group.is_searched for group in groups.values()] == [True] * 3 + [False] * 3


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The last manifest of a chain with other content."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_where_a_run_was_made_and_settings_that_older_manifests_lack_tell_nothing_apart(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write(tmp_path / str(seed), "equal", seed, top1=None)

    def older(content: dict[str, Any]) -> None:
        for name in ("latency_ms", "max_ratio", "amp", "mixed"):
            content["settings"].pop(name, None)
        content["settings"] |= {"method": "flat", "mixed": "off", "device": "cuda", "threads": 3}

    rewrite(tmp_path / "0" / "search.json", older)
    rewrite(tmp_path / "2" / "search.json", lambda content: content["settings"].update(memory_mib=0.2))
    together, apart = collect.collect([tmp_path])
    assert (together.label, apart.label) == ("equal, 0.1 MiB", "equal, 0.2 MiB")
    assert [run.label for run in together.runs] == ["equal, 0.1 MiB (0)", "equal, 0.1 MiB (1)"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("widths", None),
        ("widths", 10**30),
        ("memory_mib", None),
        ("standard_error", ...),
        ("budgets_used", {"x": None}),
    ],
)
def test_a_damaged_comparison_is_one_line(tmp_path: Path, field: str, value: Any) -> None:
    path = write(tmp_path / "run", "gradient", top1=None)

    def damage(content: dict[str, Any]) -> None:
        row = content["metrics"]["comparison"][1]
        row |= {field: value}
        if value is ...:
            del row[field]

    rewrite(path, damage)
    with pytest.raises(DmsflowError, match=r"comparison.*; run the stage that writes the file again$"):
        report.write_report([path], None)


def test_a_comparison_with_nothing_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "run", "gradient", top1=None)
    rewrite(path, lambda content: content["metrics"]["comparison"].__delitem__(slice(1, 3)))
    with pytest.raises(DmsflowError, match=r"run: search.json: comparison: Expected `array` of length >= 2; run the"):
        report.write_report([path], None)


def test_a_run_of_an_earlier_version_is_shown_in_present_names(tmp_path: Path) -> None:
    path = write(tmp_path / "run", "gradient", top1=None)

    def older(content: dict[str, Any]) -> None:
        content["metrics"]["comparison"][1] |= {"name": "flat", "loss_difference": -0.5}
        content["metrics"]["chosen"] = "flat"

    rewrite(path, older)
    content = report.write_report([path], None).read_text("utf-8")
    assert "The widths of equal were kept instead of the searched ones" in content and "flat" not in content
    assert re.search(r"<td[^>]*>equal</td><td[^>]*>chosen</td>", content)


def test_budgets_tell_apart_and_equal_settings_do_not(tmp_path: Path) -> None:
    write(tmp_path / "a", memory_mib=0.1, macs_m=16.0)
    write(tmp_path / "b", memory_mib=0.1)
    write(tmp_path / "c", memory_mib=0.1)
    both, memory = collect.collect([tmp_path])
    assert (both.label, memory.label) == ("gradient, 0.1 MiB + 16 M MACs", "gradient, 0.1 MiB")
    assert [run.label for run in (*both.runs, *memory.runs)] == [
        "gradient, 0.1 MiB + 16 M MACs",
        "gradient, 0.1 MiB (b)",
        "gradient, 0.1 MiB (c)",
    ]


def test_a_run_is_taken_once_and_as_far_as_it_went(study: Path) -> None:
    twice = sections.all_runs(collect.collect([study, study / "equal-0", study / "equal-0" / "search.json"]))
    assert len(twice) == 11
    by_folder = {run.folder.name: run.last.stage for run in twice}
    assert [by_folder[name] for name in ("equal-0", "uniform-0", "rounds-1")] == ["bench", "train", "search"]


def test_a_chain_without_its_search_has_a_label(tmp_path: Path) -> None:
    path = write(tmp_path / "run", "equal", bench=True)
    (path.parent / "train.json").unlink()
    ((run,),) = (group.runs for group in collect.collect([path]))
    assert (run.label, list(run.stages)) == ("unknown (run)", ["export", "bench"])


def test_the_uniform_network_is_the_one_its_search_compared_with(tmp_path: Path) -> None:
    ((run,),) = (group.runs for group in collect.collect([write(tmp_path / "x", memory_mib=5.0)]))
    row = run.stages["search"].metrics["comparison"][2]
    assert runs.uniform_widths(run) == row["widths"]
    row["widths"] = {"others": 3}
    assert runs.uniform_widths(run) is None
    ((run,),) = (group.runs for group in collect.collect([write(tmp_path / "y", "equal")]))
    assert runs.uniform_widths(run) is None


@pytest.mark.parametrize("binary", [True, False])
def test_bytes_of_layers_are_those_of_the_network(binary: bool) -> None:
    widths = {name: 7 + 3 * index for index, name in enumerate(VGG11.widths)}
    parts = cost.layer_bytes(VGG11, widths, binary=binary)
    assert sum(size.binary_bytes + size.float_bytes for size in parts) == cost.memory_bytes(
        VGG11, widths, binary=binary
    )
    assert [size.layer for size in parts if size.binary_bytes] == (
        [f"conv{at}" for at in range(1, 8)] if binary else []
    )


# --- the page -----------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_every_section_is_there(text: str) -> None:
    expected = [*(name for name in SECTIONS if name != "precisions"), "left-out"]  # all of it is of one precision
    assert re.findall(r'<h2 id="([\w-]+)">', text) == expected
    reader = Reader(text)
    drawn = [attributes for tag, attributes in reader.tags if tag == "svg"]
    # accuracy, a front, widths of 3 searches, error, mu of 8 widths of 3 searches, budgets, size
    assert len(drawn) == 2 + 3 + 3 + 2 + 8 * 3 + 1 + 3
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawn)
    assert text.count("<figcaption>") == text.count("<figure")


def test_a_table_has_means_and_deviations(text: str) -> None:
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    found = {row[0]: row for row in rows if row and len(row) == 7}
    searched = found["gradient, 0.1 MiB (gradient-0)"]
    assert searched[1:4] == ["51.00", f"{statistics.stdev([50, 52]):.2f}", "2"]
    assert found["random, 0.1 MiB"][1:4] == ["36.00", f"{statistics.stdev([30, 42]):.2f}", "2 draws"]
    assert "memory" in searched[6]
    assert found["random, 0.1 MiB"][6] == ""


def test_the_comparison_says_of_each_search_whether_it_beat_the_best_baseline(text: str) -> None:
    assert text.count("The search beat the best baseline, equal: the searched loss is 0.1000 ± 0.0200 lower") == 4 + 3
    assert re.search(r"<td[^>]*>\+0.1000 ± 0.0200</td>", text)


def facts_of(content: str, label: str) -> dict[str, str]:
    """The first section's labels and values of a group."""
    (table,) = re.findall(
        rf'<div class="table facts"[^>]*aria-label="{re.escape(label)}".*?</table>', content, re.DOTALL
    )
    return dict(re.findall(r"<th scope=row>(.*?)</th><td>(.*?)</td>", table))


def test_the_first_section_says_what_came_out_at_what_cost_and_whether_it_was_worth_it(text: str) -> None:
    assert text.index('id="result"') < text.index('id="accuracy"')
    facts = facts_of(text, "gradient, 0.1 MiB (gradient-0)")
    assert facts["top-1"] == f"51.00 % ± {statistics.stdev([50, 52]):.2f} (deviation of 2 seeds)"
    assert facts["file for x86-64"].startswith("90,000 bytes; 0.300 ms for one image on ")
    assert facts["took"] == "0.0 min of search and 0.1 min of training"
    assert re.fullmatch(r"\d\.\d{4} MiB \(base widths: \d\.\d{4}\)", facts["parameters"])
    assert "million" in facts["multiply-accumulates"]
    assert facts["search and baselines"].startswith("The search beat the best baseline, equal: ")


def test_a_searched_network_stands_beside_the_best_trained_baseline(tmp_path: Path) -> None:
    for seed, top1 in ((0, 50.0), (1, 52.0)):
        write(tmp_path / f"gradient-{seed}", seed=seed, top1=top1)
        write(tmp_path / f"equal-{seed}", "equal", seed, top1=top1 - 3)
        write(tmp_path / f"uniform-{seed}", "uniform", seed, top1=top1 - 9)
    content = report.write_report([tmp_path], None).read_text("utf-8")
    words = "top-1 +3.00 points from equal, 0.1 MiB, the best of 2, ± 1.41 (standard error, 2 and 2 seeds)"
    assert facts_of(content, "gradient, 0.1 MiB")["trained baselines"] == words
    content = report.write_report([tmp_path / "gradient-0", tmp_path / "equal-0"], None).read_text("utf-8")
    assert facts_of(content, "gradient, 0.1 MiB")["trained baselines"].endswith("one seed does not say")


def measured(folder: Path, ms: float, method: str, seed: int = 0, top1: float = 50.0, **chosen: Any) -> None:
    """A chain with its bench, which took so long."""
    path = write(folder, method, seed, top1=top1, bench=True, **chosen)
    rewrite(path, lambda content: content["metrics"].update(latency_ms_median=ms))


def test_the_front_of_a_device_has_seeds_as_whiskers_and_baselines_beside_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        measured(tmp_path / f"gradient-{seed}", 0.2, "gradient", seed, 60.0 + 2 * seed)
    measured(tmp_path / "gradient-1-again", 0.4, "gradient", 1, 62.0)  # counts once, with its mean
    measured(tmp_path / "equal", 0.1, "equal", top1=50.0)
    measured(tmp_path / "uniform", 0.5, "uniform", top1=40.0)
    panels, table = fronts.fronts_section(collect.collect([tmp_path]))
    assert isinstance(panels, sections.Panels) and isinstance(table, str)
    assert [panel.name for panel in panels.panels] == ["front-ms", "front-mib", "front-macs"]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    shown = {row[0].partition(",")[0]: (*row[1:5], row[-1]) for row in rows if row}
    assert shown["gradient"] == ("2", "61.00", "1.41", "0.250", "ms, MiB, M MACs")
    assert shown["equal"][:4] == ("1", "50.00", "–", "0.100") and "ms" in shown["equal"][-1]
    assert shown["uniform"][:4] == ("1", "40.00", "–", "0.500") and "ms" not in shown["uniform"][-1].split(", ")


def precise(folder: Path, precision: str, top1: float, **sizes: Any) -> None:
    """A measured chain whose file has such weights."""
    measured(folder, 0.2, "uniform", top1=top1)
    rewrite(folder / "export.json", lambda content: content["metrics"].update(precision=precision, **sizes))
    artifact = msgspec.to_builtins(describe_artifact(folder / "export.json", folder))
    rewrite(folder / "bench.json", lambda content: content.update(parent=artifact))


def test_one_bit_int8_and_float32_are_on_one_plane(tmp_path: Path) -> None:
    precise(tmp_path / "bits", "1-bit", 50.0)
    precise(tmp_path / "eight", "int8", 60.0, memory_mib=0.5)
    panels, table = precisions.precisions_section(collect.collect([tmp_path]))
    assert isinstance(panels, sections.Panels) and isinstance(table, str)
    assert [panel.name for panel in panels.panels] == ["precision-ms", "precision-mib", "precision-kib"]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    assert [(row[0], row[2], row[3]) for row in rows if row] == [
        ("int8", "60.00", "0.200"),
        ("1-bit", "50.00", "0.200"),
    ]
    assert next(row[4] for row in rows if row) == "0.5000"
    assert {row[5] for row in rows if row} == {f"{90_000 / 1024:.1f}"}


def test_one_precision_alone_has_no_plane(tmp_path: Path) -> None:
    precise(tmp_path / "bits", "1-bit", 50.0)
    precise(tmp_path / "more", "1-bit", 51.0)
    assert "no network is measured in two of" in precisions.precisions_section(collect.collect([tmp_path]))


def test_one_setting_of_a_device_has_no_front(tmp_path: Path) -> None:
    measured(tmp_path / "one", 0.2, "gradient")
    assert fronts.fronts_section(collect.collect([tmp_path])) == (
        "no two settings are measured on the same device (dmsflow bench)"
    )


def test_files_of_one_training_are_one_seed_and_stand_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "run", bench=True)
    other = tmp_path / "run" / "onnx"
    other.mkdir()
    for stage, parent in (("export", path.with_name("train.json")), ("bench", other / "export.json")):
        record = load_manifest(path.with_name(f"{stage}.json"))
        made = {"target": "onnx"} if stage == "export" else record.settings
        found = {"file_bytes": 70_000} if stage == "export" else {**record.metrics, "latency_ms_median": 0.9}
        changed = {"settings": made, "metrics": found, "parent": describe_artifact(parent, other)}
        save_manifest(other / f"{stage}.json", msgspec.structs.replace(record, **changed))
    ((run,),) = (group.runs for group in collect.collect([tmp_path]))
    assert {file.target: file.metrics["file_bytes"] for file in run.files} == {"x86-64": 90_000, "onnx": 70_000}
    content = report.write_report([tmp_path], None).read_text("utf-8")
    facts = facts_of(content, "gradient, 0.1 MiB")
    assert facts["file for x86-64"].startswith("90,000 bytes; 0.300 ms")
    assert facts["file for onnx"].startswith("70,000 bytes; 0.900 ms")
    assert facts["top-1"] == "50.00 %" and "± 0.00" not in content


def test_a_seed_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "a", top1=50.0)
    write(tmp_path / "b", top1=51.0)
    (group,) = collect.collect([tmp_path])
    assert len(group.runs) == 2 and [row[2] for row in group.results()] == [50.5]
    content = report.write_report([tmp_path], None).read_text("utf-8")
    assert facts_of(content, "gradient, 0.1 MiB")["top-1"] == "50.50 %"


# --- a search that is not finished --------------------------------------------------------------


def write_running(folder: Path, count: int) -> Path:
    """What a search has in its folder after some rounds."""
    folder.mkdir(exist_ok=True)
    (folder / "search.jsonl").write_bytes(
        b"".join(msgspec.json.encode(row) + b"\n" for row in rounds(0, VGG11)[:count])
    )
    settings_made = {**msgspec.to_builtins(settings.SearchSettings()), "memory_mib": 0.5, "rounds": 40}
    header = {"facts": json.dumps({"settings": settings_made})}
    save_file({"weight": np.zeros(1)}, folder / "search.checkpoint", header)
    return folder


def test_a_running_search_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_running(tmp_path / "run", 3)
    row = rounds(0, VGG11)[2]
    for source in (folder, folder / "search.jsonl"):
        assert cli.main(["show", str(source)]) == 0
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert {"round 3 of 40", "loss 2.0000, on the half of the images that trains widths"} <= set(lines)
        assert f"widths {' '.join(map(str, row['widths'].values()))}" in lines
        assert f"memory {row['memory_mib']:.4g} of 0.5 MiB" in lines
    assert cli.main(["show", "--json", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"][-1]["round"] == 3


def test_the_page_of_a_running_search_loads_itself_again_until_the_search_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, finished = write_running(tmp_path / "run", 1), write(tmp_path / "finished", top1=None).parent
    pages = []

    def wait(seconds: float) -> None:
        pages.append((folder / "report.html").read_text("utf-8"))
        if len(pages) == 1:
            write_running(folder, 2)
        else:
            shutil.copytree(finished, folder, dirs_exist_ok=True)

    monkeypatch.setattr(report, "time", SimpleNamespace(sleep=wait))
    assert cli.main(["report", str(folder), "--watch"]) == 0
    pages.append((folder / "report.html").read_text("utf-8"))
    assert ['http-equiv="refresh"' in page for page in pages] == [True, True, False]
    assert ["1 of 40" in pages[0], "2 of 40" in pages[1]] == [True, True]
    assert re.findall(r'<h2 id="([\w-]+)">', pages[1]) == ["result", "error", "rounds", "budgets", "left-out"]
    assert "The search beat the best baseline" in pages[2]


def test_a_log_without_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write_running(tmp_path / "run", 2) / "search.checkpoint").unlink()
    assert "search.jsonl: is the log of a search that is not finished, and search.checkpoint is missing" in refused(
        capsys, tmp_path
    )


@pytest.mark.parametrize(("content", "what"), [(b"", "has no round yet"), (b"{}\n", "damaged"), (b"\x00{", "damaged")])
def test_a_damaged_log_is_one_line(
    content: bytes, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (write_running(tmp_path / "run", 2) / "search.jsonl").write_bytes(content)
    assert f"search.jsonl: {'is ' * (what == 'damaged')}{what}" in refused(capsys, tmp_path)


@pytest.mark.parametrize("name", ["gradient", "gradient_error", "mu", "sigma", "round", "memory_mib"])
@pytest.mark.parametrize("value", [None, [], [1.0], {}, "x", 1e308])
def test_a_damaged_row_of_a_finished_search_is_one_line(
    name: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run", log=[*rounds(0, SMALL)[:2], {**rounds(0, SMALL)[2], name: value}])
    assert "search.jsonl: is damaged" in refused(capsys, tmp_path)


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "run", bench=True)
    first = report.write_report([tmp_path / "run"], None).read_bytes()
    program = f"import sys; from dmsflow.cli import main; sys.exit(main(['report', {str(tmp_path / 'run')!r}]))"
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "run" / "report.html").read_bytes() == first


def test_it_needs_nothing_else(text: str) -> None:
    reader = Reader(text)
    assert {tag for tag, _ in reader.tags} & {"script", "iframe", "object", "embed", "img"} == set()
    assert set(re.findall(r'https?://[^"\s]+', text)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    links = [
        value for _, found in reader.tags for name, value in found.items() if name in ("href", "xlink:href", "src")
    ]
    assert all(link and link.startswith(("#", "data:,")) for link in links)
    ids = [found["id"] for _, found in reader.tags if "id" in found]
    assert len(set(ids)) == len(ids)
    assert {link for link in links if link and link.startswith("#")} <= {f"#{name}" for name in ids}
    assert "default-src 'none'" in text


def test_drawings_take_the_colours_of_the_page(text: str) -> None:
    for drawn in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}\b|rgb\(", drawn)
        assert set(re.findall(r"var\(--(\w+)\)", drawn)) <= set(figures.COLOURS)
        assert "<text" in drawn


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [0, 1])
def test_colours_can_be_seen(dark: int) -> None:
    """The contrasts that WCAG 2.1 asks of text, 4.5, and of drawings, 3."""
    paper = luminance(figures.COLOURS["paper"][dark])
    for name, pair in figures.COLOURS.items():
        if name not in ("paper", "rule"):
            low, high = sorted((paper, luminance(pair[dark])))
            assert (high + 0.05) / (low + 0.05) >= (3 if name.startswith("series") else 4.5), name


def test_neighbouring_series_differ_by_more_than_colour() -> None:
    styles = [figures.Style(index) for index in range(24)]
    assert len({(style.colour, str(style.dash)) for style in styles}) == 24
    assert all(str(one.dash) != str(next_.dash) for one, next_ in itertools.pairwise(styles[:6]))


EVIL = "<script>alert(1)</script>&amp;\"'$x_1$ _]]>"


def test_what_people_write_is_text(tmp_path: Path) -> None:
    path = write(tmp_path / EVIL.replace("/", "∕"), log=[*rounds(0)], top1=50, bench=True)
    record = load_manifest(path)
    save_manifest(path, msgspec.structs.replace(record, data=Data(name=EVIL), command=(EVIL,)))
    content = report.write_report([tmp_path], tmp_path / "report.html").read_text("utf-8")
    reader = Reader(content)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not any(name.startswith("on") for _, found in reader.tags for name in found)
    words = "".join(reader.words)
    assert EVIL in words
    assert EVIL.replace("/", "∕") in words
    for drawn in re.findall(r"<svg.*?</svg>", content, re.DOTALL):
        ElementTree.fromstring(drawn)


HOSTILE = '\x1b[31m../../x"><script>alert(1)</script>\u202e[/b]'


def hostile_network() -> Network:
    """Its names would leave an attribute, an element, a folder and a terminal's line; layers may have no slash."""
    widths = {HOSTILE + name: base for name, base in SMALL.widths.items()}
    layers = (
        msgspec.structs.replace(each, name=_hostile(each.name), inputs=tuple(_hostile(name) for name in each.inputs))
        for each in SMALL.layers
    )
    renamed = (
        msgspec.structs.replace(each, width=HOSTILE + each.width if isinstance(each.width, str) else each.width)
        for each in layers
    )
    return msgspec.structs.replace(SMALL, name=HOSTILE, widths=widths, layers=tuple(renamed))


def _hostile(name: str) -> str:
    return name if name == "input" else HOSTILE.replace("/", "") + name


def test_names_of_others_are_text_on_the_page_in_its_files_and_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = write(tmp_path / "run", bench=True, network=hostile_network())
    text = report.write_report([last], tmp_path / "x.html", folder=tmp_path / "pictures").read_text("utf-8")
    assert "<script" not in text and "\x1b" not in text and "\u202e" not in text and "&lt;script&gt;" in text
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)
    assert {each.name for each in tmp_path.iterdir()} == {"run", "x.html", "pictures"}
    assert {"mu-1-0.svg", "mu-1-1.svg"} <= {each.name for each in (tmp_path / "pictures").iterdir()}
    assert cli.main(["show", str(last)]) == 0
    shown = capsys.readouterr().out
    assert "\\x1b[31m" in shown and "[/b]" in shown and shown.replace("\n", "").isprintable()


def test_labels_that_matplotlib_would_typeset_are_drawn() -> None:
    drawn = figures.draw_lines("$x$", "a", [figures.Series("some $y_1$", [1, 2], [3, 4], figures.Style())])
    words = "".join(ElementTree.fromstring(figures.inline_svg(drawn, "x", "y")).itertext())
    assert "some $y_1$" in words and "$x$" in words


def test_what_is_missing_is_named_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "x", "equal", top1=None)
    content = report.write_report([tmp_path / "x"], None).read_text("utf-8")
    assert re.findall(r'<h2 id="([\w-]+)">', content) == ["result", "widths", "size", "facts", "left-out"]
    left = re.findall(r"<li>(.*?)</li>", content)
    assert [line.partition(":")[0] for line in left] == [
        "Accuracy against memory",
        "Front of each device",
        "1-bit, int8 and float32",
        "Error over the search",
        "μ ± σ of every width",
        "Cost against the budgets",
        "Files and latency",
        "Comparison at the end of the search",
    ]
    assert "Files and latency: no file is exported yet (dmsflow export)." in left


def test_logs_of_older_versions_and_of_evolution_are_drawn(tmp_path: Path) -> None:
    old = [{key: value for key, value in row.items() if key != "weight_top1_percent"} for row in rounds(0)]
    write(tmp_path / "old", log=old)
    still = [
        {key: value for key, value in row.items() if not key.startswith(("width_", "gradient"))} for row in rounds(0)
    ]
    content = report.write_report([tmp_path / "old"], None).read_text("utf-8")
    assert "Error on the widths’ half" in content and "Error on the weights’ half" not in content
    write(tmp_path / "still", log=still)
    content = report.write_report([tmp_path / "still"], None).read_text("utf-8")
    assert "Cost against the budgets: no run has a log of moving widths;" in content
    assert "error-1" in content and "error-2" not in content


def test_many_runs_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(3):
        write(tmp_path / f"{at}", memory_mib=0.05 + 0.01 * at, top1=None)
    for room, name, value in ((sections, "MOST_PANELS", 2), (sections, "MOST_GROUPS", 1), (figures, "LEGEND_ROWS", 2)):
        monkeypatch.setattr(room, name, value)
    content = report.write_report([tmp_path], None).read_text("utf-8")
    assert content.count("Of 3 settings the first 2 are drawn.") == 2
    assert "Of 3 settings the first 1 is drawn." in content
    assert "and 1 more" in content


def test_many_settings_are_named_by_markers_and_colours(tmp_path: Path) -> None:
    for at in range(7):
        for method in ("gradient", "uniform"):
            write(tmp_path / f"{method}-{at}", method, memory_mib=0.05 + 0.01 * at)
    content = report.write_report([tmp_path], None).read_text("utf-8")
    drawn = re.search(r'<svg [^>]*aria-label="Top-1 against memory, MiB, digits".*?</svg>', content, re.DOTALL)
    assert drawn
    words = [text.text for text in ElementTree.fromstring(drawn[0]).iter("{http://www.w3.org/2000/svg}text")]
    assert [words.count(text) for text in ("gradient", "uniform", "0.05 MiB", "gradient, 0.05 MiB")] == [1, 1, 1, 0]


def test_of_many_searches_the_mean_of_each_setting_is_drawn(tmp_path: Path) -> None:
    for at in range(over_rounds.MOST_LINES + 1):
        write(tmp_path / f"{at}", seed=at, top1=None)
    (line,) = over_rounds._lines(collect.collect([tmp_path]), "weight_top1_percent", float)
    assert line.label == "gradient, 0.1 MiB, mean of 17"
    assert list(line.y) == pytest.approx([20 + 15 * number + 8 for number in range(ROUNDS)])


@pytest.mark.parametrize("method", ["measured", "modelled"])
def test_the_word_stands_beside_what_nobody_measured(method: str, tmp_path: Path, make_profile: Any) -> None:
    log = [{**row, "predicted_latency_ms": 0.2} for row in rounds(0)]
    bench = write(tmp_path / "run", log=log, bench=True, profile="board", latency_ms=0.3)
    profile.save_profile(bench.parent / "profile.json", make_profile(SMALL, method=method))
    record = load_manifest(bench)
    save_manifest(
        bench, msgspec.structs.replace(record, environment={**record.environment, "profile": {"method": method}})
    )
    search = json.loads((bench.parent / "search.json").read_text())
    search["artifacts"]["profile"] = msgspec.to_builtins(describe_artifact(bench.parent / "profile.json", bench.parent))
    for row in search["metrics"]["comparison"]:
        row["predicted_latency_ms"] = 0.2
    (bench.parent / "search.json").write_text(json.dumps(search))
    for stage, above in (("train", "search"), ("export", "train"), ("bench", "export")):
        path = bench.parent / f"{stage}.json"
        content = json.loads(path.read_text())
        content["parent"] = msgspec.to_builtins(describe_artifact(bench.parent / f"{above}.json", bench.parent))
        path.write_text(json.dumps(content))
    text = report.write_report([bench], None).read_text("utf-8")
    words = ("Predicted latency, modelled", ">0.280 modelled<", ">0.200 modelled<")
    assert [word in text for word in words] == [method == "modelled"] * 3
    assert ("modelled" in text.replace(str(tmp_path), "")) == (method == "modelled")


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["svg", "png"])
def test_figures_are_files_too(form: str, tmp_path: Path) -> None:
    path = write(tmp_path / "run", bench=True)
    command = ["report", str(path), "--figures", str(tmp_path / "figures"), "--format", form]
    assert cli.main(command) == 0
    names = {file.name.removesuffix(f".{form}") for file in (tmp_path / "figures").iterdir()}
    assert names >= {"widths-1", "error-1", "error-2", "mu-1-a", "budget-memory", "size-1"}
    for file in (tmp_path / "figures").iterdir():
        content = file.read_bytes()
        if form == "svg":
            assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
            assert b"<text" in content and b"var(" not in content
        else:
            assert content.startswith(b"\x89PNG")


def test_its_path_is_all_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "run", "equal")
    assert cli.main(["report", str(path.parent)]) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'run' / 'report.html'}\n", "")
    assert cli.main(["report", str(path)]) == 0, "an earlier report is overwritten"
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'report.html'}\n"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The line it ends with."""
    assert cli.main(["report", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_a_file_that_is_no_report_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "run", "equal")
    assert "exists, and is not a dmsflow report; give --out another name" in refused(capsys, path, "--out", path)
    assert load_manifest(path)
    assert "is a folder; give --out the name of a file" in refused(capsys, path, "--out", tmp_path)


def test_a_folder_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path / 'none'}: no such file or folder; give" in refused(capsys, tmp_path / "none")
    assert f"{tmp_path}: has no manifest; give a folder with one of search.json" in refused(capsys, tmp_path)


def test_a_damaged_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "run").parent
    whole = (folder / "search.jsonl").read_bytes()
    (folder / "search.jsonl").write_bytes(whole[:-40])
    assert "search.jsonl: changed after search.json was written; restore it" in refused(capsys, folder)
    search = folder / "search.json"
    (folder / "train.json").unlink()
    search.write_text("{}")
    assert "search.json: is not a dmsflow manifest (" in refused(capsys, folder)


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "whole", "equal")
    made = msgspec.to_builtins(settings.BenchSettings())
    (tmp_path / "bare").mkdir()
    bare = tmp_path / "bare" / "bench.json"
    save_manifest(bare, manifest.Manifest(stage="bench", command=(), settings=made, metrics={}, environment={}))
    (write_running(tmp_path / "begun", 1) / "search.jsonl").write_bytes(b"")
    assert cli.main(["report", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'report.html'}\n"
    first, second = captured.err.splitlines()
    assert first.startswith(f"left out: {bare}: is the bench of a file without a manifest")
    assert second.startswith(f"left out: {tmp_path / 'begun' / 'search.jsonl'}: has no round yet")
    assert "is the bench of a file without a manifest" in refused(capsys, bare), "nothing is left to show"


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path) -> None:
    path = write(tmp_path / "run", "equal")
    program = f"import sys; sys.modules['matplotlib'] = None; from dmsflow.cli import main; sys.exit(main(['report', {str(path)!r}]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dmsflow: matplotlib: is not installed; pip install 'dmsflow[report]'\n"


def test_its_page_in_the_docs_names_what_there_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text("utf-8")
    known = {
        name
        for command in ("report", "search")
        for param in cli.cli.commands[command].params
        for name in (*param.opts, *param.secondary_opts)
    }
    assert set(re.findall(r"(?<![\w|-])--[a-z][a-z-]+", text)) <= known
    assert re.findall(r"^\| ([^|`]+?) \|", text, re.MULTILINE)[1:] == [title for _, title, _ in report.SECTIONS]
    assert all((Path(__file__).parents[2] / "docs" / name).is_file() for name in re.findall(r"\]\(([\w.-]+)\)", text))


# --- a genuine chain, and a browser -------------------------------------------------------------


@pytest.fixture(scope="module")
def genuine(tiny_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a search, a training, an export and a bench of a few seconds."""
    return report.write_report([Path(tiny_run[-1])], tmp_path_factory.mktemp("genuine") / "report.html")


def test_a_genuine_chain_has_every_section(genuine: Path) -> None:
    content = genuine.read_text("utf-8")
    found = re.findall(r'<h2 id="([\w-]+)">', content)
    # One setting has no front, and one precision no plane.
    assert found == [*(name for name in SECTIONS if name not in ("fronts", "precisions")), "left-out"]
    for name in ("error-1", "error-2", "mu-1-a", "mu-1-b", "budget-memory", "budget-macs"):
        assert f'id="{name}-' in content, name


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.chromium(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


LAYOUT = """
(() => {
  const wide = document.documentElement, colour = (element, name) => getComputedStyle(element)[name];
  const drawings = [...document.querySelectorAll('figure svg')].map(svg => {
    const box = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll('text')];
    const scale = box.width / svg.viewBox.baseVal.width;
    return {
      label: svg.getAttribute('aria-label'), width: box.width, height: box.height,
      smallest: Math.min(...texts.map(text => scale * parseFloat(colour(text, 'fontSize')))),
      cut: texts.filter(text => {
        const part = text.getBoundingClientRect();
        return part.left < box.left - 2 || part.right > box.right + 2 || part.top < box.top - 2 || part.bottom > box.bottom + 2;
      }).map(text => text.textContent),
      ink: texts.map(text => colour(text, 'fill')),
    };
  });
  return {
    page: [wide.scrollWidth, wide.clientWidth], drawings, background: colour(document.body, 'backgroundColor'),
    tables: [...document.querySelectorAll('.table')].map(table => table.getBoundingClientRect().right),
    scrolling: [...document.querySelectorAll('.table')].filter(table => table.scrollWidth > table.clientWidth).length,
  };
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["written", "genuine"])
def test_a_browser_shows_it(
    which: str, width: int, dark: bool, tab: browser.Browser, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    shutil.copy(request.getfixturevalue(which), path)
    tab.show(path, width=width, dark=dark)
    found = tab.evaluate(LAYOUT)
    assert tab.said() == []
    assert tab.requests() == [path.resolve().as_uri()]
    assert found["page"] == [width, width]
    assert max(found["tables"]) <= width
    assert width > 390 or not found["scrolling"], "on a phone no table is cut"
    assert len(found["drawings"]) == path.read_text("utf-8").count("<svg ")
    values = [[int(part) for part in re.findall(r"\d+", colour)] for colour in (found["background"],)]
    assert values[0] == [int(figures.COLOURS["paper"][dark][at : at + 2], 16) for at in (1, 3, 5)]
    inks = {
        f"rgb({', '.join(str(int(figures.COLOURS[name][dark][at : at + 2], 16)) for at in (1, 3, 5))})"
        for name in ("ink", "soft")
    }
    for drawing in found["drawings"]:
        assert drawing["width"] > 100 and drawing["height"] > 50, drawing["label"]
        assert drawing["smallest"] >= 9, drawing["label"]
        assert drawing["cut"] == [], drawing["label"]
        assert set(drawing["ink"]) <= inks, drawing["label"]


def test_the_browser_test_sees_what_is_wrong(tab: browser.Browser, tmp_path: Path) -> None:
    """A script that complains, an image that is not there, and a line too wide are all noticed."""
    bad = "<script>console.warn('no')</script><img src='gone.png'><div style='width:2000px'>x</div>"
    path = tmp_path / "bad.html"
    path.write_text(f"<!doctype html><meta name=viewport content='width=device-width'>{bad}")
    tab.show(path, width=1280, dark=False)
    assert any('"no"' in line for line in tab.said())
    assert len(tab.requests()) == 2
    assert tab.evaluate("document.documentElement.scrollWidth") >= 2000
    blocked = path.with_name("blocked.html")
    blocked.write_text(page.document("x", figures.COLOURS, [bad]))
    tab.show(blocked, width=1280, dark=False)
    assert sum("violates the following Content Security Policy directive" in line for line in tab.said()) == 2

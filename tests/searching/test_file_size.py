"""The predicted size of a .tflite file against files that the exporter writes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from made_up import odd_widths, trained, with_signs

from dmsflow.deploying import folding
from dmsflow.deploying.exporters import lce
from dmsflow.errors import DmsflowError
from dmsflow.importing import load_network
from dmsflow.manifest import load_manifest
from dmsflow.network.network import INPUT, Layer, Network, with_stem
from dmsflow.plugin import list_plugins, shipped_folder
from dmsflow.reporting import shipped
from dmsflow.searching import search
from dmsflow.searching.budget import Budgets
from dmsflow.searching.file_size import KIB, FileSize
from dmsflow.settings import Data, SearchSettings

EXACTLY = 0.02


def written_bytes(network: Network, widths: dict[str, int], path: Path) -> int:
    graph = folding.fold(
        network, widths, trained(network, widths), np.zeros(network.channels), np.ones(network.channels)
    )
    lce.write(graph, path)
    return path.stat().st_size


def test_the_file_of_signs_is_as_large_as_predicted(tmp_path: Path) -> None:
    for network in map(with_signs, (load_network("vgg11", 3, 32, 10), load_network("birealnet18", 3, 32, 10))):
        widths = odd_widths(network, 1)
        real = written_bytes(network, widths, tmp_path / "model.tflite")
        assert abs(FileSize(network).kib(widths) * KIB / real - 1) < EXACTLY


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "birealnet18", "resnet20"])
def test_the_file_of_int8_edges_is_as_large_as_predicted(name: str, tmp_path: Path) -> None:
    network = with_stem(load_network(name, 3, 32, 10), "int8")
    for seed in range(2):
        widths = odd_widths(network, seed)
        real = written_bytes(network, widths, tmp_path / "model.tflite")
        assert abs(FileSize(network).kib(widths) * KIB / real - 1) < EXACTLY, widths


def test_the_small_file_of_an_int8_stem_that_puts_out_floats_is_as_large_as_predicted(tmp_path: Path) -> None:
    small = [
        Layer(name="stem", op="conv", inputs=(INPUT,), width="a", kernel=3, bits=8),
        Layer(name="average", op="average_pool", inputs=("stem",)),
        Layer(name="dense", op="dense", inputs=("average",), width=2, bits=8),
    ]
    network = Network(name="small", channels=3, resolution=8, classes=2, widths={"a": 9}, layers=tuple(small))
    real = written_bytes(network, network.widths, tmp_path / "model.tflite")
    assert abs(FileSize(network).kib(network.widths) * KIB / real - 1) < EXACTLY


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list_plugins("networks"))
def test_the_file_is_as_large_as_predicted(name: str, channels: int, tmp_path: Path) -> None:
    network = load_network(name, channels, 32, 10)
    size = FileSize(network)
    for scale in (0.3, 1.0, 2.0):
        for seed in range(2):
            widths = {key: max(1, round(scale * width)) for key, width in odd_widths(network, seed).items()}
            real = written_bytes(network, widths, tmp_path / "model.tflite")
            assert abs(size.kib(widths) * KIB / real - 1) < EXACTLY, widths


@pytest.mark.parametrize("name", shipped.model_names())
def test_the_files_of_the_models_are_as_large_as_predicted(name: str) -> None:
    done = load_manifest(shipped_folder("models") / name / "bench.json")
    predicted = FileSize(done.network).kib(done.widths) * KIB
    assert abs(predicted / done.metrics["file_bytes"] - 1) < EXACTLY


def test_a_budget_of_the_file_is_kept_by_all_widths() -> None:
    network = load_network("vgg11", 3, 32, 10)
    for limits in ({"file_kib": 100.0}, {"file_kib": 100.0, "macs_m": 12.0}):
        budgets = Budgets.from_settings(SearchSettings(**limits), network)
        assert [each.unit for each in budgets.limits] == ["M", "KiB"][-len(limits) :]
        for ratios in (budgets.uniform(), budgets.equal(), budgets.interpolated()):
            widths = budgets.round_within(ratios)
            assert budgets.met(widths) and budgets.figures(widths)["file_kib"] <= 100


def test_a_smooth_size_is_that_of_whole_words() -> None:
    network = load_network("resnet18", 3, 32, 10)
    size = FileSize(network)
    whole = {name: 32 * index for index, name in enumerate(network.widths, 1)}
    assert size.kib_without_steps(whole) == pytest.approx(size.kib(whole))
    more = {name: width + 1 for name, width in whole.items()}
    assert size.kib(whole) < size.kib_without_steps(more) < size.kib(more)


def test_a_file_budget_stands_alone_and_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dmsflow.manifest import Flow

    chosen = SearchSettings(method="uniform", file_kib=40.0)
    done = load_manifest(search.run_stage(Data(), chosen, tmp_path, Flow(())))
    assert done.metrics["file_kib"] <= 40 and done.settings["memory_mib"] is None
    assert "at most 40 KiB\n" in capsys.readouterr().err
    rows = dict(search.plan_stage(Data(), chosen, tmp_path))
    assert rows["file budget"].startswith("40 KiB, ") and ", file " in rows["uniform"]
    with pytest.raises(DmsflowError, match="file budget of 5 KiB: vgg11 cannot be that small"):
        search.plan_stage(Data(), msgspec.structs.replace(chosen, file_kib=5.0), tmp_path)

"""What a profile says of a chain's file; the chain is manifests alone, since nothing here is run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmsflow.errors import DmsflowError
from dmsflow.files import describe_artifact, hash_file
from dmsflow.importing import load_network
from dmsflow.manifest import Manifest, Stage, load_manifest, save_manifest
from dmsflow.measuring import predicted_latency
from dmsflow.measuring.devices import Machine, Timing
from dmsflow.measuring.predicted_latency import Prediction
from dmsflow.network import profile
from dmsflow.network.latency import build_latency
from dmsflow.network.profile import Profile
from dmsflow.settings import BenchSettings, Data

NETWORK = load_network("vgg11", 3, 32, 10)
WIDTHS = {name: 5 + 3 * index for index, name in enumerate(NETWORK.widths)}
MACHINE = Machine(processor="paper", system="none")

Save = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, make_profile: Callable[..., Profile]) -> Path:
    """search.json, train.json and export.json of a binary network for x86-64, and the search's profile."""
    profile.save_profile(tmp_path / "profile.json", make_profile(NETWORK))
    copied = {"profile": describe_artifact(tmp_path / "profile.json", tmp_path)}
    stages: dict[Stage, tuple[dict[str, Any], dict[str, Any]]] = {
        "search": ({}, {"artifacts": copied}),
        "train": ({"precision": "binary"}, {}),
        "export": ({"target": "x86-64"}, {}),
    }
    parent = None
    for stage, (settings, fields) in stages.items():
        made = Manifest(
            stage=stage,
            parent=parent,
            command=("dmsflow", stage),
            settings=settings,
            network=NETWORK,
            widths=WIDTHS,
            data=Data(),
            **{"artifacts": {}, "metrics": {}, "environment": {}, **fields},
        )
        parent = describe_artifact(save_manifest(tmp_path / f"{stage}.json", made), tmp_path)
    return tmp_path


@pytest.fixture
def saved(tmp_path: Path, make_profile: Callable[..., Profile]) -> Save:
    """`saved(**fields)` writes a profile of the chain's network, and gives its path."""
    return lambda **fields: str(profile.save_profile(tmp_path / "other.json", make_profile(NETWORK, **fields)))


def of(folder: Path, **options: Any) -> Prediction | None:
    source = folder / "export.json"
    return predicted_latency.predict(source, load_manifest(source), BenchSettings(**options))


def test_the_searchs_profile_predicts_piece_by_piece(folder: Path) -> None:
    found = of(folder)
    assert found
    latency = build_latency(NETWORK, profile.load_profile(str(folder / "profile.json")))
    assert found.ms == latency(WIDTHS) > 0
    *blocks, overhead = found.blocks
    assert [row["predicted_ms"] for row in blocks] == [ms for _, ms in latency.by_block(WIDTHS)]
    assert (overhead["piece"], overhead["predicted_ms"]) == ("overhead of a run", 0.002)
    assert sum(row["predicted_ms"] for row in found.blocks) == pytest.approx(found.ms)
    assert sum(row["share_percent"] for row in found.blocks) == pytest.approx(100)
    assert blocks[1]["input_width"] == next(iter(WIDTHS.values()))
    sha256 = hash_file(folder / "profile.json")
    assert (found.profile.name, found.profile.method, found.sha256) == ("board", "measured", sha256)


def test_its_error_is_held_against_what_was_measured(folder: Path) -> None:
    found = of(folder)
    assert found
    assert found.metrics(found.ms)["prediction_error_percent"] == 0
    assert found.metrics(2 * found.ms)["prediction_error_percent"] == pytest.approx(-50)
    assert found.metrics(found.ms / 2) == {
        "predicted_latency_ms": found.ms,
        "prediction_error_percent": pytest.approx(100),
        "pieces": found.blocks,
    }


def test_the_profile_asked_for_predicts_instead(folder: Path, saved: Save) -> None:
    found = of(folder, profile=saved(name="dream", method="modelled", overhead_ms=100.0))
    assert found and found.ms > 100
    assert (found.profile.title, found.profile.method) == ("dream (modelled)", "modelled")


OTHER_FILES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"precision": "float"}, {}, "has times of float networks, and this network is binary"),
    ({"target": "onnx"}, {}, "has times of files for onnx, and this file is for x86-64"),
    ({"threads": 4}, {}, "was measured with 4 threads, and bench uses 1 thread"),
    ({}, {"threads": 2}, "was measured with 1 thread, and bench uses 2 threads"),
]


@pytest.mark.parametrize(("fields", "options", "message"), OTHER_FILES)
def test_a_profile_of_other_files_is_refused(
    fields: dict[str, Any], options: dict[str, Any], message: str, folder: Path, saved: Save
) -> None:
    with pytest.raises(DmsflowError, match=f"--profile .*other.json: {message}; choose another"):
        of(folder, profile=saved(**fields), **options)


def test_the_searchs_profile_of_other_files_predicts_nothing_and_a_line_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert of(folder, threads=2) is None
    line = "no prediction: the search's profile board was measured with 1 thread, and bench uses 2 threads\n"
    assert capsys.readouterr().err == line


def test_a_part_that_was_not_measured_is_named(folder: Path, saved: Save, make_profile: Callable[..., Profile]) -> None:
    with pytest.raises(DmsflowError, match="profile board: has not measured 'average_pool .*; add it: dmsflow profile"):
        of(folder, profile=saved(tables=make_profile(NETWORK).tables[:-1]))


def test_a_profile_that_is_absent_damaged_or_changed_is_refused(folder: Path, saved: Save) -> None:
    with pytest.raises(DmsflowError, match="profile nowhere: is unknown"):
        of(folder, profile="nowhere")
    path = Path(saved())
    path.write_text(path.read_text().replace('"overhead_ms": 0.002', '"overhead_ms": -1'))
    with pytest.raises(DmsflowError, match="other.json: is not a profile .*measure it again"):
        of(folder, profile=str(path))
    (folder / "profile.json").write_text("{}")
    with pytest.raises(DmsflowError, match="profile.json: changed after search.json was written"):
        of(folder)


def test_an_export_alone_is_predicted_by_nothing(folder: Path, saved: Save, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(folder, folder / "copy", ignore=shutil.ignore_patterns("train.json", "copy"))
    assert of(copy) is None
    assert "was made from train.json, which is missing" in capsys.readouterr().err
    with pytest.raises(DmsflowError, match="train.json: is missing, but export.json names it"):
        of(copy, profile=saved())


def test_a_bare_file_has_no_widths_to_predict_from(saved: Save) -> None:
    bare = Path("model.tflite")
    assert predicted_latency.predict(bare, None, BenchSettings()) is None
    with pytest.raises(DmsflowError, match=r"--profile: .*model.tflite: no manifest has its widths; give the"):
        predicted_latency.predict(bare, None, BenchSettings(profile=saved()))


@pytest.mark.parametrize(
    ("method", "title", "how"), [("measured", "board", "measured on"), ("modelled", "board (modelled)", "modelled for")]
)
def test_it_is_printed_with_where_it_comes_from(
    folder: Path, saved: Save, capsys: pytest.CaptureFixture[str], method: str, title: str, how: str
) -> None:
    found = of(folder, profile=saved(method=method))
    assert found
    measured = Timing(runtime="LiteRT 2.1", load_ms=1.0, runs_ms=(2.0,))
    predicted_latency.print_beside(found, measured, 2 * found.ms, MACHINE)
    shown = capsys.readouterr().err
    assert "-50.0" in shown and f"Predicted by block, profile {title}\n" in shown
    assert f"{title}: {how} ssh://pi@board (Cortex-A72), LCE 9.9, 1 thread, 2026-01-01\n" in shown
    assert f"{title} is of another processor: Cortex-A72, and this is paper\n" in shown
    assert f"{title} is of another runtime: LCE 9.9, and this is LiteRT 2.1\n" in shown


def test_a_profile_of_this_very_device_is_not_called_anothers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = of(folder)
    assert found
    measured = Timing(runtime="LCE 9.9", load_ms=1.0, runs_ms=(2.0,))
    predicted_latency.print_beside(found, measured, found.ms, Machine(processor="Cortex-A72", system="none"))
    assert "another" not in capsys.readouterr().err

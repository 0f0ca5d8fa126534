"""What people see of a profile and of a chain, and that no modelled number goes without its word."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest

from dmsflow import cli
from dmsflow.deploying import export
from dmsflow.errors import DmsflowError
from dmsflow.files import describe_artifact
from dmsflow.manifest import Flow, load_manifest, save_manifest
from dmsflow.measuring import bench
from dmsflow.network import cost, profile
from dmsflow.network.blocks import fused_blocks
from dmsflow.network.latency import build_latency
from dmsflow.plugin import load_plugin
from dmsflow.reporting import show
from dmsflow.reporting.show import show_file
from dmsflow.settings import BenchSettings, ExportSettings
from dmsflow.terminal import BLOCKS, block, milliseconds

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def network():
    return load_plugin("networks", "vgg11").build(1, 32, 10)


def printed(found) -> str:
    stream = io.StringIO()
    show.print_profile(found, stream)
    return stream.getvalue()


# --- a profile ----------------------------------------------------------------------------------


def test_a_profile_tells_where_it_is_from_and_how_good_it_is(network, make_profile):
    shown = [line.strip() for line in printed(make_profile(network)).splitlines()]
    rows = dict(re.split("  +", line, maxsplit=1) for line in shown[2 : shown.index("", 2)])
    assert rows["method"] == "measured"
    assert (rows["target"], rows["precision"], rows["device"]) == ("arm64", "binary", "ssh://pi@board")
    assert (rows["processor"], rows["runtime"], rows["threads"]) == ("Cortex-A72", "LCE 9.9", "1")
    assert rows["date"] == "2026-01-01"
    assert rows["overhead_ms"] == "0.002"
    assert re.split("  +", shown[shown.index("steps of widths") + 4]) == ["binary_conv", "16", "8"]
    assert rows["drift_percent"] == "0.5"
    # errors of -25 %, 2 % and 4 %
    assert rows["error on other networks"] == "median 4.0 %, largest 25.0 %; 2 of 3 within ±10 %"
    assert rows["command"] == "dmsflow profile --name board"
    points = sum(len(row) for table in make_profile(network).tables for row in table.ms)
    assert rows["points"] == f"{points}, of {len({block.name for block in fused_blocks(network)})} fused blocks"


def test_what_the_machine_told_is_shown(network, make_profile):
    heat = {"governor": "ondemand", "temperature_before_c": 40.0, "temperature_c": 61.0}
    shown = printed(make_profile(network, environment={"processor": "A72", **heat}, checked=(), precision="float"))
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for words in ("governor ondemand", "temperature_before_c 40", "temperature_c 61", "precision float"):
        assert words in lines
    assert "error on other networks not checked" in lines


def test_every_piece_is_a_table_of_its_times(network, make_profile):
    found = make_profile(network)
    lines = printed(found).splitlines()
    for table in found.tables:
        at = lines.index(f"{table.block}, ms")
        below = [line.split() for line in lines[at + 2 : at + 6]]
        if table.outputs:
            assert below[0] == ["in", "\\", "out", "16", "64"]
            assert below[2][0] == ("16" if table.inputs else "image")
        else:
            assert below[0] == ["in", "16", "64"]
        rows = below[2 : 2 + max(1, len(table.inputs))] if table.outputs else [below[2]]
        words = [word for row in rows for word in row[1:]]
        times = [ms for row in table.ms for ms in row]
        assert words[1::2] == [milliseconds(ms) for ms in times]
        shades = {ms: BLOCKS.index(shade) for ms, shade in zip(times, words[::2], strict=True)}
        assert [shades[ms] for ms in sorted(shades)] == sorted(shades.values())
        assert shades[max(times)] == len(BLOCKS) - 1
        assert len(shades) == 1 or shades[min(times)] == 0


def test_the_networks_it_was_checked_on_are_listed(network, make_profile):
    lines = [" ".join(line.split()) for line in printed(make_profile(network)).splitlines()]
    assert "vgg11 32 8 9 0.75 1 -25" in lines
    assert "vgg11 32 8 9 1.02 1 2" in lines


def test_the_word_stands_at_every_block_of_modelled_numbers(network, make_profile):
    found = make_profile(network, method="modelled")
    shown = printed(found)
    titles = 1 + len(found.tables) + 1
    assert shown.count("(modelled)") == titles
    assert "modelled" not in printed(make_profile(network))


def test_a_piece_that_takes_no_time_is_shown(network, make_profile):
    found = make_profile(network)
    none = [
        msgspec.structs.replace(table, ms=tuple(tuple(0.0 for _ in row) for row in table.ms)) for table in found.tables
    ]
    shown = printed(msgspec.structs.replace(found, tables=tuple(none)))
    assert "▁ 0" in shown and "█" not in shown


def test_show_takes_a_profile(network, make_profile, tmp_path, capsys):
    path = profile.save_profile(tmp_path / "board.json", make_profile(network))
    assert cli.main(["show", str(path)]) == 0
    assert capsys.readouterr().out == printed(make_profile(network))
    assert cli.main(["show", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_bytes())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a manifest or a profile (Input data was truncated); give a manifest that a stage wrote"),
        ('{"tables": [1], ', "is not a manifest or a profile (Input data was truncated); "),
        (
            "[1]",
            "is not a manifest or a profile; give a manifest that a stage wrote, a profile, or a .tflite or .onnx file",
        ),
        ('{"name": "x"}', "is not a manifest or a profile; "),
        ('{"tables": 3}', "is not a profile (Expected `array`"),
        ('{"tables": [], "stage": "bench"}', "is not a dmsflow manifest ("),
    ],
)
def test_what_is_neither_is_refused(content, message, tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text(content)
    assert cli.main(["show", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"dmsflow: {path}: ") and captured.err.count("\n") == 1
    assert message in captured.err


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DmsflowError, match="none.json: No such file or directory; give a manifest"):
        show_file(tmp_path / "none.json", False, io.StringIO())


def test_profiles_are_listed_with_what_they_are(network, make_profile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    monkeypatch.setattr(profile, "shipped_folder", lambda kind: tmp_path / "none")
    for name, fields in (
        ("board", {}),
        ("dream", {"method": "modelled", "threads": 4, "checked": ()}),
        ("floats", {"precision": "float"}),
    ):
        profile.save_profile(tmp_path / "profiles" / f"{name}.json", make_profile(network, name=name, **fields))
    (tmp_path / "profiles" / "broken.json").write_text("{}")
    assert show.listing("profiles") == [
        ("board", "Cortex-A72, LCE 9.9, 1 thread, median error 4.0 %"),
        (
            "broken",
            "profiles/broken.json: is not a profile (Object missing required field `name`); measure it again: dmsflow profile",
        ),
        ("dream", "modelled, Cortex-A72, LCE 9.9, 4 threads, error not checked"),
        ("floats", "Cortex-A72, LCE 9.9, 1 thread, float32 networks, median error 4.0 %"),
    ]


# --- a chain ------------------------------------------------------------------------------------


@pytest.fixture(params=["measured", "modelled"])
def chain(request, tmp_path, phone, write_train_manifest, make_profile) -> Path:
    """The bench.json of a chain whose search used a profile; the file took 2 ms."""
    source = write_train_manifest(tmp_path)
    trained = load_manifest(source)
    made = make_profile(trained.network, method=request.param)
    profile.save_profile(tmp_path / "profile.json", made)
    figures = {"predicted_latency_ms": build_latency(trained.network, made)(trained.widths)}
    found = msgspec.structs.replace(
        trained,
        stage="search",
        artifacts={"profile": describe_artifact(tmp_path / "profile.json", tmp_path)},
        metrics={**figures, "comparison": [{"name": "searched", **figures}, {"name": "equal", **figures}]},
        settings={},
    )
    parent = describe_artifact(save_manifest(tmp_path / "search.json", found), tmp_path)
    save_manifest(source, msgspec.structs.replace(trained, parent=parent))
    exported = export.run_stage(source, ExportSettings(target="x86-64", check_images=2), tmp_path, Flow(("x",)))
    lean = BenchSettings(device=phone, runs=3, accuracy=False, baseline="none")
    return bench.run_stage(exported, lean, tmp_path, Flow(("x",)))


def test_a_chain_shows_what_was_predicted(chain, capsys):
    written = load_manifest(chain)
    used = profile.load_profile(str(chain.parent / "profile.json"))
    assert cli.main(["show", str(chain)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    word = " (modelled)" if used.method == "modelled" else ""
    predicted = f"{written.metrics['predicted_latency_ms']:.4g}"
    assert lines.count(f"predicted_latency_ms{word} {predicted}") == 2  # of the search, and of the bench
    assert f"prediction_error_percent{word} {written.metrics['prediction_error_percent']:.4g}" in lines
    assert f"name predicted latency ms{word}" in lines
    (head,) = (at for at, line in enumerate(lines) if line.startswith("piece "))
    assert {"predicted", "share", *word.split()} <= set(" ".join(lines[head - 2 : head + 1]).split())
    assert lines.count(f"profile board{word}") == 2
    for words in ("on Kirin 990, Linux aarch64", "governor schedutil", "temperature °C 41.5"):
        assert words in lines
    if not word:
        assert "modelled" not in "\n".join(lines).replace(str(chain), "")


def test_the_end_of_a_run_shows_predicted_beside_measured(chain):
    stream = io.StringIO()
    show.print_result(chain, stream)
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    metrics = load_manifest(chain).metrics
    title = profile.load_profile(str(chain.parent / "profile.json")).title
    at = lines.index("latency, 1-bit file 2.000 ms (median)")
    error = f"{100 * (metrics['predicted_latency_ms'] / 2 - 1):+.1f} %"
    assert lines[at + 1] == f"latency, predicted {metrics['predicted_latency_ms']:.3f} ms by profile {title}, {error}"
    assert any(line.startswith("measured Kirin 990, 1 thread, LCE 0.17, 3 runs") for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_terminal_breaks_no_word(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")
    names = ("loss_difference", "standard_error", "memory_mib", "macs_m", "top1_percent", "images")
    record = {
        "name": "searched",
        "widths": {f"conv{at}": 111 + at for at in range(12)},
        **dict.fromkeys(names, 0.12345),
    }
    stream = Terminal()
    show._print_nested("comparison", [record, {**record, "name": "uniform"}], "", stream)
    words = re.findall(r"[\w.]+", stream.getvalue())
    assert set(words) == {
        *("comparison", "continued", "name", "searched", "uniform", "widths", "0.1235"),
        *(str(111 + at) for at in range(12)),
        *(word for name in names for word in name.split("_")),
    }
    assert max(map(len, stream.getvalue().splitlines())) <= columns


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.00123456, "0.00123"),
        (0.04567, "0.0457"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (999.6, "1000"),
        (1234.5, "1234"),
    ],
)
def test_milliseconds_have_three_digits(value, shown):
    assert milliseconds(value) == shown


def test_blocks_rise_with_their_part():
    drawn = [block(index / 100) for index in range(101)]
    assert drawn == sorted(drawn)
    assert (drawn[0], drawn[-1], set(drawn)) == ("▁", "█", set(BLOCKS))


def test_a_folder_is_shown_as_its_own_run_whatever_lies_below_or_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below a run are its other widths and the times of other devices, beside its files perhaps the bench of a bare one."""
    run, several = tmp_path / "run", tmp_path / "several"
    for folder in (run, run / "0.03mib", several / "a", several / "b"):
        shutil.copytree(MODELS / "digits", folder)
    assert cli.main(["show", str(run)]) == 0
    assert f"bench: {run / 'bench.json'}" in unwrapped(capsys)
    assert cli.main(["show", str(several)]) == 1
    assert f"{several}: has several runs: a and b; give the folder of one run" in unwrapped(capsys)
    bench = run / "bench.json"
    written = json.loads(bench.read_bytes())
    bare = {key: value for key, value in written.items() if key not in ("network", "widths", "data", "parent")}
    bench.write_text(json.dumps({**bare, "artifacts": {}}))
    assert cli.main(["show", str(run)]) == 0
    shown = unwrapped(capsys)
    assert f"export: {run / 'export.json'}" in shown and "latency_ms_median" not in shown
    for words in ([], ["--json"]):
        assert cli.main(["show", str(bench), *words]) == 0
        assert "latency_ms_median" in unwrapped(capsys)


def unwrapped(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join("".join(capsys.readouterr()).split())


def test_a_network_trained_in_float_costs_what_floats_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(MODELS / "digits", tmp_path / "run")
    for name in ("bench.json", "export.json"):
        (folder / name).unlink()
    train = json.loads((folder / "train.json").read_bytes())
    train["settings"]["precision"] = "float"
    (folder / "train.json").write_text(json.dumps(train))
    assert cli.main(["show", str(folder)]) == 0
    network = load_manifest(folder / "train.json")
    memory = cost.memory_bytes(network.network, network.widths, binary=False) / cost.MIB
    assert f"chosen {memory:.4f}" in unwrapped(capsys)

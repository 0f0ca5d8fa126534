"""Profiles made on a device whose every operation has a known time: then every prediction must be right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dmsflow import cli
from dmsflow.errors import DmsflowError
from dmsflow.files import locked
from dmsflow.importing import load_network
from dmsflow.measuring import profiling
from dmsflow.network import profile
from dmsflow.network.latency import build_latency
from dmsflow.network.profile import Granularity, Profile
from dmsflow.settings import ProfileSettings

DEVICE = '''
"""A device that reads the file and adds up what each operation would take."""

import contextlib
import json
from pathlib import Path

from dmsflow.modelfile import tflite
from dmsflow.measuring.devices import Machine, Measurement, Timing
from dmsflow.deploying.exporters import lce

LOG = Path(__file__).with_suffix(".log")  # jobs so far, and what to do in them


def up(width, step):
    return -(-width // step) * step


def operation_ms(op, inputs, outputs, options):
    """Kernels of LCE: 32 channels a word in, 4 at a time out; a float convolution 16 at a time."""
    if op == "LceBconv2d":
        words, size = inputs[0][3], inputs[1][1] * inputs[1][2]
        return 1e-3 + 1e-7 * size * outputs[0][1] * outputs[0][2] * 32 * words * up(inputs[1][0], 4)
    if op == "CONV_2D":
        size = inputs[1][1] * inputs[1][2] * inputs[1][3]
        return 1e-3 + 1e-7 * size * outputs[0][1] * outputs[0][2] * up(outputs[0][3], 16)
    pixels = 1
    for side in outputs[0][:3]:
        pixels *= side
    return 1e-4 + 1e-8 * pixels * (outputs[0][3] if len(outputs[0]) == 4 else 1) * (0 if outputs[0][1:3] == (1, 1) else 1)


def file_ms(path):
    model = tflite.read_model(Path(path))
    graph = model["subgraphs"][0]
    names = [code.get("custom_code") or tflite.OPERATORS[max(code.get("deprecated_builtin_code", 0), code.get("builtin_code", 0))] for code in model["operator_codes"]]
    shapes = [tuple(tensor.get("shape", ())) for tensor in graph["tensors"]]
    total = 0.05
    for operator in graph["operators"]:
        inputs = [shapes[number] for number in operator["inputs"] if number >= 0]
        outputs = [shapes[number] for number in operator["outputs"]]
        total += operation_ms(names[operator.get("opcode_index", 0)], inputs, outputs, {})
    return total


def measure(job):
    state = json.loads(LOG.read_text())
    state["jobs"] += 1
    state["files"] += len(job.files) - 1
    LOG.write_text(json.dumps(state))
    if state["jobs"] == state.get("interrupt"):
        raise KeyboardInterrupt
    slower = 1 + state.get("drift", 0) * state["jobs"]
    if state.get("disturbed") and state["jobs"] % 2:
        slower = 1.7
    return Measurement(
        timings=tuple(
            Timing(runtime=state.get("runtime", "LCE 0"), load_ms=1, runs_ms=tuple(slower * file_ms(file.path) for _ in range(min(job.runs, state.get("samples", job.runs)))))
            for file in job.files
        ),
        machine=Machine(processor=state.get("processor", "paper"), system="none", governor="performance", temperature_c=40 + state["jobs"]),
    )


@contextlib.contextmanager
def connect(address, access):
    yield measure
'''

SMALL: dict[str, Any] = {"networks": ("vgg11",), "max_ratio": 2.0, "points": 3, "runs": 4, "check": 3}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmsflow.measuring.timing.PAUSE_S", 0.0)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "paper.py"
    path.write_text(DEVICE)
    tell(path)
    return path


def tell(device: Path, **what: Any) -> None:
    device.with_suffix(".log").write_text(json.dumps({"jobs": 0, "files": 0, **what}))


def heard(device: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads(device.with_suffix(".log").read_text())
    return found


def measured(device: Path, out: Path, name: str = "paper", **changes: Any) -> Profile:
    flags = {flag: changes.pop(flag) for flag in ("resume", "force", "add") if flag in changes}
    chosen = ProfileSettings(device=str(device), **{**SMALL, **changes})
    path = profiling.measure_profile(chosen, name, out, command=("dmsflow", "profile", "--name", name), **flags)
    assert path == out / f"{name}.json"
    return profile.load_profile(str(path))


@pytest.mark.parametrize("network", ["vgg11", "resnet18"])
def test_what_was_measured_predicts_networks_that_were_not(device: Path, tmp_path: Path, network: str) -> None:
    made = measured(device, tmp_path, networks=(network,), points=4)
    binary, stem = Granularity(inputs=32, outputs=4), Granularity(outputs=16)
    assert made.steps == {"binary_conv": binary, "conv": stem, "int8_conv": stem}
    assert len(made.checked) == 3
    # A width is also padded to words of bits by quantisers, which the profile takes for a slope.
    assert max(abs(row.error_percent) for row in made.checked) < 1.0
    assert {row.resolution for row in made.checked} == {32}
    assert made.method == "measured" and made.runtime == "LCE 0" and made.threads == 1
    assert made.environment["processor"] == "paper" and made.environment["governor"] == "performance"
    assert made.environment["temperature_before_c"] < made.environment["temperature_c"]
    assert made.commands == (("dmsflow", "profile", "--name", "paper"),)
    assert not (tmp_path / "paper.partial").exists()


def test_spells_of_a_disturbed_machine_do_not_count(device: Path, tmp_path: Path) -> None:
    quiet = measured(device, tmp_path, "quiet")
    tell(device, disturbed=True)
    disturbed = measured(device, tmp_path, "disturbed")
    assert disturbed.tables == quiet.tables
    assert disturbed.checked == quiet.checked


def test_a_device_that_tells_few_averages_is_not_asked_again(device: Path, tmp_path: Path) -> None:
    whole = measured(device, tmp_path, "whole", runs=40)
    jobs = heard(device)["jobs"]
    tell(device, samples=3)
    assert measured(device, tmp_path, "averages", runs=40).tables == whole.tables
    assert heard(device)["jobs"] == jobs


def test_a_device_that_throttles_is_reported(device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(device, drift=0.01)
    made = measured(device, tmp_path)
    assert made.drift_percent > profiling.THROTTLED_PERCENT
    assert f"{made.drift_percent:.0f} % slower while it was measured" in capsys.readouterr().err
    tell(device)
    steady = measured(device, tmp_path, "steady")
    assert steady.drift_percent == 0
    assert "slower" not in capsys.readouterr().err


def test_an_interrupted_profile_resumes(device: Path, tmp_path: Path) -> None:
    whole = measured(device, tmp_path, "whole")
    needed = heard(device)["files"]
    tell(device, interrupt=10)
    with pytest.raises(KeyboardInterrupt):
        measured(device, tmp_path, "halves")
    done = heard(device)["files"]
    assert (tmp_path / "halves.partial").exists() and not (tmp_path / "halves.json").exists()
    tell(device)
    with pytest.raises(DmsflowError, match="was started with other options"):
        measured(device, tmp_path, "halves", resume=True, points=5)
    resumed = measured(device, tmp_path, "halves", resume=True)
    assert heard(device)["files"] <= needed - done + profiling.BATCH
    assert (resumed.tables, resumed.steps, resumed.checked) == (whole.tables, whole.steps, whole.checked)
    jobs = heard(device)["jobs"]
    assert measured(device, tmp_path, "halves", resume=True) == resumed  # it is done
    assert heard(device)["jobs"] == jobs


def test_an_overwriting_profile_resumes_too(device: Path, tmp_path: Path) -> None:
    before = measured(device, tmp_path)
    tell(device, interrupt=10)
    with pytest.raises(KeyboardInterrupt):
        measured(device, tmp_path, force=True, points=4)
    assert profile.load_profile(str(tmp_path / "paper.json")) == before
    tell(device)
    assert len(measured(device, tmp_path, resume=True, points=4).tables[1].inputs) >= len(before.tables[1].inputs)


def test_add_measures_only_what_is_lacking(device: Path, tmp_path: Path) -> None:
    first = measured(device, tmp_path)
    tell(device)
    assert measured(device, tmp_path, add=True) == first
    assert heard(device)["jobs"] == 0
    more = measured(device, tmp_path, add=True, networks=("vgg11", "resnet18"))
    assert {table.block for table in more.tables} > {table.block for table in first.tables}
    assert set(more.tables) & set(first.tables)  # those that ResNet-18 asks no wider ones of
    assert more.checked[: len(first.checked)] == first.checked
    build_latency(load_network("resnet18", 3, 32, 10), more)
    assert len(more.commands) == 2


def test_what_is_added_to_a_profile_of_dmsflows_is_written_beside_it(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(device, tmp_path / "shipped")
    monkeypatch.setattr(profile, "_folders", lambda: (tmp_path / "profiles", tmp_path / "shipped"))
    assert measured(device, tmp_path / "profiles", add=True) == first == profile.load_profile("paper")
    more = measured(device, tmp_path / "profiles", add=True, networks=("vgg11", "resnet18"))
    assert {table.block for table in more.tables} > {table.block for table in first.tables}
    assert profile.load_profile("paper") == more
    assert profile.load_profile(str(tmp_path / "shipped" / "paper.json")) == first


def test_add_measures_wider_where_that_is_asked_for(device: Path, tmp_path: Path) -> None:
    network = load_network("vgg11", 3, 32, 10)
    before = build_latency(network, measured(device, tmp_path)).widest()
    after = build_latency(network, measured(device, tmp_path, add=True, max_ratio=3.0)).widest()
    assert all(after[name] >= 3 * base > before[name] for name, base in network.widths.items())


@pytest.mark.parametrize("job", [1, 10])
def test_a_profile_with_force_that_is_killed_anywhere_leaves_the_old_one_and_goes_on(
    device: Path, tmp_path: Path, job: int
) -> None:
    before = measured(device, tmp_path)
    tell(device, interrupt=job, drift=0.0)
    with pytest.raises(KeyboardInterrupt):
        measured(device, tmp_path, force=True, points=4)
    assert profile.load_profile(str(tmp_path / "paper.json")) == before
    with pytest.raises(
        DmsflowError, match=r"paper\.partial: is of an interrupted run; use --resume to continue, or --fo"
    ):
        measured(device, tmp_path, points=4)
    tell(device)
    made = measured(device, tmp_path, resume=True, points=4)
    assert made != before and heard(device)["jobs"] > 5
    assert sorted(path.name for path in tmp_path.glob("*paper*")) == ["paper.json", "paper.log", "paper.py"]


def test_what_is_added_is_added_though_resume_does_not_say_so(device: Path, tmp_path: Path) -> None:
    before = measured(device, tmp_path)
    tell(device, interrupt=10)
    both = ("vgg11", "resnet18")
    with pytest.raises(KeyboardInterrupt):
        measured(device, tmp_path, add=True, networks=both)
    tell(device)
    made = measured(device, tmp_path, resume=True, networks=both)
    assert made.checked[:3] == before.checked and len(made.tables) > len(before.tables) and len(made.commands) == 2


def test_one_profile_at_a_time_is_measured_in_a_folder(device: Path, tmp_path: Path) -> None:
    (tmp_path / ".desk.json.x.partial").write_text("half")
    with locked(tmp_path / "out"), pytest.raises(DmsflowError, match="out: is in use by another run of dmsflow; wait"):
        measured(device, tmp_path / "out")
    measured(device, tmp_path)
    assert not (tmp_path / ".desk.json.x.partial").exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "-x", "a b", "a\n", "a\x1b[31m", "/etc/x"])
def test_a_name_that_is_none_is_refused(device: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(DmsflowError, match="^--name .*: is not a name; use letters, digits, dashes and underscores"):
        measured(device, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_add_and_resume_together_add_what_is_lacking(device: Path, tmp_path: Path) -> None:
    measured(device, tmp_path)
    more = measured(device, tmp_path, add=True, resume=True, networks=("vgg11", "resnet18"))
    build_latency(load_network("resnet18", 3, 32, 10), more)


@pytest.mark.parametrize("changed", ["processor", "runtime"])
def test_times_of_two_devices_are_never_mixed(device: Path, tmp_path: Path, changed: str) -> None:
    """`local` is another machine elsewhere, and a profile that ships is of neither."""
    before = measured(device, tmp_path)
    tell(device, **{changed: "another"})
    with pytest.raises(
        DmsflowError,
        match=r"paper\.json: was measured on paper with LCE 0, and this is .*another.*; use another --name",
    ):
        measured(device, tmp_path, add=True, networks=("resnet18",))
    assert profile.load_profile(str(tmp_path / "paper.json")) == before


def test_a_profile_is_not_overwritten_nor_mixed_with_another(device: Path, tmp_path: Path) -> None:
    measured(device, tmp_path)
    with pytest.raises(DmsflowError, match="already exists; use --add to measure missing blocks"):
        measured(device, tmp_path)
    with pytest.raises(DmsflowError, match="has threads 1, not 2; use --threads 1, or another --name"):
        measured(device, tmp_path, add=True, threads=2)
    measured(device, tmp_path, force=True)


def test_a_damaged_partial_is_refused(device: Path, tmp_path: Path) -> None:
    (tmp_path / "paper.partial").write_text('{"settings": ')
    with pytest.raises(DmsflowError, match="paper.partial: is damaged"):
        measured(device, tmp_path, resume=True)


def test_float32_networks_need_a_target_that_has_them(device: Path, tmp_path: Path) -> None:
    with pytest.raises(DmsflowError, match="target x86-64: takes binary networks only"):
        measured(device, tmp_path, precision="float")


def test_the_plan_measures_and_writes_nothing(device: Path, tmp_path: Path) -> None:
    rows = dict(profiling.plan_profile(ProfileSettings(device=str(device), **SMALL), "paper", tmp_path))
    assert rows["writes"] == str(tmp_path / "paper.json")
    assert rows["fused blocks"].startswith("11 of vgg11 at 32 pixels")
    assert heard(device)["jobs"] == 0
    assert not list(tmp_path.glob("*.json.*")) and not (tmp_path / "paper.json").exists()


def test_the_real_thing_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This machine, every point measured in a few runs: no figure is held, only that all of it works."""
    words = ["--networks", "vgg11", "--max-ratio", "0.5", "--points", "2", "--runs", "3", "--check", "1"]
    assert cli.main(["profile", "--name", "here", "--out", str(tmp_path), *words]) == 0
    path = Path(capsys.readouterr().out.strip())
    made = profile.load_profile(str(path))
    assert made.runtime.startswith("LiteRT ") and made.device == "local"
    assert (
        build_latency(load_network("vgg11", 3, 32, 10), made)(dict.fromkeys(load_network("vgg11", 3, 32, 10).widths, 8))
        > 0
    )
    assert msgspec.json.decode(path.read_bytes())["environment"]["processor"]


def test_binary_networks_need_a_target_that_has_them(tmp_path: Path) -> None:
    settings = ProfileSettings(target="onnx-int8")
    with pytest.raises(DmsflowError, match="target onnx-int8: takes float32 networks only; use it with --precision fl"):
        profiling.plan_profile(settings, "x", tmp_path, add=False)

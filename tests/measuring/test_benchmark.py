"""The static benchmark program: LCE's bits, what adb reads of it, and damaged files.

It runs as it is on x86-64, under sanitizers, and as it is shipped for aarch64, in an emulator. No phone was
used here.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import one_operator
import pytest
import test_adb
import witnessed
from one_operator import Tensor

from dmsflow import native
from dmsflow.deploying.exporters import lce as exporter
from dmsflow.errors import DmsflowError
from dmsflow.measuring import devices
from dmsflow.measuring.devices import File, Job
from dmsflow.measuring.devices.phone import benchmark_program
from dmsflow.modelfile import reader

IMAGES = 4
ONCE = ("--num_runs=1", "--min_secs=0")
phone = test_adb.phone


@pytest.fixture
def host(sanitized_benchmark: tuple[str, ...]) -> tuple[str, ...]:
    return sanitized_benchmark


@pytest.fixture(params=["host", "arm"])
def program(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module", params=["vgg11", "resnet18"])
def kept(request: pytest.FixtureRequest) -> witnessed.Converted:
    return witnessed.networks()[request.param]


@pytest.fixture(scope="module")
def model(kept: witnessed.Converted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / f"{kept.graph.name}.tflite"
    exporter.write(kept.graph, path)
    return path


def outputs(program: tuple[str, ...], path: Path, values: np.ndarray, *options: str) -> np.ndarray:
    given, told = path.with_suffix(".in"), path.with_suffix(".out")
    values.astype(np.float32).tofile(given)
    files = (f"--graph={path}", f"--input_file={given}", f"--output_file={told}")
    done = subprocess.run((*program, *files, *options), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.fromfile(told, np.float32).reshape(len(values), -1)


def test_a_network_ends_as_in_the_official_interpreter(
    program: tuple[str, ...], model: Path, kept: witnessed.Converted
) -> None:
    told = outputs(program, model, kept.images)
    assert np.ptp(kept.logits) > 0
    assert (told.argmax(1) == kept.logits.argmax(1)).all()
    np.testing.assert_allclose(told, kept.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [(), ("--num_threads=3", "--kernels=portable")])
@pytest.mark.parametrize("part", witnessed.operators("parts"), ids=lambda part: part.name)
def test_between_sums_of_floats_the_bits_are_equal(
    program: tuple[str, ...], options: tuple[str, ...], part: witnessed.Operators, tmp_path: Path
) -> None:
    path = tmp_path / "inner.tflite"
    path.write_bytes(part.model)
    assert np.ptp(part.expected) > 0
    assert outputs(program, path, part.values, *options).tobytes() == part.expected.tobytes()


def test_what_it_prints_is_read(program: tuple[str, ...], model: Path) -> None:
    def run(index: int, options: tuple[str, ...], limit_s: float) -> str:
        command = (*program, f"--graph={model}", *options)
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit_s).stdout

    job = Job(
        files=(File(path=str(model), runner="litert"),), threads=2, warm_up=1, runs=2, memory=True, operations=True
    )
    (timing,) = benchmark_program.time_files(job, Path(program[-1]), run)
    assert len(timing.runs_ms) == 2 and min(timing.runs_ms) > 0 and timing.load_ms > 0
    assert timing.peak_memory_bytes and timing.peak_memory_bytes > 2**20
    assert [each.op for each in timing.operations] == [each.op for each in reader.read_model_file(model).ops]
    assert timing.operations[0].name.endswith("/centred")
    assert 0 < sum(each.ms for each in timing.operations) < 100 * max(timing.runs_ms)


def test_a_phone_gets_it_unless_another_is_named(
    phone, monkeypatch: pytest.MonkeyPatch, host: tuple[str, ...], model: Path
) -> None:
    monkeypatch.setattr(native, "benchmark", lambda: Path(host[0]))
    job = Job(files=(File(path=str(model), runner="litert"),), threads=1, warm_up=1, runs=2, memory=False)
    with devices.connect(f"adb://{test_adb.SERIAL}") as measure:
        (timing,) = measure(job).timings
    assert timing.runtime.startswith("dmsflow-benchmark sha256:") and min(timing.runs_ms) > 0


def test_an_operator_that_a_phone_lacks_is_named(
    phone, monkeypatch: pytest.MonkeyPatch, host: tuple[str, ...], tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "benchmark", lambda: Path(host[0]))
    path = tmp_path / "model.tflite"
    path.write_bytes(one_operator.dumps("GELU", [Tensor([1])], [Tensor([1])]))
    job = Job(files=(File(path=str(path), runner="litert"),), threads=1, warm_up=1, runs=2, memory=False)
    with devices.connect(f"adb://{test_adb.SERIAL}") as measure, pytest.raises(DmsflowError) as told:
        measure(job)
    assert str(told.value) == (
        f"device adb://{test_adb.SERIAL}: the program that runs model.tflite failed there (ERROR: it needs operators that "
        "dmsflow's benchmark program lacks: GELU); run it on LiteRT, or where there is none (a phone) give LCE's "
        "lce_benchmark_model as --runner-file"
    )


def test_the_shipped_program_needs_nothing_of_a_device(arm: tuple[str, ...]) -> None:
    head = subprocess.run(("readelf", "-hld", arm[-1]), check=True, capture_output=True, text=True).stdout
    assert "AArch64" in head and "INTERP" not in head and "no dynamic section" in head


# --- what can go wrong --------------------------------------------------------------------------


def refused(program: tuple[str, ...], *options: str) -> str:
    done = subprocess.run((*program, *options), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert all(line.startswith("ERROR: ") for line in done.stderr.splitlines()), done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ((), "give --graph=FILE"),
        (("--graph=none.tflite",), "cannot open none.tflite"),
        (("--graph=",), "--graph= is no option"),
        (("--graph=x", "--num_threads=0"), "--num_threads=0 is no option"),
        (("--graph=x", "--frobnicate=1"), "--frobnicate=1 is no option"),
        ((f"--graph={__file__}",), "is no .tflite file"),
        (("--graph=/",), "cannot read /"),
    ],
)
def test_an_error_is_reported(options: tuple[str, ...], what: str, host: tuple[str, ...]) -> None:
    assert what in refused(host, *options)


def test_unknown_kernels_and_unfitting_images_are_reported(host: tuple[str, ...], model: Path, tmp_path: Path) -> None:
    assert "'abacus'" in refused(host, f"--graph={model}", "--kernels=abacus")
    given = tmp_path / "odd"
    given.write_bytes(bytes(100))
    files = (f"--input_file={given}", f"--output_file={tmp_path / 'out'}")
    assert "does not hold inputs of 12288 bytes" in refused(host, f"--graph={model}", *files)


def test_help_says_how_floats_are_calculated(host: tuple[str, ...]) -> None:
    text = subprocess.run((*host, "--help"), check=True, capture_output=True, text=True).stdout
    assert "--graph=FILE" in text and "simple loops" in text


def test_damaged_files_are_refused_or_run(host: tuple[str, ...], model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    words = np.frombuffer(whole[: len(whole) // 4 * 4], "<u4")
    places = 4 * np.flatnonzero(words < len(whole))  # offsets, counts and sizes, rather than weights
    path, told = tmp_path / "damaged.tflite", {0: 0, 1: 0}
    for seed in range(60):
        random = np.random.default_rng(seed)
        data = bytearray(whole[: random.integers(len(whole))] if seed % 12 == 0 else whole)
        for _ in range(4):
            at = min(int(random.choice(places)), len(data) - 4)
            number = random.choice([0, 1, 33, 65535, 2**31 - 1, 2**32 - 1, random.integers(len(whole))])
            data[at : at + 4] = int(number).to_bytes(4, "little")
        path.write_bytes(data)
        done = subprocess.run((*host, f"--graph={path}", *ONCE), capture_output=True, text=True, check=False)
        told[done.returncode] += 1
        assert re.match("ERROR: " if done.returncode else "$", done.stderr), done.stderr
    assert min(told.values()) > 0

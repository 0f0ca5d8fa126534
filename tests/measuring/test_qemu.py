"""The emulated ARM device: the bits of x86-64, times that repeat and say that they are modelled, errors in one line."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import witnessed
from made_up import MEAN, STD, odd_widths, pixels, trained
from test_native import CROSS, wheel

from dmsflow.deploying import export, folding
from dmsflow.deploying.exporters import lce as exporter
from dmsflow.deploying.exporters import onnx as float_exporter
from dmsflow.errors import DmsflowError
from dmsflow.manifest import Flow
from dmsflow.measuring import bench, devices, profiling
from dmsflow.measuring.devices import Access, File, Job, Machine, Measurement, Timing, qemu
from dmsflow.measuring.devices.emulated import parts
from dmsflow.measuring.random_weights import draw_weights
from dmsflow.modelfile import tflite
from dmsflow.modelfile.runners import litert
from dmsflow.network import profile
from dmsflow.network.architectures import resnet18, vgg11
from dmsflow.settings import BenchSettings, ExportSettings, ProfileSettings

ROOT = Path(__file__).parents[2]
IMAGES = 4
# Runs in the emulated Python: each file on its images, by the runner that dmsflow itself uses.
RUN = """
import sys
from collections.abc import Iterator
from pathlib import Path
import numpy as np
from dmsflow.modelfile.runners import litert
for name in sys.argv[1:]:
    session = litert.open(Path(name))
    values = np.load(Path(name).with_suffix(".npy"))
    np.save(Path(name).with_suffix(".arm.npy"), np.stack([session.run(one[None]) for one in values]))
"""


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A VGG-11 and a ResNet-18, whole and between their float ends, with images beside them."""
    folder = tmp_path_factory.mktemp("networks")
    for build in (vgg11.build, resnet18.build):
        network = build(3, 32, 10)
        widths = odd_widths(network, 0)
        form = folding.fold(network, widths, trained(network, widths, 0, 1.0, pixels(network, 20)), MEAN, STD)
        path = folder / f"{network.name}.tflite"
        exporter.write(form, path)
        np.save(path.with_suffix(".npy"), pixels(network, IMAGES).astype(np.float32))
        inner, shape = witnessed.exact_part(path.read_bytes())
        path.with_name(f"{network.name}-inner.tflite").write_bytes(inner)
        values = np.random.default_rng(0).normal(size=(IMAGES, *shape[1:])).astype(np.float32)
        np.save(path.with_name(f"{network.name}-inner.npy"), values)
    return folder


@contextlib.contextmanager
def set_up(address: str) -> Iterator[qemu.Emulated]:
    """The device behind an address, to run something in its Python."""
    with qemu.connect(address, Access()) as measure:
        yield measure.args[0]


def run_there(address: str, arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
    with set_up(address) as device:
        done = qemu.emulate(device, *arguments)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done


def run_here(path: Path) -> np.ndarray:
    session = litert.open(path)
    return np.stack([session.run(image[None]) for image in np.load(path.with_suffix(".npy"))])


# --- the bits -----------------------------------------------------------------------------------


def test_vgg11_and_resnet18_give_the_logits_of_x86_64(networks):
    paths = sorted(networks.glob("*.tflite"))
    assert len(paths) == 4
    run_there("qemu", ["-c", RUN, *map(str, paths)])
    for path in paths:
        there, here = np.load(path.with_suffix(".arm.npy")), run_here(path)
        assert there.shape == here.shape and there.dtype == here.dtype
        if path.stem.endswith("-inner"):
            assert there.tobytes() == here.tobytes()
        else:  # a sum of floats, the last layer's, depends on its order
            np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-5 * np.abs(here).max())
            assert (there.argmax(-1) == here.argmax(-1)).all()


@pytest.mark.parametrize("address", ["qemu://cortex-a53", "qemu://cortex-a76"])
def test_random_operators_give_the_official_interpreters_bits(tmp_path, address):
    """With all kernels that the core has: portable, neon, and the A76's dot products."""
    witnessed.write_operators(tmp_path)
    done = run_there(address, [str(ROOT / "tests" / "native" / "check.py"), str(tmp_path), str(parts.library())])
    said = done.stdout.decode()
    assert "neon" in said and ("neon-dotprod" in said) == address.endswith("a76"), said


def test_the_wheel_gives_the_top1_of_x86_64(tmp_path, write_train_manifest):
    """dmsflow itself, installed for aarch64 with the LiteRT of PyPI, on real images."""
    exports = []
    for name in ("vgg11", "resnet18"):
        source = write_train_manifest(tmp_path / name, name)
        settings = ExportSettings(target="arm64", check_images=1)
        exports.append(str(export.run_stage(source, settings, tmp_path / name, Flow(("x",)))))
    made = wheel(ROOT, tmp_path, CMAKE_TOOLCHAIN_FILE=str(CROSS))
    script = [sys.executable, str(ROOT / "benchmarks" / "arm_wheel.py"), str(made), *exports, "--images", "50"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "neon-dotprod" in done.stderr and done.stderr.count("manylinux2014_aarch64") == 1
    assert "Python 3.13" in " ".join(done.stderr.split())  # of today's Raspberry Pi OS


# --- the times ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(networks):
    job = Job(
        files=(File(path=str(networks / "vgg11.tflite"), runner="litert"),),
        threads=1,
        warm_up=9,
        runs=7,
        operations=True,
    )
    with devices.connect("qemu://cortex-a72") as measure:
        return measure(job), measure(job)


def test_times_are_modelled_and_repeat(measured):
    first, again = measured
    assert first.machine == again.machine and first.machine.method == "modelled"
    assert first.machine.processor.startswith("cortex-a72 class at 1.5 GHz (Raspberry Pi 4B), cycles of LLVM 19's")
    (one,), (other,) = first.timings, again.timings
    assert len(one.runs_ms) == 7 and len(set(one.runs_ms)) == 1 and one.runs_ms[0] > 0
    # Another process lies at other addresses: a copy or a search in the C library takes a few instructions more.
    assert other.runs_ms == pytest.approx(one.runs_ms, rel=1e-4)
    assert one.peak_memory_bytes is None and one.load_ms > one.runs_ms[0]
    assert one.runtime.startswith("LiteRT ") and one.runtime.endswith(" neon")


def test_the_first_measurement_compiles_no_python(networks, tmp_path, monkeypatch):
    """Compiling moves what is allocated later, and so the cycles of copies: the set-up does it."""
    patterns = ("debian-*", "litert-*", "delegate-*", "plugin-*", "cycles-*")
    with set_up("qemu"):  # all of them are there
        kept = [path for pattern in patterns for path in parts.folder().glob(pattern)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for path in kept:
        place = parts.folder() / path.name
        shutil.copytree(path, place, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    job = Job(files=(File(path=str(networks / "vgg11.tflite"), runner="litert"),), threads=1, warm_up=0, runs=1)
    with devices.connect("qemu") as measure:
        before = set(tmp_path.rglob("*.pyc"))
        first = measure(job).timings[0]
        assert before and set(tmp_path.rglob("*.pyc")) == before
        assert measure(job).timings[0].runs_ms == pytest.approx(first.runs_ms, rel=1e-4)


def test_operations_are_those_of_the_file(measured, networks):
    timing = measured[0].timings[0]
    kinds = [each.op for each in timing.operations]
    model = tflite.read_model(networks / "vgg11.tflite")
    codes = [code.get("custom_code", "") for code in model["operator_codes"]]
    operators = [codes[each.get("opcode_index", 0)] for each in model["subgraphs"][0]["operators"]]
    assert [kind for kind in kinds if kind.startswith("Lce")] == [code for code in operators if code]
    assert sum(each.ms for each in timing.operations) == pytest.approx(timing.runs_ms[0], rel=0.1)


def test_classes_of_cores_differ(networks):
    """A wide core at a higher clock is faster, and an in-order one slower."""
    job = Job(files=(File(path=str(networks / "vgg11.tflite"), runner="litert"),), threads=1, warm_up=0, runs=1)
    times = {}
    for name in qemu.CORES:
        with devices.connect(f"qemu://{name}") as measure:
            seen = measure(job)
        times[name] = seen.timings[0].runs_ms[0]
        assert seen.timings[0].runtime.endswith(" neon-dotprod" if name == "cortex-a76" else " neon")
    assert times["cortex-a76"] < times["cortex-a72"] < times["cortex-a53"]


def test_other_runtimes_are_modelled_beside_it(tmp_path):
    network = vgg11.build(3, 32, 10)
    widths = dict.fromkeys(network.widths, 8)
    path = tmp_path / "float.onnx"
    float_exporter.write_float(network, widths, draw_weights(network, widths), MEAN, STD, path)
    job = Job(files=(File(path=str(path), runner="onnxruntime"),), threads=1, warm_up=1, runs=2, operations=True)
    with devices.connect("qemu") as measure:
        (timing,) = measure(job).timings
    assert timing.runtime.startswith("onnxruntime ") and timing.runs_ms[0] > 0 and not timing.operations


@pytest.mark.parametrize("disturbed", [1, 2, 3])
def test_a_disturbed_count_is_repeated(disturbed, tmp_path, monkeypatch):
    runs = []

    def run(*_):
        runs.append((tmp_path / "counts").write_bytes(b""))
        return SimpleNamespace(timings=())

    def read(path):
        if len(runs) <= disturbed:
            raise DmsflowError(path, "the work was shared by several threads", "use --threads 1")
        return [], []

    monkeypatch.setattr(qemu._python, "measure", run)
    monkeypatch.setattr(qemu.llvm_mca, "read_counts", read)
    device = qemu.Emulated("qemu", "cortex-a76", tmp_path, tmp_path)
    job = Job(files=(), threads=1, warm_up=1, runs=1)
    if disturbed < qemu.TRIES:
        assert not qemu.measure(device, job).timings
        assert len(runs) == disturbed + 1
    else:
        with pytest.raises(DmsflowError, match="shared by several threads"):
            qemu.measure(device, job)


def test_bench_says_modelled(networks, tmp_path, capsys):
    settings = BenchSettings(device="qemu", runs=3, accuracy=False)
    path = bench.run_stage(networks / "vgg11.tflite", settings, tmp_path, Flow(("x",)))
    written = json.loads(path.read_bytes())
    assert written["environment"]["machine"]["method"] == "modelled"
    said = capsys.readouterr().err
    assert "qemu, 1 thread, modelled: one run of each was counted" in said
    assert "modelled for: cortex-a72 class" in said and "measured" not in said


def test_a_profile_of_it_is_modelled(tmp_path, monkeypatch):
    """The whole command, with a device that is as quick as the test: each file takes a time by its size."""
    calls = []

    def measure(job):
        calls.append(job)
        timings = [
            Timing(runtime="LiteRT", load_ms=1, runs_ms=(Path(each.path).stat().st_size / 1e6,) * job.runs)
            for each in job.files
        ]
        return Measurement(timings=tuple(timings), machine=Machine(processor="core", system="Linux", method="modelled"))

    monkeypatch.setattr(profiling.devices, "connect", lambda *_: _Context(measure))
    settings = ProfileSettings(
        target="arm64", device="qemu", networks=("vgg11",), resolutions=(32,), points=2, max_ratio=1, check=1, runs=2
    )
    path = profiling.measure_profile(settings, "core", tmp_path, command=("x",))
    made = profile.load_profile(str(path))
    assert made.method == "modelled" and made.title == "core (modelled)"
    assert sum(len(job.files) == 1 for job in calls) == 1  # nothing disturbs it: it settles at once
    assert all(percent == 0 for table in made.tables for row in table.spread_percent for percent in row)


class _Context:
    def __init__(self, value):
        self.value = value

    def __enter__(self):
        return self.value

    def __exit__(self, *_):
        return None


# --- what may be wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["qemu:", "qemu://", "qemu://cortex-a57", "qemu://a72", "qemux", "qemu://x;y"])
def test_an_unknown_class_is_refused(address):
    right = "write qemu://CLASS, with one of cortex-a53, cortex-a72, cortex-a76"
    with pytest.raises(DmsflowError, match=right), qemu.connect(address, Access()):
        pass


def test_it_has_a_python_of_its_own():
    own = "measures with its own Python; leave out --python and --runner-file"
    with pytest.raises(DmsflowError, match=own), devices.connect("qemu", Access(python="python3.12")):
        pass


def test_several_threads_are_refused(networks):
    job = Job(files=(File(path=str(networks / "vgg11.tflite"), runner="litert"),), threads=2, warm_up=0, runs=1)
    with (
        devices.connect("qemu") as measure,
        pytest.raises(DmsflowError, match="modelled for one thread, and not for 2"),
    ):
        measure(job)


def test_all_missing_tools_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    lacking = "needs qemu-aarch64, llvm-mca-19, .* on this machine; apt install qemu-user"
    with pytest.raises(DmsflowError, match=lacking), devices.connect("qemu"):
        pass


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "x.tflite"
    path.write_bytes(b"TFL3" * 100)
    job = Job(files=(File(path=str(path), runner="litert"),), threads=1, warm_up=0, runs=1)
    with devices.connect("qemu") as measure, pytest.raises(DmsflowError, match="x.tflite: "):
        measure(job)


def test_a_runtime_that_has_no_wheel_there_is_named(networks):
    job = Job(files=(File(path=str(networks / "vgg11.tflite"), runner="lce"),), threads=1, warm_up=0, runs=1)
    with devices.connect("qemu") as measure, pytest.raises(DmsflowError, match="device qemu, "):
        measure(job)


# --- the cache ----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dmsflow" / "qemu"


def test_a_part_is_made_once(cache):
    made = []

    def make(place):
        made.append(place)
        (place / "a").mkdir()
        (place / "a" / "b").write_text("whole")

    first = parts.make_part("part", "recipe", make)
    assert parts.make_part("part", "recipe", make) == first and len(made) == 1
    assert parts.make_part("part", "another recipe", make) != first
    assert sorted(path.name for path in cache.iterdir() if path.name.startswith(".")) == []


def test_a_part_that_cannot_be_made_leaves_nothing(cache):
    def make(place):
        (place / "half").write_text("half")
        raise DmsflowError("network", "is gone", "try again")

    with pytest.raises(DmsflowError, match="network: is gone"):
        parts.make_part("part", "recipe", make)
    assert list(cache.iterdir()) == []


def test_the_reason_of_a_failed_set_up_is_reported(cache, monkeypatch):
    monkeypatch.setitem(parts.WHEELS, "litert", ("no-such-package-of-dmsflow==0",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DmsflowError, match=r"failed \(ERROR: .*no-such-package-of-dmsflow.*\); see that the network"):
        parts.site("litert")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(("version", "api"), [("6.2.0", 1), ("7.2.22", 1), ("8.2.2", 1), ("9.0.1", 2), ("10.0.0", 3)])
def test_the_plugin_is_compiled_for_the_emulators_interface(version, api):
    assert parts._plugin_api(version) == api


def test_a_cached_device_needs_no_network(networks, monkeypatch):
    with set_up("qemu") as device:
        qemu.emulate(device, "-c", "")
    monkeypatch.setattr(parts, "run_tool", lambda command, *_, **__: _only_local(command))
    with set_up("qemu") as device:
        done = qemu.emulate(device, "-c", "import platform; print(platform.machine())")
    assert io.BytesIO(done.stdout).read() == b"aarch64\n"


def _only_local(command):
    raise AssertionError(f"{command} was called")

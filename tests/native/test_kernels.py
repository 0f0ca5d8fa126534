"""The C++ part against plain loops: on this processor under sanitizers, and emulated on 64-bit ARM."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "dmsflow" / "native"
PLAIN = ("ops.cc", "byte_conv.cc", "conv.cc", "workers.cc", "kernels_portable.cc", "kernels_neon.cc")
FLAGS = ("-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-DDMSFLOW_STATIC", "-pthread")
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# What CMakeLists.txt gives to the files of one instruction set each.
EXTRA = {
    "x86_64": {
        "kernels_avx2.cc": ("-mavx2",),
        "kernels_avx512.cc": tuple(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "vpopcntdq", "vnni")),
        "kernels_neon_dotprod.cc": (),
    },
    "aarch64": {
        "kernels_avx2.cc": (),
        "kernels_avx512.cc": (),
        "kernels_neon_dotprod.cc": ("-march=armv8.2-a+dotprod", "-fno-schedule-insns"),
    },
}


def built(folder: Path, compiler: str, machine: str, *flags: str) -> Path:
    """The program of native/kernels.cc; the compiler's processes run two at a time."""
    sources = {SOURCES / name: () for name in PLAIN} | {SOURCES / name: e for name, e in EXTRA[machine].items()}
    sources[Path(__file__).parent / "kernels.cc"] = ()
    objects, waiting = [], []
    for source, extra in sources.items():
        objects.append(folder / f"{source.parent.name}-{source.stem}.o")
        command = [compiler, *FLAGS, *flags, *extra, "-c", str(source), "-o", str(objects[-1])]
        waiting.append(subprocess.Popen(command))
        if len(waiting) == 2:
            assert [process.wait() for process in waiting] == [0, 0]
            waiting = []
    assert all(process.wait() == 0 for process in waiting)
    program = folder / "kernels"
    subprocess.run([compiler, *FLAGS, *flags, *map(str, objects), "-o", str(program)], check=True)
    return program


def checked(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" 0 failed\n")
    assert int(done.stdout.split()[-4]) > 100


def test_on_this_processor_under_sanitizers(tmp_path):
    program = built(tmp_path, "g++", platform.machine(), *SANITIZERS)
    checked(str(program), "1", "800")


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory):
    return built(tmp_path_factory.mktemp("arm"), "aarch64-linux-gnu-g++", "aarch64", "-O2", "-static")


@pytest.mark.parametrize("processor", ["cortex-a53", "neoverse-n1"])  # without and with the dot product
def test_on_emulated_arm(arm_program, processor):
    checked("qemu-aarch64", "-cpu", processor, str(arm_program), "2", "300")


def test_training_finds_the_same_bits_on_every_processor(tmp_path):
    """Under sanitizers, which take the plain instructions; with this processor's own; and on emulated ARM."""
    sources = [SOURCES / "training.cc", Path(__file__).parent / "training.cc"]
    kinds = {"plain": ("g++", *SANITIZERS), "own": ("g++", "-O3"), "arm": ("aarch64-linux-gnu-g++", "-O3", "-static")}
    found = {}
    for kind, (compiler, *flags) in kinds.items():
        program = tmp_path / kind
        subprocess.run([compiler, *FLAGS, *flags, *map(str, sources), "-o", str(program)], check=True)
        emulated = ("qemu-aarch64",) if kind == "arm" else ()
        done = subprocess.run([*emulated, str(program), "300"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[kind] = done.stdout
    assert found["plain"].startswith("300 cases: ")
    assert found["own"] == found["arm"] == found["plain"]

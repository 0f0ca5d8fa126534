"""The package's build: CMake makes the libraries, and the wheel's tag says where they load.

Environment variables:
    DMSFLOW_NO_NATIVE: anything but an empty text leaves the libraries out; the wheel then suits every system. They
        are left out too where there is no compiler.
    CXX: the C++17 compiler; CMAKE_TOOLCHAIN_FILE: a description of one for another processor.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = "dmsflow/native"
LIBRARIES = ("libdmsflow_lce.so", "libdmsflow_training.so")
# For devices without Python, Android's among them; it is built where a compiler for aarch64 is.
BENCHMARK, BENCHMARK_MACHINE = "dmsflow-benchmark", "aarch64"
CROSS, CROSS_FILE = "aarch64-linux-gnu-g++", "aarch64-linux-gnu.cmake"
COMPILERS = ("c++", "g++", "clang++")
# What manylinux2014 allows: https://peps.python.org/pep-0599/
FLOOR = (2, 17)
FLOOR_LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libgcc_s.so.1"}
FLOOR_LIBRARIES |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
# What an installation without a compiler loses, in the words of `dmsflow doctor`.
WITHOUT = (
    "there is no C++ compiler (looked for "
    + ", ".join(COMPILERS)
    + ", and the variable CXX): installed without the C++ "
    "part. Without it training on a CPU takes up to 1.7 times as long, and .tflite files run in LCE's own interpreter "
    "alone, several times slower. To have it, install a compiler (Debian: apt install g++) and dmsflow again"
)
MACHINES = {62: "x86_64", 183: "aarch64"}  # e_machine


class NativeBuild(BuildHookInterface):  # type: ignore[type-arg]
    """Called by hatchling around the making of a wheel or of an editable install."""

    _folder: Path | None = None

    def dependencies(self) -> list[str]:
        """What pip is to bring for the build: nothing that the system has."""
        if left_out() or not has_compiler() or self.target_name != "wheel":
            return []
        needed = {"cmake": "cmake>=3.18", "ninja": "ninja>=1.10"}
        return [package for program, package in needed.items() if not shutil.which(program)]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or left_out():
            return
        if not has_compiler():
            sys.stderr.write(f"dmsflow: {WITHOUT}\n")
            return
        self._folder = Path(tempfile.mkdtemp(prefix="dmsflow-build-"))
        sources = Path(self.root) / SOURCES
        libraries = build(sources, self._folder)
        built = {path.name: path for path in libraries}
        if benchmark := build_benchmark(sources, self._folder, libraries[0]):
            built[f"{BENCHMARK}-{BENCHMARK_MACHINE}"] = benchmark
        if version == "editable":
            for name, path in built.items():  # by rename: a process that has the old one loaded keeps it
                shutil.copy2(path, sources / f"{name}.new")
                os.replace(sources / f"{name}.new", sources / name)
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(libraries)}"
        build_data["force_include"] |= {str(path): f"{SOURCES}/{name}" for name, path in built.items()}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._folder:
            shutil.rmtree(self._folder)


def left_out() -> bool:
    return bool(os.environ.get("DMSFLOW_NO_NATIVE"))


def has_compiler() -> bool:
    """Whether one is there, or named; one that is named and missing is an error, of the build."""
    named = os.environ.get("CXX") or os.environ.get("CMAKE_TOOLCHAIN_FILE")
    return bool(named) or any(shutil.which(name) for name in COMPILERS)


def build(sources: Path, folder: Path) -> list[Path]:
    """Compile LIBRARIES; their paths in `folder`."""
    for command in (configuring(sources, folder), compiling(folder)):
        done = run(command)
        if done.returncode:
            sys.stderr.write(done.stdout.decode(errors="replace"))
            stop(f"the compiler stopped at dmsflow's C++ part (above): {' '.join(command)}")
    return [folder / name for name in LIBRARIES]


def build_benchmark(sources: Path, folder: Path, library: Path) -> Path | None:
    """Compile the static program for aarch64, beside a library for any processor; None: it cannot be, here."""
    commands = [compiling(folder, BENCHMARK)]
    if machine(library.read_bytes()) != BENCHMARK_MACHINE:
        if not shutil.which(CROSS):
            return None
        folder = folder / BENCHMARK_MACHINE
        cross = f"-DCMAKE_TOOLCHAIN_FILE={sources / CROSS_FILE}"
        commands = [(*configuring(sources, folder), cross), compiling(folder, BENCHMARK)]
    for command in commands:
        done = run(command)
        if done.returncode:  # a C library to link to for good is not part of every compiler
            sys.stderr.write(done.stdout.decode(errors="replace"))
            sys.stderr.write(f"dmsflow: {BENCHMARK} is left out: it could not be built (above)\n")
            return None
    return folder / BENCHMARK


def configuring(sources: Path, folder: Path) -> tuple[str, ...]:
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    return ("cmake", "-S", str(sources), "-B", str(folder), *generator)


def compiling(folder: Path, *targets: str) -> tuple[str, ...]:
    wanted = ("--target", *targets) if targets else ()
    return ("cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1), *wanted)


def run(command: tuple[str, ...]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    except FileNotFoundError:
        stop(f"{command[0]} is not installed")
        raise


def stop(what: str) -> None:
    """End the build with what is missing and what to do; pip shows it."""
    raise SystemExit(
        f"dmsflow: {what}.\n"
        "Its C++ part, which runs LCE files on LiteRT and makes training quicker, needs a compiler of C++17:\n"
        "    Debian, Ubuntu, Raspberry Pi OS: apt install g++\n"
        "    Fedora: dnf install gcc-c++      Alpine: apk add g++      macOS: xcode-select --install\n"
        "Or set DMSFLOW_NO_NATIVE=1 and install again: everything else works without it."
    )


def platform_tag(libraries: list[Path]) -> str:
    """Where libraries load, from what they say of themselves: manylinux2014 only if that is true of all."""
    data = [library.read_bytes() for library in libraries]
    if any(each[:4] != b"\x7fELF" for each in data):
        if sys.platform == "darwin":
            release = "11_0" if platform.machine() == "arm64" else "10_13"
            return f"macosx_{release}_{platform.machine()}"
        stop(f"{libraries[0]} is not a library of Linux or macOS")
    processor = machine(data[0])
    old = bool(processor) and all(map(is_old, data))
    return f"manylinux2014_{processor}" if old else f"linux_{processor or platform.machine()}"


def is_old(data: bytes) -> bool:
    """Whether an ELF file loads wherever manylinux2014 does."""
    needed, versions = elf_needs(data)
    numbers = {tuple(map(int, name.removeprefix("GLIBC_").split("."))) for name in versions if name[:6] == "GLIBC_"}
    return needed <= FLOOR_LIBRARIES and len(numbers) == len(versions) and max(numbers, default=FLOOR) <= FLOOR


def machine(data: bytes) -> str:
    """The processor that an ELF file is for; empty: another one, or no such file."""
    return MACHINES.get(struct.unpack_from("<H", data, 18)[0], "") if data[:4] == b"\x7fELF" else ""


def elf_needs(data: bytes) -> tuple[set[str], set[str]]:
    """Libraries that a 64-bit little-endian ELF file needs, and versions of their symbols."""
    table, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + size * index) for index in range(count)]

    def text(strings: int, offset: int) -> str:
        start = sections[strings][4] + offset
        return data[start : data.index(b"\0", start)].decode()

    libraries, versions = set(), set()
    for _, kind, _, _, offset, length, link, entries, _, _ in sections:
        if kind == 6:  # SHT_DYNAMIC
            for tag, value in struct.iter_unpack("<qQ", data[offset : offset + length]):
                if tag == 1:  # DT_NEEDED
                    libraries.add(text(link, value))
        elif kind == 0x6FFFFFFE:  # SHT_GNU_verneed
            entry = offset
            for _ in range(entries):
                _, names, _, first, following = struct.unpack_from("<HHIII", data, entry)
                name = entry + first
                for _ in range(names):
                    _, _, _, at, next_name = struct.unpack_from("<IHHII", data, name)
                    versions.add(text(link, at))
                    name += next_name
                entry += following
    return libraries, versions

"""The C++ part as it is built and shipped: the library's symbols, the wheels and their tags, what a build asks for."""

from __future__ import annotations

import importlib.util
import itertools
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from dmsflow import native
from dmsflow.errors import DmsflowError

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "dmsflow" / "native"
CROSS = SOURCES / "aarch64-linux-gnu.cmake"
CALLS = ROOT / "dmsflow" / "training" / "fast_ops.py"  # which needs torch to be imported
ENTRIES = {"tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate"}
LIBRARIES = {
    "dmsflow/native/libdmsflow_lce.so": ENTRIES,
    "dmsflow/native/libdmsflow_training.so": set(re.findall(r'^    "(dmsflow_\w+)":', CALLS.read_text("utf-8"), re.M)),
}
BENCHMARK = "dmsflow/native/dmsflow-benchmark-aarch64"  # in both wheels: it is sent to phones
# As pip has it in a build: with the programs of the build requirements on the path.
BUILD_PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """hatch_build.py, which the package's build calls."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(source: Path, folder: Path, **environment: str) -> Path:
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    done = subprocess.run(
        (*command, "--wheel-dir", str(folder), str(source)),
        env={**os.environ, "PATH": BUILD_PATH, "CXXFLAGS": "-Werror", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def host_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the source distribution, as an index would serve it."""
    folder = tmp_path_factory.mktemp("sdist")
    command = (sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder))
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    return wheel(sdist, tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def arm_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel(ROOT, tmp_path_factory.mktemp("arm"), CMAKE_TOOLCHAIN_FILE=str(CROSS))


@pytest.fixture(params=itertools.product(["installed", "host_wheel", "arm_wheel"], LIBRARIES), ids="-".join)
def library(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    where, name = request.param
    if where == "installed":
        return ROOT / name
    with zipfile.ZipFile(request.getfixturevalue(where)) as archive:
        return Path(archive.extract(name, tmp_path))


def symbols(library: Path) -> dict[str, list[str]]:
    """Names of the dynamic symbols, by the section they lie in: "UND" for what is imported."""
    text = subprocess.run(
        ("readelf", "--wide", "--dyn-syms", str(library)), check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = line.split()
        if len(cells) >= 8 and re.fullmatch(r"\d+:", cells[0]) and cells[3] != "SECTION":  # the ARM linker lists those
            found.setdefault("UND" if cells[6] == "UND" else "defined", []).append(cells[7])
    return found


def test_a_library_exports_its_entries_alone(library: Path) -> None:
    assert set(symbols(library)["defined"]) == LIBRARIES[f"dmsflow/native/{library.name}"]


def test_a_library_imports_from_an_old_libc_alone(library: Path) -> None:
    weak = {"__cxa_finalize", "__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
    imported = set(symbols(library)["UND"]) - weak
    assert imported
    for name in imported:
        version = re.fullmatch(r"\w+@GLIBC_(\d+)\.(\d+)(\.\d+)?", name)
        assert version, f"{name} is no symbol of libc"
        assert (int(version[1]), int(version[2])) <= (2, 17), name


PAGE = 16384  # Android's largest: it refuses libraries with segments that are aligned to less


def test_segments_are_aligned_to_large_pages(library: Path) -> None:
    data = library.read_bytes()
    table, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", data, table + size * index) for index in range(count)]
    loaded = [header for header in headers if header[0] == 1]  # PT_LOAD
    assert loaded
    for _, _, offset, address, _, _, _, alignment in loaded:
        assert alignment % PAGE == 0 and (address - offset) % PAGE == 0


def test_the_wheels_say_where_they_run(host_wheel: Path, arm_wheel: Path) -> None:
    assert host_wheel.name.endswith(f"-py3-none-manylinux2014_{platform.machine()}.whl")
    assert arm_wheel.name.endswith("-py3-none-manylinux2014_aarch64.whl")


@pytest.mark.parametrize("which", ["host_wheel", "arm_wheel"])
def test_a_wheel_holds_all_that_an_installation_needs(which: str, request: pytest.FixtureRequest) -> None:
    with zipfile.ZipFile(request.getfixturevalue(which)) as archive:
        names = set(archive.namelist())
    kinds = ("*.py", "*.html", "presets/*.toml")
    package = {path.relative_to(ROOT).as_posix() for kind in kinds for path in (ROOT / "dmsflow").rglob(kind)}
    data = {f"dmsflow/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("targets/*.toml")}
    data |= {f"dmsflow/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("profiles/*.json")}
    data |= {f"dmsflow/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("models/*/*")}
    assert package | data | {*LIBRARIES, BENCHMARK} <= names
    assert {name for name in names if name.endswith(".so")} == set(LIBRARIES)


def test_without_the_cpp_part_the_wheel_is_for_all_systems(tmp_path: Path) -> None:
    made = wheel(ROOT, tmp_path, DMSFLOW_NO_NATIVE="1")
    assert made.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(made) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so") or name == BENCHMARK]


def test_without_a_compiler_it_is_built_without_the_cpp_part_and_says_what_is_slower(tmp_path: Path) -> None:
    folder = tmp_path / "path"  # with the programs that a build needs, but for compilers
    folder.mkdir()
    for name in ("cmake", "ninja"):
        if found := shutil.which(name, path=BUILD_PATH):
            (folder / name).symlink_to(found)
    environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "CMAKE_TOOLCHAIN_FILE")}
    command = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    done = subprocess.run(
        command, cwd=ROOT, env={**environment, "PATH": str(folder)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dmsflow: ")]
    assert "no C++ compiler" in line and "training on a CPU takes up to 1.7 times as long" in line
    assert "apt install g++" in line
    (made,) = tmp_path.glob("*.whl")
    assert made.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(made) as archive:
        names = archive.namelist()
    assert "dmsflow/cli.py" in names
    assert not [name for name in names if name.endswith(".so") or name == BENCHMARK]


def test_a_build_with_a_broken_compiler_shows_its_words(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", BUILD_PATH)
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(SystemExit, match="the compiler stopped"):
        build.build(SOURCES, tmp_path)
    assert "/bin/false" in capfd.readouterr().err


def test_a_library_that_needs_more_gets_no_tag_of_an_old_system(build: ModuleType, tmp_path: Path) -> None:
    library = tmp_path / "new.so"
    command = ("g++", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library))
    text = b"#include <string.h>\nint f(void);\nint f(void) { return (int)strlen(strerrordesc_np(1)); }\n"
    subprocess.run((*command, "-D_GNU_SOURCE"), input=text, check=True)
    assert build.platform_tag([native.library(), library]) == f"linux_{platform.machine()}"
    assert build.platform_tag([native.library(), native.training()]).startswith("manylinux2014_")


def test_a_missing_library_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(DmsflowError, match="without its C\\+\\+ part; install dmsflow from a wheel"):
        native.library()


def test_the_kernels_are_those_of_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.kernels() in native.KERNELS
    monkeypatch.setenv("DMSFLOW_KERNELS", "portable")
    assert native.kernels() == "portable"
    monkeypatch.setenv("DMSFLOW_KERNELS", "abacus")
    assert native.kernels() in native.KERNELS

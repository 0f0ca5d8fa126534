"""What the emulated device needs, made once and kept in the user's cache: a Python for ARM in a folder.

No root, no container and no emulator in the kernel: Debian's arm64 packages are downloaded by apt with a
state of its own and unpacked, wheels for aarch64 are put beside them by pip, and what is compiled is
compiled here. All of it has fixed versions, so that the device is the same everywhere.

Each part is made in a temporary folder and takes its place by rename, so it is whole or not there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dmsflow import native
from dmsflow.errors import DmsflowError
from dmsflow.files import hash_file
from dmsflow.measuring.devices.emulated import llvm_mca
from dmsflow.measuring.devices.emulated.llvm_mca import run_tool
from dmsflow.terminal import print_line

EMULATOR, CROSS = "qemu-aarch64", "aarch64-linux-gnu-g++"
INSTALL = f"{llvm_mca.INSTALL} cmake gcc"
# What only the set-up needs; once it is done, none of it is.
SET_UP_TOOLS = ("apt-get", "dpkg", "cmake", "cc", CROSS)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCE = f"deb [arch=arm64 signed-by={KEYRING}] http://deb.debian.org/debian {{}} main\n"
RELEASES = {"3.11": "bookworm", "3.13": "trixie"}  # of Debian, by the version of its Python
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1")
# A state of its own, {0}, and nothing of this machine's: no root is needed, and nothing here is changed.
APT_CONFIGURATION = """\
APT::Architectures {{ "arm64"; }};
APT::Architecture "arm64";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "2";
Debug::NoLocking "true";
Dir::State "{0}";
Dir::State::lists "{0}/lists";
Dir::State::status "{0}/status";
Dir::Cache "{0}/cache";
Dir::Etc "{0}/etc";
Dir::Etc::sourcelist "{0}/sources.list";
Dir::Etc::sourceparts "none";
"""
PYTHON_VERSION = "3.11"  # of the device; another one changes its instructions, and so its times
WHEELS = {
    "litert": ("numpy==2.4.6", "ai-edge-litert==2.3.0"),
    "onnxruntime": ("onnxruntime==1.32.0", "flatbuffers==25.12.19", "packaging==26.0", "protobuf==7.36.2"),
}
PLATFORMS = tuple(f"manylinux_2_{minor}_aarch64" for minor in (34, 31, 28, 27, 26, 24, 17))
NATIVE = Path(native.__file__).parent
STALE_S = 3600.0  # a temporary folder of that age belongs to no process that still runs
CLOCK_CORES = 4
NETWORK = "see that the network works, and try again"


def folder() -> Path:
    """Where all parts are."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "dmsflow" / "qemu"


def check_tools() -> None:
    """Refuse at once what would fail later: a DmsflowError names all tools that this machine lacks."""
    tools = (EMULATOR, llvm_mca.ANALYSER, llvm_mca.DISASSEMBLER, *SET_UP_TOOLS)
    if lacking := [tool for tool in tools if not shutil.which(tool)]:
        raise DmsflowError("device qemu", f"needs {', '.join(lacking)} on this machine", INSTALL)


# --- the parts ----------------------------------------------------------------------------------


def root(cpuinfo: str, version: str = PYTHON_VERSION) -> Path:
    """The file system that the emulator shows a program: Debian's Python, and the kernel's files about the cores.

    Args:
        cpuinfo: of one core, as in /proc/cpuinfo without the line of its number.
        version: of Python, one of `RELEASES`.
    """
    source = SOURCE.format(RELEASES[version])
    base = make_part("debian", source + " ".join(PACKAGES), partial(_make_debian, source, version))

    def make(place: Path) -> None:
        for path in base.iterdir():
            (place / path.name).symlink_to(path)
        # Runtimes choose their kernels by these, and crash on the host's own.
        cores = "".join(f"processor\t: {core}\n{cpuinfo}\n" for core in range(CLOCK_CORES))
        _write(place / "proc" / "cpuinfo", cores)
        for name in ("possible", "present", "online"):
            _write(place / "sys" / "devices" / "system" / "cpu" / name, f"0-{CLOCK_CORES - 1}\n")

    return make_part("root", f"{base} {cpuinfo}", make)


def python(root: Path, version: str = PYTHON_VERSION) -> Path:
    """The interpreter in such a file system."""
    return root / "usr" / "bin" / f"python{version}"


def _make_debian(source: str, version: str, place: Path) -> None:
    if not Path(KEYRING).is_file():
        right = "apt install debian-archive-keyring"
        raise DmsflowError(KEYRING, "is missing, and Debian's packages cannot be checked without it", right)
    _print_step("Debian's Python for arm64: downloading 15 MB")
    with tempfile.TemporaryDirectory() as private:
        state = Path(private)
        for name in ("lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/none"):
            (state / name).mkdir(parents=True)
        _write(state / "sources.list", source)
        _write(state / "status", "")  # nothing is installed, so all that is needed is taken
        _write(state / "apt.conf", APT_CONFIGURATION.format(state))
        settings = {"APT_CONFIG": str(state / "apt.conf"), "LC_ALL": "C"}
        run_tool(("apt-get", "--quiet=2", "update"), NETWORK, settings=settings)
        run_tool(("apt-get", "--quiet=2", "--yes", "--download-only", "install", *PACKAGES), NETWORK, settings=settings)
        for package in sorted((state / "cache" / "archives").glob("*.deb")):
            run_tool(("dpkg", "-x", str(package), str(place)), "see that the disk is not full")
    if not (place / "lib").exists():  # since trixie the packages have usr/lib alone
        (place / "lib").symlink_to("usr/lib")
    if not python(place, version).is_file():
        raise DmsflowError("Debian's packages", f"have no python{version}", "update dmsflow")


def site(runner: str) -> Path:
    """The folder with a runner's wheels for aarch64."""
    wheels = WHEELS[runner]

    def make(place: Path) -> None:
        _print_step(f"wheels for aarch64: {', '.join(wheels)}")
        options = (
            "-m pip install --quiet --no-deps --only-binary=:all: --no-compile --no-warn-script-location "
            f"--disable-pip-version-check --root-user-action=ignore --implementation=cp --python-version={PYTHON_VERSION}"
        )
        platforms = [f"--platform={platform}" for platform in PLATFORMS]
        run_tool((sys.executable, *options.split(), *platforms, "--target", str(place), *wheels), NETWORK)

    return make_part(runner, " ".join(wheels), make)


def plugin() -> Path:
    """The emulator's plugin that counts (native/count.c), compiled for this emulator."""
    printed = run_tool((EMULATOR, "--version"), INSTALL)
    found = re.search(r"version (\d+\.\d+\.\d+)", printed)
    if not found:
        raise DmsflowError(EMULATOR, f"prints no version, but {printed.strip()[:60]!r}", INSTALL)
    version, source = found[1], NATIVE / "count.c"

    def make(place: Path) -> None:
        flags = f"-std=gnu11 -O2 -fPIC -shared -fvisibility=hidden -DDMSFLOW_PLUGIN_API={_plugin_api(version)}"
        command = ("cc", *flags.split(), "-o", str(place / "count.so"), str(source))
        run_tool(command, "install a C compiler: apt install gcc libc6-dev")

    return make_part("plugin", f"{version} {hash_file(source)}", make) / "count.so"


def library() -> Path:
    """The delegate for aarch64, cross-compiled from the package's own sources."""
    sources = [path for path in sorted(NATIVE.iterdir()) if path.suffix in (".cc", ".h", ".cmake", ".txt")]
    if not any(path.suffix == ".cc" for path in sources):
        raise DmsflowError(NATIVE, "has no C++ sources", "install dmsflow again: its wheel and its source have them")

    def make(place: Path) -> None:
        _print_step("compiling the delegate for aarch64")
        with tempfile.TemporaryDirectory() as build:
            toolchain = f"-DCMAKE_TOOLCHAIN_FILE={NATIVE / 'aarch64-linux-gnu.cmake'}"
            right = f"see that {CROSS} works"
            run_tool(("cmake", "-S", str(NATIVE), "-B", build, toolchain, "-DCMAKE_BUILD_TYPE=Release"), right)
            run_tool(("cmake", "--build", build, "--target", "dmsflow_lce"), right)
            shutil.copy2(Path(build, native.LIBRARY), place / native.LIBRARY)

    recipe = "".join(f"{path.name} {hash_file(path)}\n" for path in sources)
    return make_part("delegate", recipe, make) / native.LIBRARY


def _plugin_api(version: str) -> int:
    """Of QEMU's interface for plugins: what native/count.c uses changed in 9.1."""
    major, minor, _ = map(int, version.split("."))
    return 3 if (major, minor) >= (9, 1) else 2 if major == 9 else 1


# --- how a part is made -------------------------------------------------------------------------


def make_part(name: str, recipe: str, make: Callable[[Path], None]) -> Path:
    """The folder of a part: as it is, or made now.

    `recipe` is all that decides what is in it, `make` fills an empty folder.
    """
    path = folder() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if path.is_dir():
        return path
    folder().mkdir(parents=True, exist_ok=True)
    for abandoned in folder().glob(".making-*"):  # by processes that were killed
        if time.time() - abandoned.stat().st_mtime > STALE_S:
            shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder()) as private:
        place = Path(private, "part")
        place.mkdir()
        make(place)
        try:
            place.rename(path)
        except OSError:
            if not path.is_dir():  # else another process was faster
                raise
    return path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _print_step(line: str) -> None:
    print_line(f"device qemu, set up once: {line}")

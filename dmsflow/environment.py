"""Where and with what a stage ran: versions, processor, commit; and which packages are installed."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmsflow.errors import DmsflowError

ROOT = Path(__file__).parent.parent
RUNTIMES = ("numpy", "torch", "onnx", "onnxruntime")


def describe_environment(**extra: Any) -> dict[str, Any]:
    """Where and with what a stage ran; `extra` adds what only the stage knows (device, threads)."""
    from dmsflow import __version__

    versions = {"dmsflow": __version__, "python": platform.python_version()}
    return {
        "versions": versions | {name: found for name in RUNTIMES if (found := version(name))},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": read_processor_name(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **extra,
    }


def measured_machine(environment: Mapping[str, Any]) -> Mapping[str, Any]:
    """The machine that measured, according to an environment: not always the one that ran dmsflow."""
    return environment.get("machine") or environment


def read_processor_name() -> str:
    """The processor's model, or on ARM that of the board; where Linux names neither, its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    with contextlib.suppress(OSError):
        if board := Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n "):
            return board
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of dmsflow itself, where it runs from a git checkout."""
    if not (ROOT / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.check_output(command, cwd=ROOT, stderr=subprocess.DEVNULL, text=True, timeout=5).strip()
    return None


# --- what is installed -----------------------------------------------------------------------------

# Modules by the extra of pyproject.toml that brings them; a test compares the two.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("torch", "torchvision", "PIL", "sklearn"),
    "onnx": ("onnx", "onnxruntime"),
    "device": ("ai_edge_litert",),
    "report": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "slurm": ("submitit",),
}

# Where the distribution has another name than the module.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}

# Modules that do as well in place of one.
ALTERNATIVES = {"ai_edge_litert": ("tflite_runtime", "tensorflow")}


def extra_of(module: str) -> str | None:
    """The extra that brings a module; None if dmsflow installs it without one, or does not know it."""
    return next((extra for extra, modules in EXTRAS.items() if module in modules), None)


def install_command(modules: Sequence[str]) -> str:
    """The command that installs some modules: "pip install 'dmsflow[device,onnx]'"."""
    if WITNESSED in modules:
        return witness_command()
    return f"pip install 'dmsflow[{','.join(sorted({extra_of(module) or module for module in modules}))}]'"


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found, here or by the witness; it is not imported."""
    if module == WITNESSED:
        with contextlib.suppress(DmsflowError):
            return bool(witness_python())
    return importlib.util.find_spec(module) is not None


def version(module: str) -> str | None:
    """The version of the distribution of an installed module."""
    from importlib import metadata  # a tenth of the time of `dmsflow --help`

    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(DISTRIBUTIONS.get(module, module))
    return None


def require(where: str, modules: list[str]) -> None:
    """Raise unless every module is installed, before hours of training and not after."""
    absent = [module for module in modules if not is_installed(module)]
    if absent:
        raise DmsflowError(where, f"needs {', '.join(absent)} (not installed)", install_command(absent))


# --- the witness -----------------------------------------------------------------------------------

# It has no wheel for Python 3.13 and needs NumPy 1, so it has an environment of its own, and runs as a child process.
WITNESSED = "larq_compute_engine"


def witness_python() -> str:
    """The Python that has larq-compute-engine: of the environment that DMSFLOW_WITNESS names, or of a checkout's .witness.

    Raises:
        DmsflowError: there is none.
    """
    named = os.environ.get("DMSFLOW_WITNESS", "")
    python = Path(named or ROOT / ".witness", "bin", "python").absolute()
    if python.is_file():
        return str(python)
    if named:
        raise DmsflowError(f"DMSFLOW_WITNESS={named}", "has no bin/python", witness_command())
    if platform.system() == "Linux" and platform.machine() not in ("x86_64", "AMD64"):
        what = f"has no wheel for Linux {platform.machine()}"
        raise DmsflowError("larq-compute-engine", what, "use another runner, and --converter direct")
    raise DmsflowError("larq-compute-engine", "is not installed", witness_command())


def witness_command() -> str:
    """How to make the witness."""
    if (ROOT / "Makefile").is_file():
        return "run make witness"
    install = "python3.11 -m venv DIR && DIR/bin/pip install 'numpy<2' larq-compute-engine onnxruntime tensorflow"
    return f"{install}, and set DMSFLOW_WITNESS=DIR"

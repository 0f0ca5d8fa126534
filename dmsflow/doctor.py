"""What is installed, and what each target still lacks."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Iterator

from dmsflow import __version__, native, plugin
from dmsflow.deploying.target import Target, list_targets, load_target
from dmsflow.environment import ALTERNATIVES, EXTRAS, install_command, is_installed, version, witness_command
from dmsflow.errors import DmsflowError

AGAIN = "install dmsflow again, for this system"
WITNESS = "larq-compute-engine (the witness)"
BASE = ("click", "flatbuffers", "msgspec", "numpy", "rich", "safetensors", "scipy")

Row = tuple[str, str, str]  # what, its state, what to do


def find_missing_modules(target: Target) -> list[str]:
    """Modules that are missing here for writing the files of a target, and for running them by one of its runners.

    Raises:
        DmsflowError: a plug-in of the target is unknown, or cannot be imported.
    """
    runners = (_find_missing("runners", name) for name in target.runners)
    return [*_find_missing("exporters", target.exporter), *min(runners, key=len)]


def _find_missing(kind: str, name: str) -> list[str]:
    """What a plug-in REQUIRES and is not installed; of modules that stand in for each other, the first is named."""
    modules = getattr(plugin.load_plugin(kind, name), "REQUIRES", ())
    groups = [(module, *ALTERNATIVES.get(module, ())) for module in modules]
    spare = {other for _, *others in groups for other in others}
    return [group[0] for group in groups if group[0] not in spare and not any(map(is_installed, group))]


def report() -> tuple[list[Row], bool]:
    """Rows (what, state, what to do), and whether all that is installed also works."""
    rows = [("python", platform.python_version(), ""), ("dmsflow", __version__, "")]
    rows += [(module, version(module) or "installed", "") for module in BASE]
    for extra, modules in EXTRAS.items():
        for module in modules:
            present = is_installed(module)
            state = (version(module) or "installed") if present else "absent"
            rows.append((f"{module} [{extra}]", state, "" if present else f"pip install 'dmsflow[{extra}]'"))
    rows += _try_libraries()
    for name in list_targets():
        missing = find_missing_modules(load_target(name))
        state = f"lacks {', '.join(missing)}" if missing else "ready"
        rows.append((f"target {name}", state, install_command(missing) if missing else ""))
    return rows, not any(state == "broken" for _, state, _ in rows)


def _try_libraries() -> Iterator[Row]:
    """Native libraries, each tried in a process of its own: a broken one may take the process along."""
    program = "from dmsflow import native; print(native.kernels(), 'kernels')"
    loses = "without it .tflite files run in LCE's own interpreter alone, several times slower"
    yield _try_program("LCE delegate for LiteRT", program, AGAIN, native.library, loses)
    if is_installed("torch") and is_installed("torchvision"):  # a CUDA build of one beside a CPU build of the other
        program = "from dmsflow.datasets import _torchvision; _torchvision.import_torchvision()"
        right = "install both from the same place, at matching versions"
        yield _try_program("torch and torchvision together", program, right, works="work")
    if is_installed("torch"):
        yield _try_training()
    program = "from dmsflow.modelfile.runners import lce; print(lce.version())"
    yield _try_program(WITNESS, program, witness_command(), lambda: plugin.load_plugin("runners", "lce").python())


def _try_training() -> Row:
    """Without it torch's operations do the same, more slowly."""
    program = "from dmsflow.training import fast_ops; assert fast_ops.library()"
    loses = "without it training on a CPU takes up to 1.7 times as long"
    return _try_program("C++ part of training", program, AGAIN, native.training, loses)


def _try_program(
    what: str, program: str, right: str, find: Callable[[], object] | None = None, loses: str = "", works: str = "works"
) -> Row:
    """Whether a line of Python works, with what it prints; the last line that it says if it fails.

    `find` is of a part of dmsflow in C++ that it uses, which may not have been built, and `loses` what that costs.
    """
    try:
        if find:
            find()
    except DmsflowError as error:
        return what, "absent", f"{loses and f'{loses}: '}{str(error).partition('; ')[2]}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=plugin.PACKAGE.parent)
    if done.returncode:
        last = [f"exit status {done.returncode}", *done.stderr.strip().splitlines()][-1]
        return what, "broken", f"{last}; {right}"
    output = done.stdout.strip()
    return what, f"{works}, {output}" if output else works, ""

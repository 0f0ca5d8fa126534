"""Every error a user can correct is one line, with the exit code that scripts rely on."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from dmsflow import cli, environment
from dmsflow.errors import BudgetMissed, DmsflowError


def test_an_error_is_one_line() -> None:
    assert str(DmsflowError("a\n b", "is\twrong", "mend \n it")) == "a b: is wrong; mend it"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DmsflowError("x", "is wrong", "correct it"), 1, "dmsflow: x: is wrong; correct it"),
        (BudgetMissed("memory", "0.09 MiB", "at most 0.08"), 3, "dmsflow: memory: 0.09 MiB; at most 0.08"),
        (
            OSError(28, "No space left on device", "runs/a"),
            1,
            "dmsflow: runs/a: No space left on device; correct that, then use --resume to continue",
        ),
        (
            PermissionError(13, "Permission denied", "/runs"),
            1,
            "dmsflow: /runs: Permission denied; correct that, then use --resume to continue",
        ),
        (KeyboardInterrupt(), 1, "dmsflow: interrupted; resume with: dmsflow list networks --resume"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch._C"),
            1,
            "dmsflow: torch: is not installed; pip install 'dmsflow[train]'",
        ),
    ],
)
def test_the_boundary_turns_errors_into_a_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dmsflow.reporting import show

    def fail(_: str) -> list[tuple[str, str]]:
        raise error

    monkeypatch.setattr(show, "listing", fail)
    assert cli.main(["list", "networks"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == line


def test_a_missing_module_of_our_own_is_a_bug_and_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from dmsflow.reporting import show

    def fail(_: str) -> list[tuple[str, str]]:
        raise ModuleNotFoundError("No module named 'dmsflow.nothing'", name="dmsflow.nothing")

    monkeypatch.setattr(show, "listing", fail)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["list", "networks"])


def test_what_is_absent_is_named_before_the_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "is_installed", lambda module: module != "torch")
    with pytest.raises(DmsflowError, match=r"^search: needs torch \(not installed\); pip install 'dmsflow\[train\]'$"):
        environment.require("search", ["torch", "onnx"])


@pytest.mark.parametrize(
    ("package", "module", "call", "line"),
    [
        ("onnx", "modelfile.onnx_reader", "import_onnx", "onnx: is not installed; pip install 'dmsflow[onnx]'"),
        (
            "onnxruntime",
            "modelfile.runners.onnxruntime",
            "version",
            "onnxruntime: is not installed; pip install 'dmsflow[onnx]'",
        ),
        (
            "larq_compute_engine",
            "modelfile.runners.lce",
            "_path",
            "larq-compute-engine: is not installed; pip install 'dmsflow[lce]'",
        ),
        ("sklearn", "datasets.digits", "_file", "--dataset digits: scikit-learn, which contains it, is not installed"),
        ("torchvision", "datasets._torchvision", "import_torchvision", "torchvision: cannot be imported"),
    ],
)
def test_a_missing_package_is_named_where_it_is_needed(
    package: str, module: str, call: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needing = importlib.import_module(f"dmsflow.{module}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DmsflowError) as raised:
        inspect.unwrap(getattr(needing, call))()  # what an earlier test imported is cached
    assert str(raised.value).startswith(line)


def test_an_option_that_a_text_names_is_there() -> None:
    """Advice must be possible: no error, help or docstring names an option that no command has."""
    options = {
        name
        for command in cli.cli.commands.values()
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    options |= {"--help", "--force-reinstall"}  # the second is pip's
    package = Path(cli.__file__).parent
    for path in package.rglob("*.py"):
        if "devices" in path.parts or path.name in ("page.py", "environment.py"):  # other programs' options, and CSS
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]\b(?!-)", node.value)
                assert set(named) <= options, (path, node.lineno)

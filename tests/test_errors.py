"""Every error a user can correct is one line, with the exit code that scripts rely on."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from dmsflow import cli, environment, plugin
from dmsflow.deploying.target import load_target
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
            "dmsflow: runs/a: No space left on device; correct that, and start again",
        ),
        (
            PermissionError(13, "Permission denied", "/runs"),
            1,
            "dmsflow: /runs: Permission denied; correct that, and start again",
        ),
        (KeyboardInterrupt(), 1, "dmsflow: interrupted"),
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


def test_a_missing_module_of_our_own_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dmsflow.reporting import show

    def fail(_: str) -> list[tuple[str, str]]:
        raise ModuleNotFoundError("No module named 'dmsflow.nothing'", name="dmsflow.nothing")

    monkeypatch.setattr(show, "listing", fail)
    assert cli.main(["list", "networks"]) == 70
    assert "ModuleNotFoundError: No module named 'dmsflow.nothing'; this is a bug" in capsys.readouterr().err


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


@pytest.mark.parametrize("kind", plugin.DEFINES)
def test_a_plugin_without_its_function_is_refused(kind: str, tmp_path: Path) -> None:
    names = [signature.partition("(")[0] for signature in plugin.DEFINES[kind]]
    for lacking in names:
        path = tmp_path / f"{lacking}.py"
        path.write_text("".join(f"def {name}(): ...\n" for name in names if name != lacking) + "other = 1\n")
        with pytest.raises(DmsflowError, match=rf"{lacking}\.py: has no {lacking}(\(\))?; define {lacking}"):
            plugin.load_plugin(kind, str(path))
    for each in plugin.list_plugins(kind):  # those that come with dmsflow have them all
        module = plugin.load_plugin(kind, each)
        needed = names if hasattr(module, "write") or kind != "exporters" else ["write_float", "layer_bytes"]
        assert all(hasattr(module, name) for name in needed), each


def test_toml_that_is_nested_too_deep_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep.toml"
    path.write_text("a = " + "[" * 2000 + "]" * 2000)
    assert cli.main(["search", "--preset", str(path), "--dry-run"]) == 1
    assert capsys.readouterr().err.startswith(f"dmsflow: {path}: is not TOML (maximum recursion depth exceeded")
    with pytest.raises(DmsflowError, match=r"deep.toml: is not TOML"):
        load_target(str(path))


@pytest.mark.parametrize("command", ["show", "report"])
def test_json_that_is_nested_too_deep_is_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "search.json"
    path.write_text('{"stage": ' + "[" * 20000 + "]" * 20000 + "}")
    assert cli.main([command, str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"dmsflow: {path}: is n")

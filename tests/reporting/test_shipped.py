"""Models by name, in every command that takes a manifest."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from dmsflow import cli, plugin
from dmsflow.manifest import load_manifest
from dmsflow.reporting import shipped
from dmsflow.settings import BenchSettings

LEAN = ["--runs", "2", "--warm-up", "0", "--baseline", "none"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The user's folder."""
    monkeypatch.chdir(tmp_path)


DIGITS = plugin.shipped_folder("models") / "digits"


def test_they_are_listed(capsys):
    assert cli.main(["list", "models"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    train, export = (load_manifest(DIGITS / f"{stage}.json").metrics for stage in ("train", "export"))
    figures = [f"{train['memory_mib']:.4f}", f"{train['macs_m']:.2f}", f"{train['top1_percent']:.2f}"]
    assert ["digits", "digits", "vgg11", *figures, f"{export['file_bytes']:,}"] in rows
    assert [row[0] for row in rows[4:] if row] == shipped.model_names()


def test_bench_and_export_write_to_the_users_folder(capsys):
    before = sorted(plugin.shipped_folder("models").rglob("*"))
    assert cli.main(["bench", "digits", *LEAN]) == 0
    assert cli.main(["export", "digits", "--target", "onnx", "--check-images", "2"]) == 0
    target = shipped.choose_target(BenchSettings())
    assert capsys.readouterr().out.splitlines() == [
        bench := f"runs/digits/{target}/bench.json",
        "runs/digits/onnx/export.json",
    ]
    assert load_manifest(Path("runs/digits/onnx/export.json")).settings["target"] == "onnx"
    assert (
        load_manifest(Path(bench)).metrics["top1_percent"]
        == load_manifest(DIGITS / "bench.json").metrics["top1_percent"]
    )
    assert sorted(plugin.shipped_folder("models").rglob("*")) == before


def test_an_export_is_used_again(capsys):
    onnx = ["bench", "digits", *LEAN, "--runner", "onnxruntime", "--no-accuracy"]
    assert cli.main(["export", "digits", "--target", "onnx", "--check-images", "2"]) == 0
    assert cli.main(onnx) == 1
    assert "was made with check_images 2, not None; " in capsys.readouterr().err
    assert cli.main([*onnx, "--force"]) == 0
    written = Path("runs/digits/onnx/export.json").stat().st_mtime_ns
    Path("runs/digits/onnx/bench.json").unlink()
    assert cli.main(onnx) == 0
    assert Path("runs/digits/onnx/export.json").stat().st_mtime_ns == written


def test_a_plan_writes_nothing(capsys):
    assert cli.main(["bench", "digits", "--dry-run"]) == 0
    err = capsys.readouterr().err
    assert "plan of export" in err and "plan of bench" in err
    assert list(Path().iterdir()) == []


def test_show_report_and_train_take_a_name(capsys):
    assert cli.main(["show", "digits"]) == 0
    assert "vgg11 on digits, 32×32 pixels" in capsys.readouterr().out
    assert cli.main(["report", "digits"]) == 0
    assert capsys.readouterr().out == "runs/digits/report.html\n"
    assert cli.main(["train", "digits", "--dry-run"]) == 0
    assert "runs/digits/train.json" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "export", "bench", "show", "report"])
def test_an_unknown_name_is_answered_with_the_known_ones(command, capsys):
    assert cli.main([command, "digit"]) == 1
    names = ", ".join(shipped.model_names())
    assert capsys.readouterr().err == f"dmsflow: digit: is neither a file nor a model; use a path, or one of {names}\n"


def test_a_path_that_exists_wins(capsys):
    Path("digits").write_text("{}")
    assert cli.main(["export", "digits"]) == 1
    assert "digits: is not a dmsflow manifest" in capsys.readouterr().err


def test_a_models_own_export_names_no_file(capsys):
    """A copied folder of models/."""
    export = plugin.shipped_folder("models") / "digits" / "export.json"
    Path("export.json").write_bytes(export.read_bytes())
    assert cli.main(["bench", "export.json"]) == 1
    assert capsys.readouterr().err.startswith(
        "dmsflow: export.json: names no model file; run dmsflow export on its train.json"
    )


@pytest.mark.parametrize(
    ("given", "machine", "target"),
    [
        ({}, ("Linux", "x86_64"), "x86-64"),
        ({}, ("Linux", "aarch64"), "arm64"),
        ({}, ("Darwin", "arm64"), "macos-arm64"),
        ({"device": "adb://"}, ("Linux", "x86_64"), "android-arm64"),
        ({"device": "ssh://pi@board"}, ("Linux", "x86_64"), "arm64"),
        ({"device": "qemu"}, ("Linux", "x86_64"), "arm64"),
        ({"runner": "onnxruntime"}, ("Linux", "x86_64"), "onnx"),
    ],
)
def test_the_target_follows_the_device(given, machine, target, monkeypatch):
    for name, value in zip(("system", "machine"), machine, strict=True):
        monkeypatch.setattr(shipped.platform, name, lambda value=value: value)
    assert shipped.choose_target(BenchSettings(**given)) == target


@pytest.mark.parametrize("command", ["train", "export", "bench", "show", "report"])
def test_the_shell_completes_them(command):
    complete = ShellComplete(cli.cli, {}, "dmsflow", "_DMSFLOW_COMPLETE")
    assert "digits" in [item.value for item in complete.get_completions([command], "dig")]
    assert [item.type for item in complete.get_completions([command], "./mine")] == ["file"]

"""The command line: help, what goes where, exit codes, and a whole chain with a tiny network."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import msgspec
import pytest
import tiny

from dmsflow import cli, doctor, environment, manifest, options
from dmsflow.deploying.target import list_targets, load_target
from dmsflow.errors import DmsflowError
from dmsflow.plugin import list_plugins

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(cli.cli.commands)
FRAMEWORKS = (
    "torch",
    "torchvision",
    "tensorflow",
    "onnx",
    "onnxruntime",
    "larq_compute_engine",
    "flatbuffers",
    "PIL",
    "sklearn",
    "matplotlib",
)


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )


# --- help, and what it takes ------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: dmsflow {command}")
    for param in cli.cli.commands[command].params:
        if isinstance(param, click.Option):
            assert param.opts[0] in shown
            assert param.help


def test_the_base_install_is_enough_for_help_and_lists() -> None:
    """Run with every framework absent: a module that is None in sys.modules cannot be imported."""
    program = f"""
import sys
import tomllib
for name in {FRAMEWORKS!r}:
    sys.modules[name] = None
from dmsflow.cli import main
for command in {COMMANDS!r}:
    assert main([command, "--help"]) == 0
for kind in ("networks", "datasets", "targets", "profiles", "devices", "presets"):
    assert main(["list", kind]) == 0
assert main(["doctor"]) == 0
assert main(["run", "--out", "/nowhere"]) == 1
"""
    done = python(program)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "dmsflow: search and train: needs torch (not installed); pip install 'dmsflow[train]'\n"


def test_help_imports_no_framework() -> None:
    slow = (*FRAMEWORKS, "rich", "safetensors")
    done = python(
        f"import sys; from dmsflow.cli import main; main(['--help']); print([m for m in {slow!r} if m in sys.modules])"
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "dmsflow, version 0.1.0\n"


def test_completion() -> None:
    done = python(
        "from dmsflow.cli import main; main()",
        _DMSFLOW_COMPLETE="bash_complete",
        COMP_WORDS="dmsflow se",
        COMP_CWORD="1",
    )
    assert done.stdout.strip() == "plain,search"


# --- what is wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serach"], "No such command 'serach'"),
        (["search", "--memory-mib", "0"], "'--memory-mib': 0.0 is not in the range x>0"),
        (["search", "--method", "best"], "'best' is not one of 'balanced', 'equal', 'evolution'"),
        (["profile", "--name", "x", "--resolutions", "a,b"], "'a,b' is not a list of integers such as 140,220,260."),
        (["train"], "Missing argument 'FILE'"),
        (["train", "x.json", "--resume", "--force"], "--resume keeps finished stages and --force repeats them"),
        (["run", "--mood", "good"], "No such option"),
        (["list", "stages"], "'stages' is not one of"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


@pytest.mark.parametrize("stage", ["train", "export", "bench"])
def test_a_missing_file(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.json"
    assert cli.main([stage, str(path)]) == 1
    line = f"dmsflow: {path}: No such file or directory; give the path of a manifest that a stage wrote\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("lacking", [MemoryError, SystemError, ImportError])
def test_an_error_that_there_is_no_memory_to_print_is_one_line(
    lacking: type[Exception], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(line: str, exit_code: int = 1) -> int:
        raise lacking

    monkeypatch.setattr(cli, "_say", say)
    assert cli.main(["show", str(tmp_path / "none.json")]) == 1
    assert capfd.readouterr().err == cli.NO_MEMORY_LEFT.decode()


def test_a_broken_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "dmsflow", "run", "--help"], stdout=write, stderr=subprocess.PIPE, cwd=ROOT, check=False
    )
    os.close(write)
    assert done.stderr == b""


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "2>&1 | :", "| :", "2>/dev/full"])
def test_closed_streams_end_nothing(closed: str, tmp_path: Path) -> None:
    """Nor does a file get the number of a closed one."""
    program = f"{shlex.quote(sys.executable)} -m dmsflow search --method equal --out a"
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = f"( {program}; echo $? >code ) {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path, env=where, check=False)
    assert (tmp_path / "code").read_text() == "0\n" and (tmp_path / "a" / "search.json").exists()
    assert "Traceback" not in done.stderr and done.stdout in ("", "a/search.json\n")


@pytest.mark.parametrize("kind", [ZeroDivisionError, RecursionError, AttributeError])
def test_what_nobody_foresaw_is_one_line(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise kind("one\ntwo")

    monkeypatch.setattr(doctor, "report", fail)
    assert cli.main(["doctor"]) == 70
    line = f"dmsflow: {kind.__name__}: one two; this is a bug: set DMSFLOW_TRACEBACK=1 to see where, and report it\n"
    assert capsys.readouterr().err == line
    monkeypatch.setenv("DMSFLOW_TRACEBACK", "1")
    assert cli.main(["doctor"]) == 70
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and "in fail" in shown and shown.endswith(line)


def test_a_full_disk_is_one_line_whose_advice_the_command_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(doctor, "report", fail)
    monkeypatch.setattr(manifest, "perform", fail)
    for command, right in (("doctor", "and start again"), ("search", "then use --resume to continue")):
        assert cli.main([command]) == 1
        line = f"dmsflow: a file, the output or a connection: No space left on device; correct that, {right}\n"
        assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("could not create a primitive"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        SystemError("error return without exception set"),
        SystemError("<built-in function f> returned NULL without setting an exception"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "report", fail)
    assert cli.main(["doctor"]) == 1
    assert re.fullmatch(r"dmsflow: memory: is too small \(.+\); set a smaller .*\n", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["dmsflow.cli", "msgspec", "torch", "training"])
def test_a_signal_at_any_moment_is_one_line(kind: signal.Signals, place: str, tmp_path: Path) -> None:
    """During the imports before a command is known, during those of a stage, and while it trains."""
    program = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {place!r}:
            try:
                os.kill(os.getpid(), {kind})
            except KeyboardInterrupt as error:  # as some extension modules do
                raise ImportError("something") from error
sys.meta_path.insert(0, Finder())
from dmsflow import terminal, __main__
if {place!r} == "training":
    from dmsflow.training import log
    log.Log.add = lambda *_: os.kill(os.getpid(), {kind})
sys.argv = ["dmsflow", "search", "--set", "search.weight_steps=1", "--out", {str(tmp_path / "a")!r}, "--force"]
sys.exit(__main__.main())
"""
    done = python(program)
    last = done.stderr.splitlines()[-1:]
    again = f"dmsflow search --set search.weight_steps=1 --out {tmp_path / 'a'} --resume"
    assert last == [f"dmsflow: interrupted; resume with: {again}"] and "Traceback" not in done.stderr
    assert done.returncode == (143 if kind == signal.SIGTERM else 1) and done.stdout == ""


# --- list, doctor -----------------------------------------------------------------------------


def test_list_has_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, names in (
        ("networks", list_plugins("networks")),
        ("datasets", list_plugins("datasets")),
        ("devices", list_plugins("devices")),
        ("targets", list_targets()),
        ("presets", ["default", "digits", "paper"]),
    ):
        assert cli.main(["list", kind]) == 0
        rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        assert [name for name, _ in rows] == names
        assert all(description for _, description in rows)


def test_doctor_knows_the_extras_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for extra, modules in environment.EXTRAS.items():
        written = " ".join(project["optional-dependencies"][extra])
        for module in modules:
            assert environment.DISTRIBUTIONS.get(module, module.replace("_", "-")) in written
    assert set(environment.EXTRAS) == set(project["optional-dependencies"]) - {"all", "dev"}
    assert all(any(line.startswith(module) for line in project["dependencies"]) for module in doctor.BASE)


def test_doctor_names_what_a_target_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ("ai_edge_litert", "tflite_runtime", "tensorflow", "larq_compute_engine", "torch")
    monkeypatch.setattr(doctor, "is_installed", lambda module: module not in absent)
    rows, sound = doctor.report()
    state = {what: (found, right) for what, found, right in rows}
    assert sound
    assert state["torch [train]"] == ("absent", "pip install 'dmsflow[train]'")
    assert state["target arm64"] == ("lacks ai_edge_litert", "pip install 'dmsflow[device]'")
    assert state["target onnx"] == ("ready", "")


@pytest.mark.parametrize(
    ("present", "lacking"), [((), ["ai_edge_litert"]), (("tflite_runtime",), []), (("larq_compute_engine",), [])]
)
def test_one_runner_of_a_target_is_enough(
    present: tuple[str, ...], lacking: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtimes = {"ai_edge_litert", "tflite_runtime", "tensorflow", "larq_compute_engine"} - set(present)
    monkeypatch.setattr(doctor, "is_installed", lambda module: module not in runtimes)
    assert doctor.find_missing_modules(load_target("arm64")) == lacking


def test_doctor_says_how_to_make_the_witness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "is_installed", lambda _: False)
    monkeypatch.setenv("DMSFLOW_WITNESS", str(tmp_path))
    rows, sound = doctor.report()
    assert sound and (doctor.WITNESS, "absent", "run make witness") in rows


def test_doctor_fails_on_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/false")
    monkeypatch.setattr(doctor, "is_installed", lambda _: False)
    monkeypatch.setenv("DMSFLOW_WITNESS", str(tmp_path))
    assert cli.main(["doctor"]) == 1
    assert "died (exit status 1)" in " ".join(capsys.readouterr().out.split())


def test_doctor_reports_the_cpp_part_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._try_training() == ("C++ part of training", "works", "")
    monkeypatch.setattr(doctor.native, "__file__", str(tmp_path / "__init__.py"))
    _, state, right = doctor._try_training()
    slower = "without it training on a CPU takes up to 1.7 times as long"
    assert (state, right.split(" from")[0]) == ("absent", f"{slower}: install dmsflow")


def test_doctor_sees_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._try_program("x", "import os; os.abort()", "correct it") == (
        "x",
        "broken",
        "exit status -6; correct it",
    )
    assert doctor._try_program("x", "raise ValueError('no')", "correct it") == (
        "x",
        "broken",
        "ValueError: no; correct it",
    )


# --- a whole chain ----------------------------------------------------------------------------


@pytest.fixture
def bench(tiny_run: list[str]) -> Path:
    return Path(tiny_run[-1]) / "bench.json"


def test_run_prints_one_path_and_a_table(tiny_run: list[str], bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", *tiny_run, "--resume"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{bench}\n"
    manifest = json.loads(bench.read_text())
    for words in (
        ", ".join(map(str, manifest["widths"].values())),
        f"{manifest['metrics']['file_bytes']:,} bytes",
        f"top-1, exported file    {manifest['metrics']['top1_percent']:.2f} %",
        f"{manifest['metrics']['float32_latency_ms_median']:.3f} ms in onnxruntime",
    ):
        assert " ".join(words.split()) in " ".join(captured.err.split())


def test_every_stage_has_the_command_that_writes_it_again(tiny_run: list[str], bench: Path) -> None:
    for stage in manifest.STAGES:
        written = json.loads((bench.parent / f"{stage}.json").read_text())
        assert written["command"] == ["dmsflow", "run", *tiny_run]
        assert set(written["settings"]) == set(options.RECORDS[stage].__struct_fields__)


def test_show(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(bench)]) == 0
    shown = capsys.readouterr().out
    assert "tiny on digits, 8×8 pixels" in shown
    positions = [shown.index(f"{stage}: ") for stage in manifest.STAGES]
    assert positions == sorted(positions)
    assert cli.main(["show", "--json", str(bench)]) == 0
    chain = json.loads(capsys.readouterr().out)
    assert [each["stage"] for each in chain] == list(manifest.STAGES)
    assert [Path(each["path"]).name for each in chain] == [f"{stage}.json" for stage in manifest.STAGES]
    assert chain[-1]["metrics"] == json.loads(bench.read_text())["metrics"]


@pytest.mark.parametrize("stage", ["train", "export", "bench"])
def test_a_done_stage_is_left_alone(stage: str, bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parents = dict(zip(manifest.STAGES[1:], manifest.STAGES, strict=False))
    source = bench.parent / f"{parents[stage]}.json"
    done = json.loads((bench.parent / f"{stage}.json").read_text())
    assert cli.main([stage, str(source)]) == 1
    assert "already exists; use --force to overwrite it, or --out for another folder" in capsys.readouterr().err
    other = {"train": ["--seed", "2"], "export": ["--check-images", "17"], "bench": ["--runs", "4"]}[stage]
    assert cli.main([stage, str(source), "--resume", *other]) == 1
    assert "was made with" in capsys.readouterr().err
    assert json.loads((bench.parent / f"{stage}.json").read_text()) == done


@pytest.mark.parametrize("stage", ["train", "export", "bench"])
def test_a_wrong_source_is_reported_before_what_is_already_there(
    stage: str, bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([stage, str(bench.parent / "nothing.json")]) == 1
    error = capsys.readouterr().err
    assert "nothing.json: No such file or directory" in error and "already exists" not in error


def test_resume_with_other_data_is_refused(
    tiny_run: list[str], bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *tiny_run, "--resume", "--set", "data.train_images=100"]) == 1
    assert "was made from digits with other data options" in capsys.readouterr().err
    assert cli.main(["run", *tiny_run, "--resume", "--memory-mib", "0.004"]) == 1
    assert "search.json: was made with memory_mib 0.003, not 0.004" in capsys.readouterr().err


@pytest.mark.parametrize("stage", manifest.STAGES)
def test_a_dry_run_writes_nothing(
    stage: str, tiny_run: list[str], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if stage == "search":
        given = ["run", *tiny_run[:-1], str(tmp_path / "x")]
    else:
        source = bench.parent / f"{dict(zip(manifest.STAGES[1:], manifest.STAGES, strict=False))[stage]}.json"
        given = [stage, str(source), "--out", str(tmp_path / "x")]
    assert cli.main([*given, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"plan of {stage}" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_resumes(
    tiny_run: list[str],
    bench: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> Path:
        raise KeyboardInterrupt

    given = ["run", *tiny_run[:-1], str(tmp_path / "again")]
    with monkeypatch.context() as patch:
        patch.setattr("dmsflow.training.train.run_stage", interrupt)
        assert cli.main(given) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("dmsflow: interrupted; resume with: dmsflow run --network ")
    assert captured.err.splitlines()[-1].endswith(f"{tmp_path / 'again'} --resume")
    assert cli.main([*given, "--resume"]) == 0
    weights = [(folder / "train.safetensors").read_bytes() for folder in (bench.parent, tmp_path / "again")]
    assert weights[0] == weights[1]


def test_force_keeps_the_old_run_until_all_is_done_again(
    tiny_run: list[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after the first stage, the earlier run is whole; --resume goes on with the new one."""

    def interrupt(*_: object, **__: object) -> Path:
        raise KeyboardInterrupt

    copy = tmp_path / "copy"
    shutil.copytree(bench.parent, copy)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    given = ["run", *tiny_run[:-1], str(copy), "--set", "train.seed=3"]
    with monkeypatch.context() as patch:
        patch.setattr("dmsflow.training.train.run_stage", interrupt)
        assert cli.main([*given, "--force"]) == 1
    assert {path.name: path.read_bytes() for path in copy.glob("*.*[!d]")} == before
    assert cli.main([*given, "--resume"]) == 0
    seeds = [each.settings.get("seed") for _, each in manifest.chain(copy / "bench.json")]
    assert seeds[:2] == [0, 3] and {path.name for path in copy.iterdir()} == before.keys()


def test_a_dry_run_writes_nothing_and_decodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for part, kind in itertools.product(("train", "test"), ("ant", "bee")):
        (tmp_path / "insects" / part / kind).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (40, 32)).save(tmp_path / "insects" / part / kind / f"{index}.png")
    command = ["--dataset", "image-folder:insects", "--resolution", "32", "--set", "data.train_images=4"]
    for dry in ("search", "run"):
        assert cli.main([dry, *command, "--dry-run"]) == 0
        err = capsys.readouterr().err
        assert "4 training and 6 test images" in err and "decode" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["insects"]
    assert cli.main(["search", *command, "--method", "equal", "--out", "run"]) == 0
    assert cli.main(["train", "run/search.json", "--dry-run"]) == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["search.json"]


def test_a_budget_of_the_file_is_refused_for_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--file-kib", "60", "--target", "onnx", "--out", str(tmp_path / "a")]) == 1
    said = "dmsflow: --file-kib: is a budget of .tflite files, and target onnx has .onnx files; leave it out"
    assert capsys.readouterr().err.startswith(said) and not list(tmp_path.iterdir())


def test_a_search_says_what_it_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "--method", "equal", "--out", str(tmp_path / "a")]) == 0
    assert (
        "search: vgg11 on 1,437 images of digits, equal, at most 0.07262 MiB (no budget given: the memory of the base widths)\n"
        in capsys.readouterr().err
    )
    given = ["--macs-m", "6", "--memory-mib", "0.04"]
    assert cli.main(["search", "--method", "equal", *given, "--out", str(tmp_path / "b")]) == 0
    assert "equal, at most 0.04 MiB and 6 M\n" in capsys.readouterr().err


BYTES = "caf\udce9"  # the name of a file in Latin-1


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "--out", BYTES],
        ["search", "--dataset", f"image-folder:{BYTES}"],
        ["search", "--network", f"{BYTES}.py"],
        ["run", "--out", BYTES],
        ["train", f"{BYTES}/search.json"],
        ["export", f"{BYTES}/train.json"],
        ["bench", f"{BYTES}.tflite"],
    ],
)
def test_a_name_that_no_file_can_keep_is_refused_before_any_work(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    line = capsys.readouterr().err
    assert (
        line.count("\n") == 1 and "caf\\udce9" in line and line.endswith(" is not UTF-8; rename the file or folder\n")
    )
    assert not any(tmp_path.iterdir())


def test_what_lies_in_a_folder_of_such_a_name_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / BYTES
    shutil.copytree(Path(__file__).parents[1] / "models" / "vgg11-cifar10-0.08", folder)
    for command in ("show", "report"):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written := io.BytesIO(), "utf-8"))
        assert cli.main([command, str(folder)]) == 0
        sys.stdout.flush()
    assert written.getvalue() == os.fsencode(folder / "report.html") + b"\n" and (folder / "report.html").exists()


def test_a_network_of_such_a_name_is_refused() -> None:
    with pytest.raises(DmsflowError, match="is not UTF-8"):
        msgspec.structs.replace(tiny.build(1, 32, 10), name=BYTES)

"""A run in its folder: alone there, and with --force beside the old result until it is done."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from killing import Killed, die_after

from dmsflow import manifest
from dmsflow.errors import BudgetMissed, DmsflowError
from dmsflow.files import locked, write_atomically
from dmsflow.manifest import Done, Flow, load_manifest
from dmsflow.network.architectures import vgg11
from dmsflow.settings import Data, SearchSettings, TrainSettings

NETWORK = vgg11.build(1, 32, 10)
SEARCH, TRAIN = SearchSettings(), TrainSettings()
RUN = ["search", "train"]


@pytest.fixture(autouse=True)
def stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Stages that write `content` to one file, by way of a checkpoint that says whether it is continued."""
    how: dict[str, Any] = {"content": "old", "error": None}

    def run_stage(stage: str, source: Any, settings: Any, out: Path, flow: Flow) -> Path:
        path, saved = out / f"{stage}.json", out / f"{stage}.checkpoint"
        if manifest.is_finished(path, settings, flow):
            return path
        content = saved.read_text() if flow.resume and saved.exists() else how["content"]
        write_atomically(saved, content.encode())
        write_atomically(out / f"{stage}.bin", content.encode())
        made = {"network": NETWORK, "widths": dict(NETWORK.widths), "data": Data()}
        link = None if stage == "search" else (source, load_manifest(source, "search"))
        done = Done({"weights": out / f"{stage}.bin"}, {"memory_mib": 1.0, "macs_m": 1.0}, {})
        manifest.finish_stage(path, settings, flow, done, link, **({} if link else made))
        if how["error"]:
            raise how["error"]
        saved.unlink()
        return path

    def modules(stage: str) -> Any:
        return SimpleNamespace(run_stage=lambda *arguments: run_stage(stage, *arguments))

    monkeypatch.setattr(manifest, "import_stage", modules)
    yield how


def perform(out: Path, names: list[str] = RUN, **flow: bool) -> Path:
    source = None if names[0] == "search" else out / "search.json"
    return manifest.perform(names, source, {"search": SEARCH, "train": TRAIN}, out, Flow(("dmsflow",), **flow))


def content(out: Path) -> str:
    """What the whole chain has, every hash checked; empty if it does not load."""
    try:
        manifest.chain(out / "train.json")
    except DmsflowError:
        return ""
    first, second = ((out / name).read_text() for name in ("search.bin", "train.bin"))
    return first if first == second else f"{first}, {second}"


DONE = ["search.bin", "search.json", "train.bin", "train.json"]


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


@pytest.mark.parametrize("forced", [RUN, ["train"]])
def test_a_run_with_force_that_is_killed_anywhere_leaves_the_old_result_or_continues(
    tmp_path: Path, stages: dict[str, Any], forced: list[str]
) -> None:
    wanted = "new" if forced == RUN else "old, new"
    states = set()
    for calls in range(200):
        out = tmp_path / str(calls)
        stages["content"] = "old"
        perform(out)
        stages["content"] = "new"
        with pytest.MonkeyPatch.context() as patch:
            count = die_after(patch, calls)
            with contextlib.suppress(Killed):
                perform(out, forced, force=True)
        if count[0] <= calls:
            break
        begun = any(path.suffix in (manifest.FORCED, ".whole") for path in out.iterdir())
        states.add((begun, state := content(out)))
        assert state in (("old", wanted, "") if begun else ("old", wanted))
        if begun:
            with pytest.raises(
                DmsflowError, match=r"interrupted; use --resume to continue|already exists; use --force"
            ):
                perform(out, forced)
        perform(out, forced, resume=True)
        assert content(out) == (wanted if begun else state) and names(out) == DONE
    assert states >= {(False, "old"), (True, "old"), (True, "")}
    assert content(out) == wanted and names(out) == DONE


def test_a_run_with_force_that_fails_leaves_the_old_result(tmp_path: Path, stages: dict[str, Any]) -> None:
    perform(tmp_path)
    stages |= {"content": "new", "error": DmsflowError("loss", "became nan", "lower it")}
    with pytest.raises(DmsflowError, match="became nan"):
        perform(tmp_path, force=True)
    assert content(tmp_path) == "old" and names(tmp_path) == ["run.forced", *DONE]
    stages["error"] = None
    with pytest.raises(DmsflowError, match=r"run\.forced: is a run with --force that was interrupted; use --resume to"):
        perform(tmp_path)
    with pytest.raises(
        DmsflowError, match="is a run of run with --force .*; continue it first with dmsflow run and --"
    ):
        perform(tmp_path, ["train"], resume=True)
    stages["content"] = "newest"
    perform(tmp_path, force=True)
    assert content(tmp_path) == "newest" and names(tmp_path) == DONE


def test_a_missed_budget_is_in_place(tmp_path: Path, stages: dict[str, Any]) -> None:
    perform(tmp_path)
    stages |= {"content": "new", "error": BudgetMissed("file", "takes 2 ms", "search again")}
    with pytest.raises(BudgetMissed):
        perform(tmp_path, ["search"], force=True)
    assert (tmp_path / "search.bin").read_text() == "new"


def test_force_without_an_old_result_works_in_the_folder_itself(tmp_path: Path, stages: dict[str, Any]) -> None:
    stages["error"] = DmsflowError("loss", "became nan", "lower it")
    with pytest.raises(DmsflowError, match="became nan"):
        perform(tmp_path, ["search"], force=True)
    assert names(tmp_path) == ["search.bin", "search.checkpoint", "search.json"]


# --- alone in a folder --------------------------------------------------------------------------

HOLD = "import sys, time; from pathlib import Path; from dmsflow.files import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('here', flush=True); time.sleep(60)"


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE) as first:
        assert first.stdout and first.stdout.readline() == b"here\n"
        with pytest.raises(
            DmsflowError, match="is in use by another run of dmsflow; wait .*, or use --out for another"
        ):
            perform(out)
        assert names(out) == []
        first.send_signal(signal.SIGKILL)
    perform(out)
    assert names(out) == DONE


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    """As the workers that decode images, which outlive a killed parent by some seconds."""
    program = HOLD.replace("print(", "import os; os.fork() and time.sleep(60); print(")
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as first:
        assert first.stdout and first.stdout.readline() == b"here\n"
        first.send_signal(signal.SIGKILL)
        first.wait()
        with locked(tmp_path):
            os.killpg(first.pid, signal.SIGKILL)


def test_a_program_that_was_about_to_start_keeps_the_lock_for_a_moment(tmp_path: Path) -> None:
    """As one does between the fork of subprocess and the closing of what is not its own."""
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    command = [sys.executable, "-c", "import time; time.sleep(0.3)"]
    with subprocess.Popen(command, pass_fds=[lock]) as program:
        os.close(lock)  # the program alone has it now
        with locked(tmp_path):
            program.kill()


def test_what_a_killed_run_left_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".export-x.partial").mkdir()
    (tmp_path / ".export-x.partial" / "model.tflite").write_text("half")
    (tmp_path / ".train.json.x.partial").write_text("half")
    (tmp_path / ".mine").write_text("whole")
    perform(tmp_path)
    assert names(tmp_path) == [".mine", *DONE]


def test_a_folder_that_stays_empty_is_not_made(tmp_path: Path, stages: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "a" / "b"):
        raise RuntimeError
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DmsflowError, match=r"file/a: cannot be written \(Not a directory\); .* choose another folder"):
        perform(tmp_path / "file" / "a")

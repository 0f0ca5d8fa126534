"""Whole sweeps of a tiny network: shared searches, failures, kills, shards, and processes of torchrun and Slurm."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dmsflow import cli
from dmsflow.errors import DmsflowError
from dmsflow.files import locked
from dmsflow.manifest import load_manifest
from dmsflow.sweeping import estimate, plan, sweep, work
from dmsflow.sweeping.work import Work

TINY = Path(__file__).parent.parent / "tiny.py"
PLAN = f"""
networks = ["{TINY}"]
methods = ["gradient", "balanced"]
targets = ["onnx"]

[[budgets]]
memory_mib = 0.002
macs_m = 0.2

[[budgets]]
memory_mib = 0.0018
macs_m = 0.18

[data]
train_images = 60

[search]
stem = "float"
rounds = 3
weight_steps = 1
width_batches = 2
batch_size = 12
threads = 1

[train]
epochs = 1
threads = 1
batch_size = 30

[export]
check_images = 4

[bench]
runs = 2
warm_up = 0
baseline = "none"
"""
LEADER = "tiny-0.002mib-0.2m-gradient-0"
ROWS = sorted(
    f"tiny-{size}-{method}-0" for size in ("0.002mib-0.2m", "0.0018mib-0.18m") for method in ("gradient", "balanced")
)

Commands = list[list[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path, PLAN)


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    """Stages run in this process; the words of each."""
    words = Commands()
    threads = torch.get_num_threads()

    def start(self: Work, given: list[str], log: Path, worker: int) -> None:
        words.append(given)
        log.parent.mkdir(parents=True, exist_ok=True)
        if code := cli.main(given):
            raise DmsflowError(given[0], f"exit code {code}", "see above")

    monkeypatch.setattr(Work, "_start", start)
    yield words
    torch.set_num_threads(threads)


def do(path: Path, out: Path, *, shard: tuple[int, int] = (1, 1), resume: bool = False, jobs: int = 1) -> Path | None:
    return sweep.sweep_plan(path, out, jobs=jobs, shard=shard, resume=resume)


def stages(commands: Commands) -> list[str]:
    return sorted(words[0] for words in commands)


def front(out: Path) -> dict[str, Any]:
    """What rows found, without what a clock gave."""
    found = {}
    for path in sorted(out.glob("*/train.json")):
        made = load_manifest(path)
        found[path.parent.name] = made.widths, made.metrics["top1_percent"], made.metrics["memory_mib"]
    return found


@pytest.mark.slow
def test_rows_share_a_search_and_are_measured_at_the_end(path: Path, tmp_path: Path, commands: Commands) -> None:
    out = tmp_path / "out"
    report = do(path, out)
    assert sorted(each.parent.name for each in out.glob("*/bench.json")) == ROWS
    assert stages(commands) == sorted(["search"] * 3 + ["train", "export", "bench"] * 4)
    assert commands[0][0] == "search" and [words[0] for words in commands[-4:]] == ["bench"] * 4
    solved = load_manifest(out / "tiny-0.0018mib-0.18m-gradient-0" / "search.json")
    assert solved.metrics["chosen"] == "solved" and solved.settings["memory_mib"] == 0.0018
    assert solved.metrics["slopes"] == load_manifest(out / LEADER / "search.json").metrics["slopes"]
    assert report == out / "report.html"
    page = report.read_text("utf-8")
    assert '<h2 id="fronts">Front of each device' in page and "balanced, 0.0018 MiB" in page

    begun = len(commands)
    with pytest.raises(DmsflowError, match=r"plan.toml: already exists; use --resume to continue"):
        do(path, out)
    assert do(path, out, resume=True) == report and len(commands) == begun
    write(tmp_path, PLAN.replace('methods = ["gradient", ', 'methods = ["equal", "gradient", '))
    do(path, out, resume=True)  # rows that came later
    assert stages(commands[begun:]) == sorted(["search", "train", "export", "bench"] * 2)


@pytest.mark.slow
def test_a_row_beyond_what_was_learned_searches_itself(tmp_path: Path, commands: Commands) -> None:
    out, text = tmp_path / "out", PLAN.replace("0.0018", "0.0032").replace("0.18", "0.32").replace(', "balanced"', "")
    do(write(tmp_path, f'until = "search"\n{text}'), out)
    assert stages(commands) == ["search", "search"]
    other = out / "tiny-0.0032mib-0.32m-gradient-0"
    assert "the search has learned" in (other / "widths.txt").read_text()
    assert load_manifest(other / "search.json").metrics["chosen"] != "solved"


def test_a_failed_row_keeps_its_message_and_the_others_go_on(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    out, text = tmp_path / "out", f'until = "search"\n{PLAN}'.replace('"gradient", ', "")
    path = write(tmp_path, text.replace("0.0018", "1e-5"))
    with pytest.raises(DmsflowError, match=r"out: 1 of 2 rows failed; read failed.txt and sweep.log in their folders"):
        do(path, out)
    failed = out / "tiny-1e-05mib-0.18m-balanced-0" / "failed.txt"
    assert failed.read_text() == "search: exit code 1; see above\n"
    assert (out / "tiny-0.002mib-0.2m-balanced-0" / "search.json").exists()
    assert "tiny-1e-05mib-0.18m-balanced-0: failed: search: exit code 1" in capsys.readouterr().err
    with pytest.raises(DmsflowError, match="1 of 2 rows failed"):  # it is tried again
        do(path, out, resume=True)
    assert len(commands) == 3


@pytest.mark.slow
def test_a_changed_plan_is_refused_before_it_replaces_the_old_one(tmp_path: Path, commands: Commands) -> None:
    out, text = tmp_path / "out", f'until = "search"\n{PLAN}'.replace(', "balanced"', "")
    do(write(tmp_path, text), out)
    path = write(tmp_path, text.replace("rounds = 3", "rounds = 4"))
    with pytest.raises(
        DmsflowError, match=r"search.json: was made with rounds 3, and the plan says 4; write rounds = 3"
    ):
        do(path, out, resume=True)
    path = write(tmp_path, text.replace("train_images = 60", "train_images = 80"))
    with pytest.raises(
        DmsflowError, match=r"search.json: was made with another table \[data\]; use the plan as it was"
    ):
        do(path, out, resume=True)
    assert (out / "plan.toml").read_text() == text


def test_shards_that_begin_at_any_time_share_all_rows(tmp_path: Path) -> None:
    """What others have searched so far changes who leads, not whose a row is."""
    path, costs = tmp_path / "plan.toml", estimate.Costs()
    path.write_text("".join(f"[[budgets]]\nmemory_mib = {size}\n" for size in (0.04, 0.1, 0.16, 0.05, 0.08)))
    for order in itertools.permutations(range(3)):
        out, names = tmp_path / str(order), list[str]()
        for shard in order:
            mine = sweep.prepare(path, out, costs)[1][shard::3]
            names += [row.name for row in mine]
            for row in mine:
                (out / (row.leader or row.name)).mkdir(parents=True, exist_ok=True)
                (out / (row.leader or row.name) / "search.jsonl").touch()
        assert sorted(names) == sorted(row.name for row in plan.read_plan(path)[1])


@pytest.mark.slow
def test_shards_together_are_the_whole(path: Path, tmp_path: Path, commands: Commands) -> None:
    write(tmp_path, f'until = "train"\n{PLAN}')
    do(path, tmp_path / "whole")
    whole = len(commands)
    for number in (3, 1, 2):  # the third waits for no other: it searches for its leader
        do(path, tmp_path / "parts", shard=(number, 3))
    assert front(tmp_path / "parts") == front(tmp_path / "whole")
    assert len(commands) == 2 * whole


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "hours"), [(0, "0"), (0.2, "<0.01"), (36, "0.01"), (5400, "1.5")])
def test_hours_have_no_exponents(seconds: float, hours: str) -> None:
    assert sweep._hours(seconds) == hours


def test_estimates_follow_what_finished_rows_took(tmp_path: Path, commands: Commands) -> None:
    out, path = tmp_path / "out", write(tmp_path, f'until = "train"\nseeds = [0, 1]\n{PLAN}')
    costs = estimate.Costs()
    _, rows = sweep.prepare(path, out, costs)
    before, factor = estimate.estimate(rows, out, "train", costs)
    assert factor == 1.0 and all(before.values())
    do(path, out, shard=(1, 8))
    after, factor = estimate.estimate(rows, out, "train", costs)
    assert after[LEADER] == 0 and factor != 1.0
    other = LEADER.removesuffix("0") + "1"
    assert after[other] == pytest.approx(before[other] * factor)


# --- one row -------------------------------------------------------------------------------------


def test_a_device_is_measured_by_one_row_at_a_time(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = plan.read_plan(path)
    measuring, most = 0, 0

    def do_stage(self: Work, stage: str, row: plan.Row, worker: int, device: plan.Device) -> None:
        nonlocal measuring, most
        measuring += 1
        most = max(most, measuring)
        time.sleep(0.05)
        measuring -= 1

    monkeypatch.setattr(Work, "_do", do_stage)
    monkeypatch.setattr(work, "EVERY_S", 0.01)
    workers = [threading.Thread(target=Work(tmp_path, rows, "bench").measure, args=(row, 0)) for row in rows]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert most == 1


def test_a_stage_waits_for_one_that_still_ends(
    path: Path, tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a sweep that was killed: its stage saves what it has."""
    _, rows = plan.read_plan(path)
    doing, folder = Work(tmp_path, rows, "search"), tmp_path / rows[0].name
    monkeypatch.setattr(work, "EVERY_S", 0.01)
    monkeypatch.setattr(Work, "_start", lambda *_: commands.append(["begun"]))
    with locked(folder):
        thread = threading.Thread(target=doing._do, args=("search", rows[0], 0))
        thread.start()
        thread.join(0.1)
        assert not commands
    thread.join()
    assert commands == [["begun"]]


def test_an_error_of_a_stage_is_its_last_line(path: Path, tmp_path: Path) -> None:
    doing, log = Work(tmp_path, [], "bench"), tmp_path / "row" / "sweep.log"
    missing = str(tmp_path / "train.json")
    with pytest.raises(DmsflowError) as error:
        doing._start(["export", missing], log, 0)
    assert str(error.value).startswith(f"export (exit code 1): {missing}: ") and missing in log.read_text()


def test_a_stage_runs_alone_on_a_gpu_of_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("DMSFLOW_SEARCH_MACS_M", "3")
    found = [work._environment(worker) for worker in (0, 1, 2)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["4", "6", "4"]
    assert not any({"TORCHELASTIC_RUN_ID", "DMSFLOW_SEARCH_MACS_M"} & each.keys() for each in found)


def test_what_is_stopped_saves_and_ends(tmp_path: Path) -> None:
    """As Ctrl-C does: the stage ends by SIGTERM, and nothing begins after it."""
    doing, log, ended = Work(tmp_path, [], "bench"), tmp_path / "row" / "sweep.log", list[BaseException]()

    def begin() -> None:
        try:
            doing._start(["search", "--memory-mib", "0.04", "--out", str(tmp_path / "row")], log, 0)
        except work.Stopped as stopped:
            ended.append(stopped)

    thread = threading.Thread(target=begin)
    thread.start()
    while not doing._running:
        time.sleep(0.01)
    doing.stop()
    thread.join(60)
    assert len(ended) == 1
    with pytest.raises(work.Stopped):
        doing._start(["list", "networks"], log, 0)


# --- real processes ------------------------------------------------------------------------------

QUICK = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
SHORT = f'until = "train"\n{PLAN}'


def sweep_in_a_process(*words: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", "dmsflow", "sweep", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUICK)


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not what() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_it_resumes_to_the_same_front(tmp_path: Path, commands: Commands) -> None:
    path, out = write(tmp_path, SHORT), tmp_path / "out"
    do(path, tmp_path / "whole")
    for found in ("search.json", "train.json"):
        killed = sweep_in_a_process(path, "--out", out, "--resume")
        wait_for(lambda found=found: any(out.glob(f"*/{found}")))
        killed.kill()
        killed.communicate(timeout=60)
    do(path, out, resume=True)
    assert front(out) == front(tmp_path / "whole") and len(front(out)) == 4


def start_endless_search(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A sweep in a process of its own whose search has begun and will not end, and the log of that."""
    path, log = write(folder, SHORT.replace("rounds = 3", "rounds = 100000")), folder / "out" / LEADER / "sweep.log"
    started = sweep_in_a_process(path, "--out", folder / "out")
    wait_for(lambda: log.exists() and "round" in log.read_text())
    return started, log


@pytest.mark.slow
def test_a_stage_ends_with_its_sweep(tmp_path: Path) -> None:
    killed, log = start_endless_search(tmp_path)
    killed.kill()
    killed.communicate(timeout=60)
    wait_for(lambda: "interrupted" in log.read_text())
    assert re.search("interrupted; resume with: dmsflow search .* --resume", log.read_text())
    assert log.with_name("search.checkpoint").exists()


@pytest.mark.slow
def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    stopped, log = start_endless_search(tmp_path)
    stopped.send_signal(signal.SIGTERM)
    _, stderr = stopped.communicate(timeout=60)
    assert stopped.returncode == 143 and stderr.splitlines()[-1].startswith(
        "dmsflow: interrupted; resume with: dmsflow"
    )
    assert "interrupted" in log.read_text() and not log.with_name("failed.txt").exists()


@pytest.mark.slow
def test_processes_of_torchrun_share_the_rows(tmp_path: Path, commands: Commands) -> None:
    path, out = write(tmp_path, SHORT), tmp_path / "out"
    do(path, tmp_path / "whole")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    both = sweep_in_a_process(path, "--out", out, launcher=launcher)
    stdout, stderr = both.communicate(timeout=300)
    assert both.returncode == 0, stderr
    assert stdout.splitlines() == [str(out / "report.html")]
    assert front(out) == front(tmp_path / "whole")
    assert stderr.count(f"{LEADER}: search\n") == 1


@pytest.mark.slow
def test_slurm_jobs_are_shards(tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """By submitit's executor of local processes, which takes the place of a cluster."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", QUICK["PYTHONPATH"])
    path, out = write(tmp_path, f'{SHORT}\n[slurm]\ncluster = "local"\ntimeout_min = 5\n'), tmp_path / "out"
    do(path, tmp_path / "whole")
    report = sweep.sweep_by_slurm(path, out, 2, resume=False)
    assert report == out / "report.html" and len(list((out / "slurm").glob("*_submitted.pkl"))) == 2
    assert front(out) == front(tmp_path / "whole")


def test_parameters_that_submitit_refuses_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    path = write(tmp_path, f'{SHORT}\n[slurm]\ncluster = "local"\nminutes = 5\n')
    with pytest.raises(DmsflowError, match=r"\[slurm\]: .*minutes.*; use parameters of submitit.AutoExecutor"):
        sweep.sweep_by_slurm(path, tmp_path / "out", 2, resume=False)

"""A sweep from its plan: rows are claimed by workers, measured after all are made, and shown beside each other.

Files are measured after all trainings, so that no training of this sweep disturbs a time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from dmsflow import environment, manifest
from dmsflow.errors import DmsflowError
from dmsflow.sweeping.claims import Claims, find_claims
from dmsflow.sweeping.estimate import Costs, estimate
from dmsflow.sweeping.plan import Plan, Row, read_plan, with_leaders
from dmsflow.sweeping.work import FAILED, Stopped, Work
from dmsflow.terminal import milliseconds, print_line, print_table

PLAN = "plan.toml"  # the copy in the folder of the sweep


def prepare(path: Path, out: Path, costs: Costs) -> tuple[Plan, list[Row]]:
    """A plan and its rows, in the order in which they begin.

    Processes that begin at other times find other rows searched. These decide who leads, but not the order, by which
    all of them share the rows.
    """
    plan, rows = read_plan(path)

    def led(is_searched: Callable[[Row], bool]) -> list[Row]:
        return with_leaders(rows, lambda row: costs.describe(row)[0], is_searched)

    order = [row.name for row in led(lambda _: False)]
    found = led(lambda row: (out / row.name / "search.jsonl").exists())
    return plan, sorted(found, key=lambda row: order.index(row.name))


def sweep_plan(path: Path, out: Path, *, jobs: int, shard: tuple[int, int], resume: bool) -> Path | None:
    """Do the rows of a plan, and report them.

    Args:
        out: gets a folder for each row, the report, and a copy of the plan.
        jobs: rows at a time in this process.
        shard: i of n: every n-th row from the i-th on.

    Returns:
        The report; without matplotlib, `out`; None in all but the first process of torchrun.

    Raises:
        DmsflowError: the plan is wrong, `out` has a sweep already, or rows failed: how many.
    """
    plan, rows = prepare(path, out, Costs())
    check_new(out, resume=resume or shard[1] > 1)
    claims, mine = find_claims(), rows[shard[0] - 1 :: shard[1]]
    together = jobs * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = max(1, (os.cpu_count() or 1) // together) if together > 1 else 0
    work = Work(out, rows, plan.until, threads)
    for row in rows:
        work.check_unchanged(row)
    keep_plan(path, out)
    _do_all(claims, "make", mine, work.make, jobs, work)
    if plan.until == "bench":
        _do_all(claims, "bench", mine, work.measure, jobs, work)
    return finish(out, mine, work) if claims.is_first else None


def sweep_by_slurm(path: Path, out: Path, jobs: int, *, resume: bool) -> Path:
    """The same in `jobs` jobs of Slurm, each with a shard of the rows; waits for them, and reports all rows."""
    environment.require("--launcher slurm", ["submitit"])
    from dmsflow.sweeping.launch import launch_slurm

    plan, rows = prepare(path, out, Costs())
    check_new(out, resume=resume)
    keep_plan(path, out)
    launch_slurm(path, out, jobs, plan.slurm)
    return finish(out, rows, Work(out, rows, plan.until))


def check_new(out: Path, *, resume: bool) -> None:
    """Refuse a folder that has a sweep, unless it is to be continued."""
    if (out / PLAN).exists() and not resume and not os.environ.get("TORCHELASTIC_RUN_ID"):
        raise DmsflowError(out / PLAN, "already exists", "use --resume to continue, or --out for another folder")


def keep_plan(path: Path, out: Path) -> None:
    """Copy the plan beside its rows."""
    out.mkdir(parents=True, exist_ok=True)
    if path.resolve() != (out / PLAN).resolve():
        shutil.copyfile(path, out / PLAN)


def _do_all(
    claims: Claims, phase: str, rows: Sequence[Row], do: Callable[[Row, int], None], jobs: int, work: Work
) -> None:
    """Do a phase of all rows in `jobs` threads; returns when the other processes have done theirs too."""
    first = int(os.environ.get("LOCAL_RANK", "0")) * jobs

    def serve(worker: int) -> None:
        while (number := claims.take(phase)) < len(rows):
            with contextlib.suppress(Stopped):
                do(rows[number], worker)
                continue
            return

    with ThreadPoolExecutor(jobs) as pool, _stopping(work):
        for done in as_completed([pool.submit(serve, first + number) for number in range(jobs)]):
            done.result()
    claims.wait(phase)


@contextlib.contextmanager
def _stopping(work: Work) -> Iterator[None]:
    """Stop all workers where the block is left by an interrupt or an error."""
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            work.stop()


# --- at the end -----------------------------------------------------------------------------------


def finish(out: Path, rows: Sequence[Row], work: Work) -> Path:
    """Print the rows, write the report of all that are done, also in other shards, and count those that failed."""
    print_table(
        f"rows of {out}", ("row", "top-1 %", "MiB", "M MACs", "ms", "state"), [_cells(row, work) for row in rows]
    )
    path, sources = out, [last for row in work.rows if work.is_done(row) for last in work.last_manifests(row)]
    if sources and environment.is_installed("matplotlib"):
        from dmsflow.reporting.report import write_report

        path = write_report(sources, out / "report.html")
    failed = [row for row in rows if (out / row.name / FAILED).exists()]
    if failed:
        right = f"read {FAILED} and sweep.log in their folders, then use --resume"
        raise DmsflowError(out, f"{len(failed)} of {len(rows)} rows failed", right)
    return path


def _cells(row: Row, work: Work) -> list[object]:
    """Of a row's line: what its stages found, so far as they are done."""
    found: dict[str, Any] = {}
    times, folder = list[str](), work.out / row.name
    for stage in ("search", "train"):
        if (folder / f"{stage}.json").exists():
            found |= manifest.load_manifest(folder / f"{stage}.json").metrics
    for device in row.devices:
        if (bench := folder / device.name / "bench.json").exists():
            times.append(milliseconds(manifest.load_manifest(bench).metrics["latency_ms_median"]))
    numbers = [("top1_percent", ".2f"), ("memory_mib", ".4f"), ("macs_m", ".2f")]
    cells = [format(found[name], form) if name in found else None for name, form in numbers]
    failed = folder / FAILED
    state = failed.read_text().strip() if failed.exists() else "done" if work.is_done(row) else "not done"
    return [row.name, *cells, " ".join(times) or None, state]


# --- before it ------------------------------------------------------------------------------------


def print_plan(path: Path, out: Path, jobs: int) -> None:
    """Print the rows of a plan, whether their budgets are possible, and about how long they take; writes nothing."""
    costs = Costs()
    plan, rows = prepare(path, out, costs)
    left, factor = estimate(rows, out, plan.until, costs)
    cells = []
    for row in rows:
        method = row.values["search"]["method"]
        how = f"widths of {row.leader}" if row.leader else "search" if method == "gradient" else method
        words = costs.describe(row)[1]
        cells.append(
            (row.name, how, words if costs.describe(row)[0] else f"not possible: {words}", _hours(left[row.name]))
        )
    print_table(f"plan of {out}", ("row", "widths by", "balanced within its budgets", "hours"), cells)
    measured = {(device.name, row.settings("bench", device).device) for row in rows for device in row.devices}
    stages = f"until {plan.until}" + f", on {', '.join(sorted(where for _, where in measured))}" * (
        plan.until == "bench"
    )
    basis = "as long as finished rows took" if factor != 1.0 else "on one CPU core; a GPU takes less"
    total = sum(left.values())
    print_line(
        f"{len(rows)} row{'s' * (len(rows) != 1)} {stages}; about {_hours(total)} h of searches and trainings ({basis})"
    )
    if jobs > 1:
        print_line(f"with {jobs} rows at a time on cores of their own: about {_hours(total / jobs)} h")


def _hours(seconds: float) -> str:
    return "<0.01" if 0 < seconds < 36 else f"{seconds / 3600:.2g}"

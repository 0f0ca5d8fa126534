"""`dmsflow sweep`: its options, and nothing else that --help would have to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

FILE = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)


class Shard(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic in newer releases of click only
    """i/n, from 1/n to n/n."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value[0], value[1]
        first, _, second = value.partition("/")
        if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
            self.fail(f"{value!r} is not i/n with i from 1 to n, such as 2/8.", param, ctx)
        return int(first), int(second)


@click.command("sweep")
@click.argument("plan", type=FILE)
@click.option("--out", type=FILE, show_default="runs/PLAN", help="Write a folder for each row to this folder.")
@click.option("--jobs", type=click.IntRange(1, 1024), default=1, show_default=True, help="Do this many rows at a time.")
@click.option(
    "--shard", type=Shard(), default="1/1", show_default=True, help="Do only the i-th of n parts of the rows."
)
@click.option(
    "--launcher",
    type=click.Choice(["processes", "slurm"]),
    default="processes",
    show_default=True,
    help="Run on this machine, or as --jobs jobs of Slurm (needs submitit).",
)
@click.option(
    "--resume", is_flag=True, help="Continue an interrupted sweep; keep finished stages, try failed rows again."
)
@click.option(
    "--dry-run", is_flag=True, help="Print the rows, whether their budgets are possible, and the hours; write nothing."
)
def sweep_command(
    plan: Path, out: Path | None, jobs: int, shard: tuple[int, int], launcher: str, resume: bool, dry_run: bool
) -> None:
    """Search, train, export and measure for many budgets, devices, seeds and networks. Writes a folder for each row.

    PLAN is a TOML file with lists of networks, budgets, methods, seeds and devices, and with settings for all of them
    (docs/sweep.md). A row is one network, budget, method and seed. Rows that differ only in their budgets share one
    search. If a row fails, its message is kept and the others go on. The report shows the front of each device:
    accuracy against milliseconds, memory and multiply-accumulates.

    Example: dmsflow sweep plan.toml --jobs 2
    """
    from dmsflow.sweeping import sweep

    out = out or Path("runs") / plan.stem
    if dry_run:
        sweep.print_plan(plan, out, jobs)
    elif launcher == "slurm":
        click.echo(sweep.sweep_by_slurm(plan, out, jobs, resume=resume))
    elif report := sweep.sweep_plan(plan, out, jobs=jobs, shard=shard, resume=resume):
        click.echo(report)

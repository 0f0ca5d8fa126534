"""A sweep as jobs of Slurm, by submitit: each job does a shard of the rows, as --shard i/n does."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmsflow.errors import DmsflowError
from dmsflow.terminal import print_line


def launch_slurm(plan: Path, out: Path, jobs: int, parameters: Mapping[str, Any]) -> None:
    """Submit the shards of a plan and wait until all have ended; failed rows say so in their folders.

    Args:
        parameters: of submitit's AutoExecutor (timeout_min, slurm_partition, …), and `cluster`: "slurm", or "local" for
            processes on this machine.

    Raises:
        DmsflowError: submitit refuses the parameters.
    """
    import submitit

    given = dict(parameters)
    try:
        executor = submitit.AutoExecutor(folder=out / "slurm", cluster=given.pop("cluster", "slurm"))
        executor.update_parameters(**{"name": f"dmsflow-{plan.stem}", **given})
    except (NameError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise DmsflowError(f"{plan}: [slurm]", str(error), "use parameters of submitit.AutoExecutor") from error
    command = [sys.executable, "-m", "dmsflow", "sweep", str(plan.absolute()), "--launcher", "processes", "--jobs", "1"]
    with executor.batch():
        submitted = [
            executor.submit(
                submitit.helpers.CommandFunction(
                    [*command, "--out", str(out.absolute()), "--shard", f"{number}/{jobs}"]
                )
            )
            for number in range(1, jobs + 1)
        ]
    for number, job in enumerate(submitted, 1):
        print_line(f"shard {number}/{jobs}: job {job.job_id}, log {job.paths.stdout}")
    for job in submitted:
        job.exception()  # waits; a shard with failed rows ends with 1, and the rows say why

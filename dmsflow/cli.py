"""The command line: parse, call one function, print one path.

Stages are imported inside their commands, so that help needs none of what they need.
"""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from dmsflow import __version__, doctor, environment, manifest, settings
from dmsflow.deploying import target
from dmsflow.errors import DmsflowError
from dmsflow.options import (
    StageCommand,
    download_option,
    flow_options,
    preset_option,
    resolved,
    settings_options,
    source_argument,
)
from dmsflow.settings import Data

STAGES: tuple[str, ...] = get_args(manifest.Stage)
MODULES = {
    "search": "dmsflow.searching.search",
    "train": "dmsflow.training.train",
    "export": "dmsflow.deploying.export",
    "bench": "dmsflow.measuring.bench",
}


@click.group(
    context_settings={"auto_envvar_prefix": "DMSFLOW", "help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="dmsflow")
def cli() -> None:
    """Find how wide each layer of a binary neural network should be, train it, write it as a 1-bit file, measure it.

    Each stage reads one manifest and writes one: search, train, export, bench. `dmsflow run` is all
    four. The path of the manifest goes to stdout, everything else to stderr.

    Every option is also an environment variable: DMSFLOW_SEARCH_MEMORY_MIB is --memory-mib of search.
    """


@cli.command("search", cls=StageCommand)
@settings_options("data", "search")
@flow_options("runs/NETWORK-DATASET")
@preset_option
@download_option
@click.pass_context
def search_command(
    ctx: click.Context, /, out: Path | None, resume: bool, force: bool, dry_run: bool, download: bool, **_: Any
) -> None:
    """Choose the width of every layer. Writes search.json."""
    from dmsflow.searching import search

    data, chosen = resolved(ctx, "data"), resolved(ctx, "search")
    out = out or _default_out(data, chosen)
    _one_of(resume, force)
    if dry_run:
        _print_plan("search", search.plan(chosen, data, out))
        return
    if resume:
        _check_same(out / "search.json", chosen, data)
    click.echo(search.run(chosen, data, out, command=ctx.obj, resume=resume, force=force, download=download))


@cli.command("train", cls=StageCommand)
@source_argument
@settings_options("train")
@flow_options("the folder of FILE")
@preset_option
@click.pass_context
def train_command(ctx: click.Context, /, **_: Any) -> None:
    """Train the chosen network. FILE is a search.json; writes train.json and the weights."""
    _run_stage(ctx, "train")


@cli.command("export", cls=StageCommand)
@source_argument
@settings_options("export")
@flow_options("the folder of FILE")
@click.pass_context
def export_command(ctx: click.Context, /, **_: Any) -> None:
    """Write it as a 1-bit file for a target. FILE is a train.json; writes export.json and the model."""
    _run_stage(ctx, "export")


@cli.command("bench", cls=StageCommand)
@source_argument
@settings_options("bench")
@flow_options("the folder of FILE")
@click.pass_context
def bench_command(ctx: click.Context, /, **_: Any) -> None:
    """Measure the file. FILE is an export.json, or a bare .tflite or .onnx file; writes bench.json."""
    _run_stage(ctx, "bench")


@cli.command("profile", cls=StageCommand)
@settings_options("profile")
@click.option("--name", required=True, help="What to call it; --profile of search takes that name.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("profiles"), show_default=True, help="Folder to write to."
)
@click.option("--resume", is_flag=True, help="Go on where an interrupted one stopped.")
@click.option("--force", is_flag=True, help="Measure it all again, and overwrite.")
@click.option("--add", is_flag=True, help="Keep what the profile has, and measure what it lacks.")
@click.option("--dry-run", is_flag=True, help="Resolve everything and print the plan; measure and write nothing.")
@click.pass_context
def profile_command(
    ctx: click.Context, /, name: str, out: Path, resume: bool, force: bool, add: bool, dry_run: bool, **_: Any
) -> None:
    """Measure a device for the latency budget of search. Writes OUT/NAME.json."""
    from dmsflow.measuring import profiling

    if force and (resume or add):
        raise click.UsageError("--force measures everything again: give it without --resume and --add.")
    chosen = resolved(ctx, "profile")
    if dry_run:
        _print_plan("profile", profiling.plan(chosen, name, out, add=add))
        return
    click.echo(profiling.run(chosen, name, out, command=ctx.obj, resume=resume, force=force, add=add))


def _run_stage(ctx: click.Context, stage: str) -> None:
    """A stage that reads one file."""
    given = ctx.params
    source, out = given["source"], given["out"] or given["source"].parent
    _one_of(given["resume"], given["force"])
    module, chosen = importlib.import_module(MODULES[stage]), resolved(ctx, stage)
    if given["dry_run"]:
        _print_plan(stage, module.plan(source, chosen, out))
    else:
        click.echo(_do(stage, source, chosen, out, ctx.obj, resume=given["resume"], force=given["force"]))


def _do(
    stage: str, source: Path, chosen: Any, out: Path, command: tuple[str, ...], *, resume: bool, force: bool
) -> Path:
    """Run train, export or bench; only training has a state to resume, the others are done or not."""
    module = importlib.import_module(MODULES[stage])
    written = out / f"{stage}.json"
    if resume:
        _check_same(written, chosen)
    if stage == "train":
        return module.run(source, chosen, out, command=command, resume=resume, force=force)  # type: ignore[no-any-return]
    if resume and manifest.claim(written, resume=resume, force=force):
        if stage == "bench":
            module.check_required(written, chosen)
        return written
    return module.run(source, chosen, out, command=command, force=force)  # type: ignore[no-any-return]


def _check_same(written: Path, chosen: Any, data: Data | None = None) -> None:
    """Refuse to pass off a finished stage as one with other settings; where it ran does not matter."""
    if not written.exists():
        return
    done = manifest.load(written)
    if data and data != done.data:
        raise DmsflowError(
            written,
            f"was made of {done.data.name} with other data options",
            "--resume with its own options, or --force",
        )
    for field, value in json.loads(msgspec.json.encode(chosen)).items():
        if field not in ("device", "threads") and field in done.settings and done.settings[field] != value:
            what = f"was made with {field} {done.settings[field]}, not {value}"
            raise DmsflowError(written, what, "--resume with the options it was made with, or --force to do it again")


@cli.command("run", cls=StageCommand)
@settings_options("data", "search", "train", "export", "bench")
@flow_options("runs/NETWORK-DATASET")
@preset_option
@download_option
@click.pass_context
def run_command(
    ctx: click.Context, /, out: Path | None, resume: bool, force: bool, dry_run: bool, download: bool, **_: Any
) -> None:
    """All four stages, in one folder.

    It takes the options of all stages. Where two stages have an option of the same name, the stage
    stands before it (--train-batch-size); what stands under "Search and train" is said once for both.
    """
    _one_of(resume, force)
    chosen = {record: resolved(ctx, record) for record in ("data", *STAGES)}
    out = out or _default_out(chosen["data"], chosen["search"])
    _check_ahead(chosen)
    from dmsflow.reporting import show
    from dmsflow.searching import search

    if dry_run:
        _print_plan("search", search.plan(chosen["search"], chosen["data"], out))
        for stage in STAGES[1:]:
            _print_plan(stage, msgspec.to_builtins(chosen[stage]).items())
        return
    if force:  # what stands behind an overwritten stage is no longer its child
        for stage in STAGES:
            (out / f"{stage}.json").unlink(missing_ok=True)
    if resume:
        _check_same(out / "search.json", chosen["search"], chosen["data"])
    path = search.run(
        chosen["search"], chosen["data"], out, command=ctx.obj, resume=resume, force=force, download=download
    )
    for stage in STAGES[1:]:
        path = _do(stage, path, chosen[stage], out, ctx.obj, resume=resume, force=force)
    show.print_result(path, sys.stderr)
    click.echo(path)


def _check_ahead(chosen: dict[str, Any]) -> None:
    """Refuse before the search what would only fail after it."""
    from dmsflow.deploying import export
    from dmsflow.measuring import bench, predicted_latency
    from dmsflow.network import profile

    aim = target.load(chosen["export"].target)
    environment.require("search and train", ["torch"])
    environment.require(f"target {aim.name}", doctor.lacking(aim))
    if "official" in export.variant_of(aim, chosen["export"]).values():
        environment.require("--converter official", ["larq_compute_engine", "tensorflow"])
    if bench.has_baseline(chosen["bench"]):
        environment.require("--baseline", ["onnx", "onnxruntime"])
    if chosen["bench"].images:
        raise click.UsageError("--images are for the bench of a bare file; all four stages take --dataset.")
    if name := chosen["search"].profile:
        precision, threads = chosen["train"].precision, chosen["bench"].threads
        if why := predicted_latency.other_files(profile.load(name), aim.name, precision, threads):
            raise DmsflowError(f"--profile {name}", why, "choose another: dmsflow list profiles")


def _default_out(data: Data, chosen: settings.SearchSettings) -> Path:
    return Path("runs") / f"{Path(chosen.network).stem}-{Path(data.name.split(':')[0]).stem}"


def _one_of(resume: bool, force: bool) -> None:
    if resume and force:
        raise click.UsageError("--resume leaves what is done and --force does it again: give one of them.")


def _print_plan(stage: str, rows: Iterable[tuple[str, object]]) -> None:
    from dmsflow.terminal import print_table

    print_table(f"plan of {stage}", (), rows)


@cli.command("list")
@click.argument("kind", type=click.Choice(["networks", "datasets", "targets", "profiles", "devices", "presets"]))
def list_command(kind: str) -> None:
    """List what options can name, one a line."""
    from dmsflow.reporting import show

    rows = show.listing(kind)
    width = max((len(name) for name, _ in rows), default=0)
    for name, description in rows:
        click.echo(f"{name:<{width}}  {description}".rstrip())


@cli.command("show")
@source_argument
@click.option(
    "--json", "as_json", is_flag=True, help="The same as JSON; of a chain, an array of its manifests, the search first."
)
def show_command(source: Path, as_json: bool) -> None:
    """Print a manifest and its parents, a profile, or what is in a .tflite or .onnx file.

    Of a model file, also one that others wrote: its ops with their shapes, channels and bytes, and a line for each
    thing that is binary but neither smaller nor faster for it.
    """
    from dmsflow.reporting import show

    show.show_file(source, as_json, sys.stdout)


@cli.command("report")
@click.argument("sources", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="report.html in the folder of the first RUN",
    help="The page to write. An earlier report is overwritten, any other file is not.",
)
@click.option(
    "--figures", type=click.Path(path_type=Path), help="Write each figure as a file of its own too, to this folder."
)
@click.option(
    "--format", "form", type=click.Choice(["svg", "png"]), default="svg", show_default=True, help="Of these files."
)
def report_command(sources: tuple[Path, ...], out: Path | None, figures: Path | None, form: str) -> None:
    """Draw what runs found: one HTML page that needs no network.

    RUN is the folder of a run, a folder of such folders, or a manifest. Runs that differ in their seed
    alone are put together, as a mean with its deviation.
    """
    from dmsflow.reporting import report

    click.echo(report.write_report(sources, out, folder=figures, form=form))


@cli.command("doctor")
@click.pass_context
def doctor_command(ctx: click.Context, /) -> None:
    """Tell what is installed, and what targets lack. The exit code is 1 if something is broken."""
    from dmsflow.terminal import print_table

    rows, sound = doctor.report()
    print_table("doctor", ("what", "state", "to do"), rows, stream=sys.stdout)
    ctx.exit(0 if sound else 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code: 0 done, 1 can be mended, 2 usage, 3 budget missed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return cli.main(given, prog_name="dmsflow", standalone_mode=False, obj=("dmsflow", *given)) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        again = shlex.join(word for word in ("dmsflow", *given) if word not in ("--force", "--resume"))
        return _say(f"interrupted; go on with: {again} --resume")
    except DmsflowError as error:
        return _say(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        if extra := environment.extra_of(module):
            return _say(f"{module}: is not installed; pip install 'dmsflow[{extra}]'")
        raise
    except OSError as error:
        where = error.filename or "a file or connection"
        return _say(f"{where}: {error.strerror or error}; mend that, and go on with --resume")


def _say(line: str, exit_code: int = 1) -> int:
    click.echo(f"dmsflow: {line}", err=True)
    return exit_code

"""The command line: parse, call one function, print one path.

Stages are imported inside their commands, so that help needs none of what they need.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from dmsflow import __version__, doctor, environment, manifest, options, settings
from dmsflow.deploying.target import load_target
from dmsflow.errors import DmsflowError, printable, require_utf8, within_memory
from dmsflow.reporting import shipped
from dmsflow.sweeping.command import COUNT, FILE, sweep_command
from dmsflow.terminal import end_interrupted, interruptible, lasting_streams, print_table, write_anything


@click.group(
    context_settings={
        "auto_envvar_prefix": "DMSFLOW",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "show_default": True,
    }
)
@click.version_option(__version__, prog_name="dmsflow")
def cli() -> None:
    """Find the width of each layer of a binary neural network, train it, write it as a 1-bit file and measure it.

    There are four stages: search, train, export and bench. Each reads the JSON file of the one before (its manifest) and
    writes its own. `dmsflow run` does all four. The path of the manifest goes to stdout, everything else to stderr.

    Every option is also an environment variable: DMSFLOW_SEARCH_MEMORY_MIB is --memory-mib of search.

    Example: dmsflow run --preset digits --out runs/demo
    """


@cli.command("search", cls=options.StageCommand)
@options.settings_options("data", "search")
@options.preset_options
@options.tensorboard_option
@options.flow_options("runs/NETWORK-DATASET")
@options.download_option
@click.pass_context
def search_command(ctx: click.Context, /, **_: Any) -> None:
    """Choose the width of every layer. Writes search.json.

    Without any budget, the memory of the base network is the budget.

    Example: dmsflow search --network vgg11 --dataset cifar10 --memory-mib 0.08 --macs-m 16
    """
    chosen, data = options.resolved(ctx, "search"), options.resolved(ctx, "data")
    _start_stage(ctx, "search", data, chosen, manifest.run_folder(chosen.network, data.name))


@cli.command("widths", cls=options.StageCommand)
@options.source_argument
@options.settings_options("search", only={"search": (*settings.BUDGETS, "profile")})
@options.flow_options("a folder beside FILE, named after the budgets")
@click.pass_context
def widths_command(ctx: click.Context, /, source: Path, **_: Any) -> None:
    """Choose widths for other budgets, without a new search. Writes search.json.

    FILE is a search.json of the gradient search. It has learned what each width is worth, so the best widths for other
    budgets, on any device, follow in a second. Budgets far from its own, where it has learned nothing, are refused.

    Example: dmsflow widths runs/vgg11-cifar10/search.json --memory-mib 0.06 --profile cortex-a76 --latency-ms 0.2
    """
    chosen = options.resolved(ctx, "search")
    out = ctx.params["out"] or shipped.default_out(source) / settings.name_budgets(chosen)
    from dmsflow.searching import widths

    if ctx.params["dry_run"]:
        _print_plan("widths", widths.plan_widths(source, chosen, out))
    else:
        click.echo(widths.solve_widths(source, chosen, out, _flow(ctx)))


@cli.command("train", cls=options.StageCommand)
@options.source_argument
@options.settings_options("train")
@options.preset_options
@options.tensorboard_option
@options.flow_options("the folder of FILE")
@options.trust_option
@click.pass_context
def train_command(ctx: click.Context, /, source: Path, **_: Any) -> None:
    """Train the network of a search. Writes train.json and the weights.

    FILE is a search.json or a model's name. With --resume and more --epochs, a finished training continues.

    Example: dmsflow train runs/vgg11-cifar10/search.json --epochs 60
    """
    _start_stage(ctx, "train", source, options.resolved(ctx, "train"), shipped.default_out(source))


@cli.command("export", cls=options.StageCommand)
@options.source_argument
@options.settings_options("export")
@options.flow_options("the folder of FILE")
@options.trust_option
@click.pass_context
def export_command(ctx: click.Context, /, source: Path, **_: Any) -> None:
    """Write the trained network as a 1-bit file for a target. Writes export.json and the file.

    FILE is a train.json or a model's name.

    Example: dmsflow export runs/vgg11-cifar10/train.json --target arm64
    """
    chosen = options.resolved(ctx, "export")
    _start_stage(ctx, "export", source, chosen, shipped.default_out(source, chosen.target))


@cli.command("bench", cls=options.StageCommand)
@options.source_argument
@options.settings_options("bench")
@options.flow_options("the folder of FILE")
@options.trust_option
@click.pass_context
def bench_command(ctx: click.Context, /, source: Path, **_: Any) -> None:
    """Measure latency and top-1 of a model file on a device. Writes bench.json.

    FILE is an export.json, a .tflite or .onnx file, or a model's name (dmsflow list models). Such a model is first
    exported for the device.

    Example: dmsflow bench runs/vgg11-cifar10/export.json --device ssh://pi@raspberry
    """
    chosen, given = options.resolved(ctx, "bench"), ctx.params
    target = shipped.choose_target(chosen)
    out = given["out"] or shipped.default_out(source, target)
    if shipped.is_model(source) and given["dry_run"]:
        _print_plan(
            "export", manifest.import_stage("export").plan_stage(source, settings.ExportSettings(target=target), out)
        )
        _print_plan("bench", msgspec.to_builtins(chosen).items())
        return
    if shipped.is_model(source):
        source = shipped.export_model(source, target, out, force=given["force"])
    _start_stage(ctx, "bench", source, chosen, out)


def _start_stage(ctx: click.Context, stage: str, source: Any, settings: Any, out: Path) -> None:
    """Print the plan of a stage, or do it and print the path of its manifest."""
    out = ctx.params["out"] or out
    if isinstance(source, Path):
        require_utf8("FILE", str(source.absolute()))
    if ctx.params["dry_run"]:
        _print_plan(stage, manifest.import_stage(stage).plan_stage(source, settings, out))
    else:
        click.echo(manifest.perform([stage], source, {stage: settings}, out, _flow(ctx)))


def _flow(ctx: click.Context) -> manifest.Flow:
    given = (ctx.params.get(name, False) for name in ("resume", "force", "download", "tensorboard"))
    return manifest.Flow(ctx.obj, *given)


@cli.command("profile", cls=options.StageCommand)
@options.settings_options("profile")
@options.flow_options("profiles")
@click.option("--name", required=True, help="Give the profile this name, for search --profile NAME.")
@click.option("--add", is_flag=True, help="Keep the times of the profile, and measure only missing blocks.")
@click.pass_context
def profile_command(
    ctx: click.Context, /, name: str, resume: bool, force: bool, add: bool, dry_run: bool, **_: Any
) -> None:
    """Measure a device, so that search can predict latency on it. Writes OUT/NAME.json.

    Example: dmsflow profile --name pi5 --target arm64 --device ssh://pi@raspberry
    """
    from dmsflow.measuring import profiling

    if force and add:
        raise click.UsageError("--force measures everything again: use it without --add.")
    chosen, out = options.resolved(ctx, "profile"), ctx.params["out"] or Path("profiles")
    if dry_run:
        _print_plan("profile", profiling.plan_profile(chosen, name, out, add=add))
        return
    click.echo(profiling.measure_profile(chosen, name, out, command=ctx.obj, resume=resume, force=force, add=add))


@cli.command("run", cls=options.StageCommand)
@options.settings_options(*options.RUN_OPTIONS, only=options.RUN_OPTIONS)
@options.preset_options
@options.flow_options("runs/NETWORK-DATASET")
@options.download_option
@click.pass_context
def run_command(ctx: click.Context, /, dry_run: bool, **_: Any) -> None:
    """Run all four stages in one folder: search, train, export, bench.

    To change a setting that has no option here, use a preset or --set STAGE.NAME=VALUE.

    Example: dmsflow run --dataset cifar10 --memory-mib 0.08 --target arm64 --set train.epochs=60
    """
    chosen = {record: options.resolved(ctx, record) for record in options.RUN_OPTIONS}
    source = chosen["data"]
    out = ctx.params["out"] or manifest.run_folder(chosen["search"].network, source.name)
    _check_ahead(chosen)
    from dmsflow.reporting import show

    if dry_run:
        _print_plan("search", manifest.import_stage("search").plan_stage(source, chosen["search"], out))
        for stage in manifest.STAGES[1:]:
            _print_plan(stage, msgspec.to_builtins(chosen[stage]).items())
        return
    path = manifest.perform(manifest.STAGES, source, chosen, out, _flow(ctx))
    show.print_result(path, sys.stderr)
    click.echo(path)


def _check_ahead(chosen: dict[str, Any]) -> None:
    """Refuse before the search what would fail only after it."""
    from dmsflow.deploying import export
    from dmsflow.measuring import bench, predicted_latency
    from dmsflow.network import profile

    target = load_target(chosen["export"].target)
    environment.require("search and train", ["torch"])
    environment.require(f"target {target.name}", doctor.find_missing_modules(target))
    if chosen["train"].precision == "binary":
        export.check_takes_binary(target)
    if "official" in export.choose_converter(target, chosen["export"]).values():
        environment.witness_python()
    if bench.choose_baselines(chosen["bench"]):
        environment.require("--baseline", ["onnx", "onnxruntime"])
    if chosen["bench"].images:
        raise click.UsageError("--images is only for bench of a file without a manifest: use --dataset.")
    if chosen["search"].file_kib and target.suffix != ".tflite":
        what = f"is a budget of .tflite files, and target {target.name} has {target.suffix} files"
        raise DmsflowError("--file-kib", what, "leave it out, or use another target, such as arm64")
    if name := chosen["search"].profile:
        precision, threads = chosen["train"].precision, chosen["bench"].threads
        if why := predicted_latency.why_not_comparable(profile.load_profile(name), target.name, precision, threads):
            raise DmsflowError(f"--profile {name}", why, "choose another: dmsflow list profiles")


def _print_plan(stage: str, rows: Iterable[tuple[str, object]]) -> None:
    print_table(f"plan of {stage}", (), rows)


cli.add_command(sweep_command)


@cli.command("list")
@click.argument(
    "kind", type=click.Choice(["networks", "datasets", "targets", "profiles", "devices", "presets", "models"])
)
def list_command(kind: str) -> None:
    """List the names that options accept, or the trained networks that come with dmsflow (models).

    Example: dmsflow list networks
    """
    from dmsflow.reporting import show

    show.print_listing(kind, sys.stdout)


@cli.command("show")
@click.argument("source", metavar="[FILE]", required=False, type=options.Source())
@click.option("--json", "as_json", is_flag=True, help="Print JSON; for a manifest, an array with its parents first.")
@click.option("--network", help="Print this network, or what a PyTorch module becomes (net.py:Net), instead of a file.")
@click.option("--channels", type=COUNT, default=3, show_default=True, help="With --network: channels of the images.")
@click.option("--resolution", type=COUNT, default=32, show_default=True, help="With --network: their pixels a side.")
@click.option("--classes", type=COUNT, default=10, show_default=True, help="With --network: the number of classes.")
def show_command(
    source: Path | None, as_json: bool, network: str | None, channels: int, resolution: int, classes: int
) -> None:
    """Print a manifest and its parents, a profile, the contents of a .tflite or .onnx file, or a network.

    For the name of a model that comes with dmsflow, or the folder of a run, print its manifests; while the search of a
    run is not finished, print how far it is. For a model file of any origin, print its ops with their shapes, channels
    and bytes, and the layers that are binary but neither smaller nor faster.

    Example: dmsflow show runs/vgg11-cifar10/bench.json
    """
    from dmsflow.reporting import show

    if (source is None) == (network is None):
        raise DmsflowError(
            "show", "takes one of FILE and --network", "give the path of a file, or a network by its name"
        )
    if source:
        show.show_file(source, as_json, sys.stdout)
    else:
        show.show_network(network or "", (channels, resolution, classes), as_json, sys.stdout)


@cli.command("report")
@click.argument("sources", metavar="RUN...", nargs=-1, required=True, type=options.Source())
@click.option(
    "--out", type=FILE, show_default="report.html in the folder of the first RUN", help="Write the page to this file."
)
@click.option("--figures", type=FILE, help="Also write each figure to a file in this folder.")
@click.option("--format", "form", type=click.Choice(["svg", "png"]), default="svg", help="Format of these figures.")
@click.option("--watch", is_flag=True, help="Write the page again while a search runs, until it is finished.")
def report_command(sources: tuple[Path, ...], out: Path | None, figures: Path | None, form: str, watch: bool) -> None:
    """Write the results of runs as one HTML page that works offline.

    RUN is the folder of a run, a folder of such folders, a manifest, or a model's name. Runs that differ only in their
    seed are combined. An earlier report is overwritten; any other file is not. The page of a search that still runs
    loads itself again every few seconds.

    Example: dmsflow report runs --figures pictures
    """
    from dmsflow.reporting.report import write_report

    click.echo(write_report(sources, out, folder=figures, form=form, watch=watch))


@cli.command("doctor")
@click.pass_context
def doctor_command(ctx: click.Context, /) -> None:
    """Print what is installed, and what each target still needs. The exit code is 1 if something is broken.

    Example: dmsflow doctor
    """
    rows, sound = doctor.report()
    print_table("doctor", ("what", "state", "to do"), rows, stream=sys.stdout)
    ctx.exit(0 if sound else 1)


NO_MEMORY_LEFT = b"dmsflow: memory: there is none left; close other programs, or allow dmsflow more\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code.

    0 done, 1 an error the user can fix or Ctrl-C, 2 usage, 3 budget missed, 70 a bug, 143 SIGTERM.
    """
    try:
        return _run(arguments)
    except (MemoryError, SystemError, ImportError):  # to say what is wrong takes memory too, and modules
        with contextlib.suppress(OSError):
            os.write(2, NO_MEMORY_LEFT)
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    write_anything()
    with lasting_streams(), interruptible() as received:
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(within_memory())
                if "TORCHELASTIC_RUN_ID" in os.environ and given[:1] != ["sweep"]:
                    stack.enter_context(importlib.import_module("dmsflow.training.processes").joined(*given[:1]))
                obj = ("dmsflow", *map(printable, given))
                return cli.main(given, prog_name="dmsflow", standalone_mode=False, obj=obj) or 0
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except DmsflowError as error:
            return _say(str(error), error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            return end_interrupted(given, received)
        except Exception as error:  # noqa: BLE001  # the last resort
            return end_interrupted(given, received) if received else _explain(error, given)


def _explain(error: Exception, arguments: Sequence[str]) -> int:
    """Say in a line what nobody foresaw; the exit code."""
    if os.environ.get("DMSFLOW_TRACEBACK"):
        traceback.print_exception(error)
    if isinstance(error, ImportError):
        module = (error.name or "").split(".")[0]
        if extra := environment.extra_of(module):
            what = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
            return _say(f"{module}: {what}; pip install 'dmsflow[{extra}]'")
    if isinstance(error, OSError):
        where = error.filename or "a file, the output or a connection"
        command = cli.commands.get(arguments[0]) if arguments else None
        resumes = any(each.name == "resume" for each in getattr(command, "params", ()))
        right = "correct that, then use --resume to continue" if resumes else "correct that, and start again"
        return _say(f"{where}: {error.strerror or error}; {right}")
    right = "this is a bug: set DMSFLOW_TRACEBACK=1 to see where, and report it"
    return _say(" ".join(f"{type(error).__name__}: {error}; {right}".split()), 70)


def _say(line: str, exit_code: int = 1) -> int:
    click.echo(f"dmsflow: {line}", err=True)
    return exit_code

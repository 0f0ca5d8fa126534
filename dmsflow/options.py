"""The options of commands, made from the settings records, and the records made from what the user gave.

Each setting is declared once, in `settings`: as an option, or as one that only presets and `--set` change.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from click.core import ParameterSource
from click.shell_completion import CompletionItem
from msgspec import inspect

from dmsflow import manifest, plugin, preset, settings
from dmsflow.deploying.target import list_targets
from dmsflow.errors import DmsflowError
from dmsflow.reporting import shipped

RECORDS: dict[str, type[msgspec.Struct]] = {
    "data": settings.Data,
    **manifest.RECORDS,
    "profile": settings.ProfileSettings,
}
# What `run` has an option for, of the many settings of its stages; the rest is set by --set and presets.
RUN_OPTIONS: dict[str, tuple[str, ...]] = {
    "data": ("name", "data_dir", "resolution"),
    "search": ("network", "memory_mib", "macs_m", "file_kib", "profile", "latency_ms", "seed"),
    "train": ("seed",),
    "export": ("target",),
    "bench": (),
}

Command = TypeVar("Command", bound=Callable[..., Any])


def words(value: str) -> tuple[str, ...]:
    """Words separated by commas. (click shows the function's name as the type of an option.)"""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def numbers(value: str) -> tuple[int, ...]:
    """Integers separated by commas."""
    try:
        return tuple(map(int, words(value)))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of integers such as 140,220,260.") from error


class Choice(click.Choice):  # type: ignore[type-arg, unused-ignore]  # generic in newer releases of click only
    """One of some words. For a word of an earlier version, the error names the present one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if (present := settings.RENAMED_METHODS.get(value)) in self.choices:
            raise DmsflowError(f"{param and param.opts[0]} {value}", "was renamed", f"use {present}")
        return super().convert(value, param, ctx)


class SettingOption(click.Option):
    """An option made from one field of one record, or of several that share it."""

    def __init__(self, record: str, field: str, *arguments: Any, **options: Any) -> None:
        self.records: tuple[str, ...] = (record,)
        self.field = field
        super().__init__(*arguments, **options)


class StageCommand(click.Command):
    """A command with `flow_options`; its errors name the present form of an option or variable of an earlier version."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name.lstrip("-").removeprefix("no-").replace("-", "_")
            raise _explain_option(self, error.option_name, name) or error from error
        prefix = f"{ctx.auto_envvar_prefix}_"
        for variable in sorted(name for name in os.environ if name.startswith(prefix)):
            wrong = _explain_option(self, variable, variable.removeprefix(prefix).lower())
            if wrong and not ctx.resilient_parsing:  # which is that of shell completion
                raise wrong
        if ctx.params["resume"] and ctx.params["force"]:
            raise click.UsageError("--resume keeps finished stages and --force repeats them: use only one of them.")
        return rest


def _records_of(command: click.Command) -> list[str]:
    """The settings records that a command makes."""
    made = {record for param in command.params if isinstance(param, SettingOption) for record in param.records}
    return [record for record in RECORDS if record in (RUN_OPTIONS if command.name == "run" else made)]


def _explain_option(command: click.Command, given: str, name: str) -> DmsflowError | None:
    """The error for an option or variable of an earlier version; None if it exists today, or never existed."""
    params = {param.name for param in command.params}
    if name == "baseline" and name in params and given.startswith("--no-"):
        return DmsflowError(given, "was renamed", "use --baseline none")
    if name in params:
        return None
    if name in settings.REMOVED_FIELDS:
        return DmsflowError(given, "was removed", settings.REMOVED_FIELDS[name])
    holders = {}  # records that have such a setting, with its present name
    for record in _records_of(command):
        for short in (name, name.removeprefix(f"{record}_")):  # `run` had the stage before some: --train-batch-size
            present = settings.RENAMED_FIELDS.get(short, short)
            if present in RECORDS[record].__struct_fields__:
                holders[record] = present
    for present in params & set(holders.values()):
        return DmsflowError(given, "was renamed", f"use --{present.replace('_', '-')}")
    if holders and "set" in params:
        named = " or ".join(f"--set {record}.{present}=VALUE" for record, present in holders.items())
        return DmsflowError(given, "is no longer an option", f"use {named}, or a preset")
    return None


def settings_options(*records: str, only: dict[str, tuple[str, ...]] | None = None) -> Callable[[Command], Command]:
    """An option for each field of the records that should have one; fields with the same name share it."""
    options: dict[str, SettingOption] = {}
    for record in records:
        for field in inspect.type_info(RECORDS[record]).fields:  # type: ignore[attr-defined]
            kind, meta = peel_type(field.type)
            if field.name not in only.get(record, ()) if only else not meta.get("option", True):
                continue
            name = "dataset" if (record, field.name) == ("data", "name") else field.name
            if name in options:
                options[name].records += (record,)
            else:
                options[name] = _option(record, field, name, kind, meta)
    return _add(*options.values())


def _add(*params: click.Parameter) -> Callable[[Command], Command]:
    """These parameters of a command, in this order."""

    def decorate(function: Command) -> Command:
        function.__click_params__ = [*getattr(function, "__click_params__", []), *reversed(params)]  # type: ignore[attr-defined]
        return function

    return decorate


def _option(record: str, field: inspect.Field, name: str, kind: inspect.Type, meta: dict[str, Any]) -> SettingOption:
    flag = f"--{name.replace('_', '-')}"
    flag = f"{flag}/--no-{flag[2:]}" if isinstance(kind, inspect.BoolType) else flag
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    complete = _completion(COMPLETED[name]) if name in COMPLETED else None
    facts = {"type": _type(kind), "default": default, "help": meta["description"], "shell_complete": complete}
    return SettingOption(record, field.name, [flag, name], **facts)


def as_words(record: str, values: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command line: an option, or --set for a field that has none.

    >>> as_words("search", {"memory_mib": 0.08, "rounds": 4})
    ['--memory-mib', '0.08', '--set', 'search.rounds=4']
    """
    words: list[str] = []
    for field in inspect.type_info(RECORDS[record]).fields:  # type: ignore[attr-defined]
        value = values.get(field.name)
        if value is None:
            continue
        text = msgspec.json.encode(value).decode() if isinstance(value, (bool, list, tuple)) else str(value)
        flag = "--dataset" if (record, field.name) == ("data", "name") else f"--{field.name.replace('_', '-')}"
        if not peel_type(field.type)[1].get("option", True):
            words += ["--set", f"{record}.{field.name}={text}"]
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, ",".join(map(str, value)) if isinstance(value, (list, tuple)) else text]
    return words


def peel_type(kind: inspect.Type, meta: dict[str, Any] | None = None) -> tuple[inspect.Type, dict[str, Any]]:
    """The type inside `Annotated` and `| None`, and the contents of its Meta."""
    meta = meta or {}
    if isinstance(kind, inspect.Metadata):
        return peel_type(kind.type, {**(kind.extra_json_schema or {}), **(kind.extra or {}), **meta})
    if isinstance(kind, inspect.UnionType):
        return peel_type(next(inner for inner in kind.types if not isinstance(inner, inspect.NoneType)), meta)
    return kind, meta


def _type(kind: inspect.Type) -> Any:
    if isinstance(kind, inspect.LiteralType):
        return Choice(kind.values)
    if isinstance(kind, inspect.VarTupleType):
        return words if isinstance(peel_type(kind.item_type)[0], inspect.StrType) else numbers
    if isinstance(kind, (inspect.BoolType, inspect.StrType)):
        return click.BOOL if isinstance(kind, inspect.BoolType) else click.STRING
    assert isinstance(kind, (inspect.IntType, inspect.FloatType))
    low, high = (kind.ge if kind.gt is None else kind.gt), (kind.le if kind.lt is None else kind.lt)
    high = None if high in (settings.MOST, settings.LARGEST) else high
    bounds: dict[str, Any] = {"min": low, "max": high, "min_open": kind.gt is not None, "max_open": kind.lt is not None}
    return click.IntRange(**bounds) if isinstance(kind, inspect.IntType) else click.FloatRange(**bounds)


# --- shell completion ---------------------------------------------------------------------------


COMPLETED: dict[str, Callable[[], list[str]]] = {
    "network": lambda: plugin.list_plugins("networks"),
    "dataset": lambda: plugin.list_plugins("datasets"),
    "target": list_targets,
    "profile": lambda: importlib.import_module("dmsflow.network.profile").profile_names(),
}


def _completion(names: Callable[[], list[str]]) -> Any:
    """Names that begin as what was typed; a path of the user's own completes as a file."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]

    return complete


class Source(click.Path):  # type: ignore[type-arg, unused-ignore]  # as above
    """A path, or the name of a model that comes with dmsflow: then the path of the manifest that the command reads."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return shipped.find_model(Path(value), ctx.command.name or "" if ctx else "")

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return list(_completion(shipped.model_names)(ctx, param, incomplete))


# --- options of several commands ----------------------------------------------------------------


def flow_options(out: str) -> Callable[[Command], Command]:
    """The options of every stage; `out` describes the default folder."""
    return _add(
        click.Option(["--out"], type=click.Path(path_type=Path), show_default=out, help="Write to this folder."),
        click.Option(["--resume"], is_flag=True, help="Continue an interrupted run; keep finished stages."),
        click.Option(["--force"], is_flag=True, help="Repeat the stage; the old files stand until it is done."),
        click.Option(["--dry-run"], is_flag=True, help="Print the plan; compute and write nothing."),
    )


# Where settings come from that have no option.
EFFORT_HELP = "Do a quarter of the work that the preset says (quick), or eight times as much (long)."
PRESET_HELP = "Take settings from a preset (dmsflow list presets) or from the path of a .toml file."
SET_HELP = "Set any other setting, such as search.rounds=32 (docs/settings.md)."
preset_options: Callable[[Any], Any] = _add(
    click.Option(["--effort"], type=click.Choice(list(preset.EFFORTS)), default="normal", help=EFFORT_HELP),
    click.Option(["--preset"], default="default", help=PRESET_HELP, shell_complete=_completion(preset.preset_names)),
    click.Option(["--set"], multiple=True, metavar="STAGE.NAME=VALUE", help=SET_HELP),
)
tensorboard_option = click.option(
    "--tensorboard", is_flag=True, help="Also write curves for TensorBoard, to OUT/tensorboard."
)


def _trust(ctx: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        ctx.with_resource(plugin.trusting())


trust_option = click.option(
    "--trust", is_flag=True, expose_value=False, callback=_trust, help="Run the .py files that FILE names."
)
download_option = click.option("--download", is_flag=True, help="Download the data set if its files are missing.")
source_argument = click.argument("source", metavar="FILE", type=Source())


def resolved(ctx: click.Context, record: str) -> Any:
    """A settings record: its defaults, then preset, effort, --set, and options and environment variables."""
    values: dict[str, Any] = {}
    if "preset" in ctx.params:
        values = preset.from_preset(RECORDS[record], record, ctx.params["preset"], ctx.params["effort"])
    kinds = {each: RECORDS[each] for each in _records_of(ctx.command)}
    assigned = ctx.params.get("set", ())
    if ctx.get_parameter_source("set") is ParameterSource.COMMANDLINE:  # to which click leaves out the variable's
        option = next(each for each in ctx.command.params if each.name == "set")
        assigned = (*(option.value_from_envvar(ctx) or ()), *assigned)
    values |= preset.parse_assignments(record, kinds, assigned)
    for param in ctx.command.params:
        if not isinstance(param, SettingOption) or record not in param.records or not param.name:
            continue
        if ctx.get_parameter_source(param.name) is not ParameterSource.DEFAULT:
            values[param.field] = ctx.params[param.name]
    return settings.resolve(RECORDS[record], **values)

"""The options of commands, made from the settings records, and the records made from what the user said.

An option is made from each field, so a setting is said once: in `settings.py` or, for images, in
`manifest.Data`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from click.core import ParameterSource
from msgspec import inspect

from dmsflow import settings
from dmsflow.settings import Data

RECORDS: dict[str, type[msgspec.Struct]] = {
    "data": Data,
    "search": settings.SearchSettings,
    "train": settings.TrainSettings,
    "export": settings.ExportSettings,
    "bench": settings.BenchSettings,
    "profile": settings.ProfileSettings,
}
# Fields that two stages share: `run` takes them once, for both.
SHARED = {**dict.fromkeys(settings.Record.__struct_fields__, ("search", "train")), "profile": ("search", "bench")}

Command = TypeVar("Command", bound=Callable[..., Any])


class Numbers(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic in newer releases of click only
    """Whole numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 140,220,260.", param, ctx)


class Words(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # as above
    """Words with commas between them."""

    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(",") if part.strip())


class SettingOption(click.Option):
    """An option made from one field of one record, or of several that share it."""

    def __init__(self, records: tuple[str, ...], field: str, *arguments: Any, **options: Any) -> None:
        self.records, self.field = records, field
        super().__init__(*arguments, **options)


class StageCommand(click.Command):
    """A command whose help has a section for each record it takes settings of."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            title = " and ".join(param.records).capitalize() if isinstance(param, SettingOption) else "Options"
            if row := param.get_help_record(ctx):
                sections.setdefault(title, []).append(row)
        for title in sorted(sections, key=lambda title: title == "Options"):
            with formatter.section(title):
                formatter.write_dl(sections[title], col_max=34)


def settings_options(*records: str) -> Callable[[Command], Command]:
    """An option for each field of the records; names that two of them would share get a prefix."""
    options: dict[str, SettingOption] = {}
    for record in records:
        for field in inspect.type_info(RECORDS[record]).fields:  # type: ignore[attr-defined]
            name = spelling(record, field.name, records)
            if name in options:
                options[name].records += (record,)
            else:
                options[name] = _option(record, field, name)

    def decorate(function: Command) -> Command:
        function.__click_params__ = [*getattr(function, "__click_params__", []), *reversed(options.values())]  # type: ignore[attr-defined]
        return function

    return decorate


def spelling(record: str, field: str, records: Sequence[str]) -> str:
    """The name, with underscores, of the option for a field, among the options of all `records`."""
    if record == "data":
        return "dataset" if field == "name" else field
    if record in SHARED.get(field, ()):
        return field
    holders = [other for other in records if field in RECORDS[other].__struct_fields__]
    return field if holders == [record] else f"{record}_{field}"


def _option(record: str, field: inspect.Field, name: str) -> SettingOption:
    kind, description = _peel(field.type)
    flag = f"--{name.replace('_', '-')}"
    if isinstance(kind, inspect.BoolType):
        flag = f"{flag}/--no-{flag[2:]}"
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return SettingOption(
        (record,),
        field.name,
        [flag, name],
        type=_type(kind),
        default=default,
        show_default=default is not None,
        help=description,
    )


def _peel(kind: inspect.Type, description: str = "") -> tuple[inspect.Type, str]:
    """The type inside `Annotated` and `| None`, and what its Meta says of it."""
    if isinstance(kind, inspect.Metadata):
        return _peel(kind.type, (kind.extra_json_schema or {}).get("description", description))
    if isinstance(kind, inspect.UnionType):
        return _peel(next(inner for inner in kind.types if not isinstance(inner, inspect.NoneType)), description)
    return kind, description


def _type(kind: inspect.Type) -> Any:
    if isinstance(kind, inspect.LiteralType):
        return click.Choice(kind.values)
    if isinstance(kind, inspect.VarTupleType):
        return Words() if isinstance(_peel(kind.item_type)[0], inspect.StrType) else Numbers()
    if isinstance(kind, inspect.BoolType):
        return click.BOOL
    if isinstance(kind, inspect.StrType):
        return click.STRING
    if not isinstance(kind, (inspect.IntType, inspect.FloatType)):
        raise TypeError(f"no option is known for {kind}")
    low, high = (kind.ge if kind.gt is None else kind.gt), (kind.le if kind.lt is None else kind.lt)
    bounds: dict[str, Any] = {"min": low, "max": high, "min_open": kind.gt is not None, "max_open": kind.lt is not None}
    return click.IntRange(**bounds) if isinstance(kind, inspect.IntType) else click.FloatRange(**bounds)


def flow_options(out: str) -> Callable[[Command], Command]:
    """What every stage has; `out` tells the folder that is taken where none is given."""

    def decorate(function: Command) -> Command:
        for option in (
            click.option(
                "--dry-run", is_flag=True, help="Resolve everything and print the plan; compute and write nothing."
            ),
            click.option("--force", is_flag=True, help="Do it again, and overwrite."),
            click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped; leave what is done."),
            click.option("--out", type=click.Path(path_type=Path), show_default=out, help="Folder to write to."),
        ):
            function = option(function)
        return function

    return decorate


preset_option = click.option(
    "--preset",
    default="quick",
    show_default=True,
    help="Values for all options not given: see dmsflow list presets, or the path of a .toml file.",
)
download_option = click.option("--download", is_flag=True, help="Fetch the data set if its files are missing.")
source_argument = click.argument("source", metavar="FILE", type=click.Path(path_type=Path))


def resolved(ctx: click.Context, record: str) -> Any:
    """A settings record: its defaults, then the preset, then what the user said (options, environment)."""
    values = settings.preset(record, ctx.params["preset"]) if "preset" in ctx.params else {}
    for param in ctx.command.params:
        if isinstance(param, SettingOption) and record in param.records:
            assert param.name
            if ctx.get_parameter_source(param.name) is not ParameterSource.DEFAULT:
                values[param.field] = ctx.params[param.name]
    return settings.resolve(RECORDS[record], **values)

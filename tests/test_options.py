"""Options made from settings, in the commands that take them, and settings made from options."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import pytest
from click.shell_completion import ShellComplete

from dmsflow import cli, options, settings
from dmsflow.errors import DmsflowError
from dmsflow.options import SettingOption
from dmsflow.settings import BenchSettings, SearchSettings, TrainSettings

SOURCES = {"train": ["x.json"], "export": ["x.json"], "bench": ["x.json"], "profile": ["--name", "x"]}


def context(command: str, *arguments: str) -> click.Context:
    parent = click.Context(cli.cli, info_name="dmsflow", **cli.cli.context_settings)
    return cli.cli.commands[command].make_context(command, list(arguments), parent=parent)


@pytest.mark.parametrize("record", options.RECORDS)
def test_every_field_has_one_option_or_is_set_by_set(record: str) -> None:
    command = "search" if record == "data" else record
    made = [param for param in cli.cli.commands[command].params if isinstance(param, SettingOption)]
    fields = [option.field for option in made if record in option.records]
    assert len(fields) == len(set(fields)) and set(fields) <= set(options.RECORDS[record].__struct_fields__)
    names = [name for option in cli.cli.commands[command].params for name in (*option.opts, *option.secondary_opts)]
    assert len(names) == len(set(names))
    ctx = context(command, *SOURCES.get(command, []))
    assert options.resolved(ctx, record) == options.RECORDS[record]()
    if set(fields) != set(options.RECORDS[record].__struct_fields__):
        assert "--set" in names


def test_search_and_run_fit_one_screen() -> None:
    for command, most in (("search", 23), ("run", 20)):
        shown = [param for param in cli.cli.commands[command].params if isinstance(param, click.Option)]
        assert len(shown) <= most
        text = cli.cli.commands[command].get_help(context(command))
        assert len(text.splitlines()) <= 62  # at 80 columns


def test_help_of_search_fits_one_screen_of_110_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    assert cli.main(["search", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 110
    assert lines.count("Options:") == 1


def test_what_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*arguments: str) -> tuple[int, float | None]:
        found = options.resolved(context("search", *arguments), "search")
        return found.rounds, found.memory_mib

    assert resolve() == (16, None)
    assert resolve("--preset", "paper") == (50, 0.12)
    monkeypatch.setenv("DMSFLOW_SEARCH_MEMORY_MIB", "0.2")
    assert resolve("--preset", "paper") == (50, 0.2)
    assert resolve("--preset", "paper", "--memory-mib", "0.3") == (50, 0.3)
    assert resolve("--preset", "paper", "--set", "search.rounds=16") == (16, 0.2)
    monkeypatch.setenv("DMSFLOW_SEARCH_SET", "search.rounds=7 search.memory_mib=0.5")
    assert resolve() == (7, 0.2)
    assert resolve("--set", "search.weight_steps=9") == (7, 0.2), "the variable's assignments stay"
    assert resolve("--set", "search.rounds=8") == (8, 0.2)


@pytest.mark.parametrize("value", ['"many"', "[8]", "0", "true", "1e308"])
def test_effort_scales_no_value_that_is_none(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text(f"[search]\nrounds = {value}\n")
    arguments = ["search", "--preset", str(preset), "--effort", "long", "--dataset", "digits", "--dry-run"]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.startswith("dmsflow: setting rounds: ")


def test_effort_scales_what_is_not_set_otherwise() -> None:
    def resolve(*arguments: str) -> tuple[int, int, int]:
        ctx = context("run", *arguments)
        search, train = options.resolved(ctx, "search"), options.resolved(ctx, "train")
        return search.rounds, search.weight_steps, train.epochs or train.normal_epochs

    assert resolve("--effort", "normal") == resolve() == (16, 40, 12)
    assert resolve("--effort", "quick") == (8, 20, 3)
    assert resolve("--effort", "long") == (32, 160, 96)
    assert resolve("--effort", "quick", "--preset", "digits") == (4, 10, 10)
    assert resolve("--effort", "long", "--set", "train.epochs=3") == (32, 160, 3)


def test_run_takes_every_setting_of_its_stages() -> None:
    given = ["search.batch_size=32", "train.batch_size=16", "bench.threads=2", "train.milestones=[3, 5]"]
    ctx = context("run", "--seed", "7", *(word for text in given for word in ("--set", text)))
    search, training, bench = (options.resolved(ctx, stage) for stage in ("search", "train", "bench"))
    assert search == msgspec.structs.replace(SearchSettings(), seed=7, batch_size=32)
    assert training == msgspec.structs.replace(TrainSettings(), seed=7, batch_size=16, milestones=(3, 5))
    assert bench == msgspec.structs.replace(BenchSettings(), threads=2)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "search.mood=3",
            r"--set search.mood=3: is not a setting of this command; write STAGE.NAME=VALUE with one of seed, .*rounds",
        ),
        (
            "serch.rounds=3",
            r"--set serch.rounds=3: is not a setting of this command; .* with one of data.NAME, search.NAME",
        ),
        ("search.rounds", "--set search.rounds: is not a setting of this command; write STAGE.NAME=VALUE"),
        ("search.rounds=many", "setting rounds: 'many' is not valid; expected `int`, got `str`"),
        ("search.amp=maybe", "setting amp: 'maybe' is not valid; use one of auto, off, on"),
        ("search.method=flat", "method flat: was renamed; use equal"),
    ],
)
def test_a_wrong_assignment_is_named(text: str, line: str) -> None:
    with pytest.raises(DmsflowError, match=line):
        options.resolved(context("search", "--set", text), "search")


@pytest.mark.parametrize(
    ("command", "words", "line"),
    [
        ("search", ("--mixed", "off"), "--mixed: is no longer an option; use --set search.amp=VALUE, or a preset"),
        (
            "search",
            ("--head-start", "0.1"),
            "--head-start: is no longer an option; use --set search.width_warmup=VALUE",
        ),
        ("search", ("--rounds", "3"), "--rounds: is no longer an option; use --set search.rounds=VALUE"),
        (
            "run",
            ("--train-batch-size", "3"),
            "--train-batch-size: is no longer an option; use --set train.batch_size=VALUE",
        ),
        ("bench", ("x.tflite", "--no-baseline"), "--no-baseline: was renamed; use --baseline none"),
        ("run", ("--no-baseline",), "--no-baseline: is no longer an option; use --set bench.baseline=VALUE"),
        ("profile", ("--patience-minutes", "3"), "--patience-minutes: was renamed; use --timeout-minutes"),
        ("search", ("--method", "flat"), "--method flat: was renamed; use equal"),
        ("search", ("--method", "between"), "--method between: was renamed; use interpolated"),
    ],
)
def test_an_option_of_an_earlier_version_names_the_new_one(command: str, words: tuple[str, ...], line: str) -> None:
    with pytest.raises(DmsflowError, match=line):
        context(command, *words)


@pytest.mark.parametrize("name", settings.REMOVED_FIELDS)
def test_a_setting_that_is_gone_says_what_to_do(name: str) -> None:
    command = "export" if name == "onnx_form" else "search"
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(DmsflowError, match=rf"{option}: was removed; leave it out"):
        context(command, option, "x", *SOURCES.get(command, []))
    with pytest.raises(DmsflowError, match=rf"setting {name}: was removed; leave it out"):
        settings.resolve(SearchSettings, **{name: "x"})


RIGHT = {f"setting {old}: was renamed; use {new}": old for old, new in settings.RENAMED_FIELDS.items()}
RIGHT |= {f"setting {old}: was removed; {what}": old for old, what in settings.REMOVED_FIELDS.items()}


@pytest.mark.parametrize("line", RIGHT)
def test_set_and_presets_name_what_a_setting_of_an_earlier_version_is_now(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text(f"[search]\n{RIGHT[line]} = 1\n")
    for words in (("--set", f"search.{RIGHT[line]}=1"), ("--preset", str(preset))):
        assert cli.main(["search", *words]) == 1
        assert capsys.readouterr().err == f"dmsflow: {line}\n"


@pytest.mark.parametrize("old", settings.RENAMED_METHODS)
def test_a_method_of_an_earlier_version_names_the_new_one(
    old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text(f'[search]\nmethod = "{old}"\n')
    for words in (("--set", f"search.method={old}"), ("--preset", str(preset)), ("--method", old)):
        assert cli.main(["search", *words]) == 1
        assert capsys.readouterr().err.endswith(f"method {old}: was renamed; use {settings.RENAMED_METHODS[old]}\n")


@pytest.mark.parametrize(
    ("words", "tables"),
    [
        (["search", "--set", "train.epochs=1"], "data.NAME, search.NAME"),
        (["train", "x.json", "--set", "search.rounds=1"], "train.NAME"),
        (["run", "--set", "profile.points=3"], "data.NAME, search.NAME, train.NAME, export.NAME, bench.NAME"),
    ],
)
def test_set_refuses_what_the_command_does_not_read(
    words: list[str], tables: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 1
    right = f"is not a setting of this command; write STAGE.NAME=VALUE with one of {tables}"
    assert capsys.readouterr().err == f"dmsflow: --set {words[-1]}: {right}\n"


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("SEARCH_ROUNDS", "is no longer an option; use --set search.rounds=VALUE, or a preset"),
        ("SEARCH_MIXED", "is no longer an option; use --set search.amp=VALUE, or a preset"),
        ("SEARCH_BAND", f"was removed; {settings.REMOVED_FIELDS['band']}"),
        ("RUN_TRAIN_EPOCHS", "is no longer an option; use --set train.epochs=VALUE, or a preset"),
        ("PROFILE_PATIENCE_MINUTES", "was renamed; use --timeout-minutes"),
    ],
)
def test_a_variable_of_an_earlier_version_is_answered_as_its_option_is(
    variable: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"DMSFLOW_{variable}", "3")
    command = variable.partition("_")[0].lower()
    assert cli.main([command, *SOURCES.get(command, [])]) == 1
    assert capsys.readouterr().err == f"dmsflow: DMSFLOW_{variable}: {line}\n"


def test_variables_of_options_and_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEARCH_MEMORY_MIB", "SEARCH_MOOD", "TRAIN_ROUNDS"):
        monkeypatch.setenv(f"DMSFLOW_{name}", "3")
    assert options.resolved(context("search"), "search") == SearchSettings(memory_mib=3)


def test_set_comes_from_the_environment_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DMSFLOW_SEARCH_SET", "search.rounds=3 search.mood=4")
    assert cli.main(["search"]) == 1
    assert "--set search.mood=4: is not a setting" in capsys.readouterr().err
    monkeypatch.setenv("DMSFLOW_SEARCH_SET", "search.rounds=3 search.min_ratio=0.5")
    assert options.resolved(context("search"), "search") == SearchSettings(rounds=3, min_ratio=0.5)


def test_an_option_that_never_was_is_a_usage_error() -> None:
    with pytest.raises(click.NoSuchOption):
        context("search", "--mood", "good")


@pytest.mark.parametrize(
    ("option", "typed", "value"),
    [
        ("--network", "vgg", "vgg11"),
        ("--dataset", "cifar1", "cifar100"),
        ("--target", "arm", "arm64"),
        ("--profile", "epyc-l", "epyc-lce"),
        ("--preset", "pa", "paper"),
    ],
)
def test_the_shell_completes_values(option: str, typed: str, value: str) -> None:
    complete = ShellComplete(cli.cli, {}, "dmsflow", "_DMSFLOW_COMPLETE")
    assert value in [item.value for item in complete.get_completions(["run", option], typed)]
    assert [item.type for item in complete.get_completions(["run", option], "./mine")] == ["file"]


def test_lists_and_flags() -> None:
    ctx = context("train", "x.json", "--set", "train.milestones=[3, 5]", "--from-float")
    found = options.resolved(ctx, "train")
    assert found.milestones == (3, 5) and found.from_float
    assert not options.resolved(context("train", "x.json", "--no-from-float"), "train").from_float
    networks = options.resolved(context("profile", "--name", "x", "--networks", "vgg11, mine.py"), "profile").networks
    assert networks == ("vgg11", "mine.py")

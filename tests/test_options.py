"""Options made from settings, in the commands that take them, and settings made from options."""

from __future__ import annotations

import click
import msgspec
import pytest

from dmsflow import cli, options, settings
from dmsflow.options import SettingOption
from dmsflow.settings import SearchSettings, TrainSettings


def context(command: str, *arguments: str) -> click.Context:
    parent = click.Context(cli.cli, info_name="dmsflow", **cli.cli.context_settings)
    return cli.cli.commands[command].make_context(command, list(arguments), parent=parent)


@pytest.mark.parametrize("record", options.RECORDS)
def test_every_field_has_one_option_and_its_default(record: str) -> None:
    for command in {"data": ("run", "search"), "profile": ("profile",)}.get(record, ("run", record)):
        made = [param for param in cli.cli.commands[command].params if isinstance(param, SettingOption)]
        fields = [option.field for option in made if record in option.records]
        assert sorted(fields) == sorted(options.RECORDS[record].__struct_fields__)
        names = [name for option in cli.cli.commands[command].params for name in (*option.opts, *option.secondary_opts)]
        assert len(names) == len(set(names))
        needed = {"train": ["x.json"], "export": ["x.json"], "bench": ["x.json"], "profile": ["--name", "x"]}
        ctx = context(command, *needed.get(command, []))
        assert options.resolved(ctx, record) == options.RECORDS[record]()


def test_what_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    def momentum(*arguments: str) -> tuple[float, float | None]:
        found = options.resolved(context("search", *arguments), "search")
        return found.learning_rate_end, found.memory_mib

    monkeypatch.setattr(settings, "preset", lambda stage, name: {"memory_mib": 0.12} if name == "paper" else {})
    assert momentum() == (0.01, None)
    assert momentum("--preset", "paper") == (0.01, 0.12)
    monkeypatch.setenv("DMSFLOW_SEARCH_MEMORY_MIB", "0.2")
    assert momentum("--preset", "paper") == (0.01, 0.2)
    assert momentum("--preset", "paper", "--memory-mib", "0.3") == (0.01, 0.3)
    monkeypatch.setenv("DMSFLOW_SEARCH_LEARNING_RATE_END", "0.01")
    assert momentum() == (0.01, 0.2)


def test_an_option_wins_over_a_preset_even_with_the_default_value() -> None:
    assert options.resolved(context("search", "--preset", "paper"), "search").rounds == 50
    assert options.resolved(context("search", "--preset", "paper", "--rounds", "16"), "search").rounds == 16


def test_run_says_shared_settings_once_and_prefixes_clashes() -> None:
    ctx = context("run", "--seed", "7", "--search-batch-size", "32", "--train-batch-size", "16", "--bench-threads", "2")
    search, training, bench = (options.resolved(ctx, stage) for stage in ("search", "train", "bench"))
    assert (search.seed, training.seed) == (7, 7)
    assert (search.batch_size, training.batch_size) == (32, 16)
    assert (search.threads, training.threads, bench.threads) == (0, 0, 2)
    assert search == msgspec.structs.replace(SearchSettings(), seed=7, batch_size=32)
    assert training == msgspec.structs.replace(TrainSettings(), seed=7, batch_size=16)


def test_lists_and_flags() -> None:
    found = options.resolved(context("train", "x.json", "--milestones", "3, 5", "--from-float"), "train")
    assert found.milestones == (3, 5)
    assert found.from_float
    assert not options.resolved(context("train", "x.json", "--no-from-float"), "train").from_float

"""Writes docs/cli.md: an introduction, and the help of every command as the program prints it."""

from __future__ import annotations

from pathlib import Path

import click

from dmsflow.cli import cli

PAGE = Path(__file__).with_suffix(".md")
WIDTH = 100
INTRODUCTION = """\
# The command line

<!-- Written by docs/cli.py from the program's own help: edit that, then run `make docs`. -->

One command runs all four stages:

    dmsflow run --preset digits --out runs/demo

You can also run them one by one:

    dmsflow search --preset digits --out runs/demo
    dmsflow train  runs/demo/search.json
    dmsflow export runs/demo/train.json
    dmsflow bench  runs/demo/export.json

Each stage reads one [manifest](concepts.md) and writes one. It prints the path of its manifest to stdout, so that
`dmsflow train "$(dmsflow search …)"` works. Progress and tables go to stderr. [Concepts](concepts.md) explains the
terms of this page.

**For a latency budget on a device**, measure the device once, then give the search a budget in milliseconds.
bench prints the predicted latency beside the measured one ([profiles](profiles.md)).

    dmsflow profile --name desk
    dmsflow search  --dataset cifar10 --profile desk --latency-ms 0.3 --out runs/desk

**Settings** come from the defaults, `--preset`, `--effort`, `--set`, environment variables and options. If several of
them set the same value, the last one in this list wins ([every setting](settings.md)). The variable of an option has the
names of the command and the option: `DMSFLOW_SEARCH_PRESET=paper` is `--preset paper` of search, and
`DMSFLOW_SEARCH_SET="search.rounds=32 search.batch_size=64"` is two `--set`
([other variables](environment.md)). `--dry-run` prints the plan, and the budgets that are possible.

**After an interruption**, run the same command with `--resume`. search and train continue from their last checkpoint,
and finished stages are kept. `--resume` is refused if the settings differ from those of a
finished stage. `--force` repeats everything.

**Exit codes**: 0 means success, 1 an error (one line says what would be right) or Ctrl-C, 2 wrong usage, 3 a missed
budget, or a latency above `--require-ms` of bench, 70 a fault of dmsflow itself, and 143 an end by SIGTERM.

**Shell completion**: put one of these lines into your shell's start-up file. Tab then completes commands, options and
their values.

    eval "$(_DMSFLOW_COMPLETE=bash_source dmsflow)"     # ~/.bashrc; bash 4.4 or newer
    eval "$(_DMSFLOW_COMPLETE=zsh_source dmsflow)"      # ~/.zshrc
    _DMSFLOW_COMPLETE=fish_source dmsflow | source      # ~/.config/fish/config.fish
"""


def page() -> str:
    """The whole page."""
    sections = [INTRODUCTION, _section(None)]
    sections += [
        _section(name)
        for name in (
            "run",
            "search",
            "train",
            "export",
            "bench",
            "widths",
            "sweep",
            "profile",
            "report",
            "show",
            "list",
            "doctor",
        )
    ]
    return "\n".join(sections)


def _section(name: str | None) -> str:
    parent = click.Context(cli, info_name="dmsflow", **cli.context_settings, terminal_width=WIDTH)
    ctx = parent if name is None else click.Context(cli.commands[name], info_name=name, parent=parent)
    text = (cli if name is None else cli.commands[name]).get_help(ctx)
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {'dmsflow' if name is None else f'dmsflow {name}'}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

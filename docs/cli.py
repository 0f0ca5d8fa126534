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

    dmsflow run --preset digits --out runs/demo

does all four stages. One after the other they are

    dmsflow search --preset digits --out runs/demo
    dmsflow train  runs/demo/search.json
    dmsflow export runs/demo/train.json
    dmsflow bench  runs/demo/export.json

Each stage reads one manifest and writes one, and prints the path of what it wrote on stdout, so that
`dmsflow train "$(dmsflow search …)"` works. Progress and tables go to stderr.

**For a latency budget on a device**, measure the device once, and give the search its budget in milliseconds;
bench then prints the predicted latency beside the measured one ([profiles](profiles.md)).

    dmsflow profile --name desk
    dmsflow search  --dataset cifar10 --profile desk --latency-ms 0.3 --out runs/desk

**Settings** come from, last wins: the defaults, `--preset`, `--effort`, `--set`, environment variables, options
([every setting](settings.md)). The variable of an option is its name behind the command's: `DMSFLOW_SEARCH_PRESET=paper` stands for
`--preset paper` of search, `DMSFLOW_SEARCH_SET="search.rounds=32 search.batch_size=64"` for two `--set`;
[others](environment.md). `--dry-run` shows what would be done, and what budgets are
possible.

**After an interruption**, the same command with `--resume` continues where it stopped: search and train
from their last checkpoint, and finished stages are kept. `--resume` with settings that differ from those of a
finished stage is refused. `--force` does everything again.

**Exit codes**: 0 done; 1 an error with a line that says what would be right; 2 wrong usage; 3 a
budget, or what `--require-ms` of bench asks for, was missed.

**Shell completion**: Tab completes commands, options and their values once one of these lines is in your
shell's start-up file.

    eval "$(_DMSFLOW_COMPLETE=bash_source dmsflow)"     # ~/.bashrc; bash 4.4 or newer
    eval "$(_DMSFLOW_COMPLETE=zsh_source dmsflow)"      # ~/.zshrc
    _DMSFLOW_COMPLETE=fish_source dmsflow | source      # ~/.config/fish/config.fish
"""


def page() -> str:
    """The whole page."""
    sections = [INTRODUCTION, _section(None)]
    sections += [
        _section(name)
        for name in ("run", "search", "train", "export", "bench", "profile", "report", "show", "list", "doctor")
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

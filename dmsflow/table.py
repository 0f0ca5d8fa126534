"""One way to print a table; people read it, so programs get `--json` or the manifest instead."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

BLOCKS = "▁▂▃▄▅▆▇█"  # how large a number is, drawn beside it


def print_table(
    title: str, head: Sequence[str], rows: Iterable[Sequence[object]], *, stream: TextIO | None = None
) -> None:
    """Print rows under their heads; every column but the first is aligned right where it holds only numbers.

    Args:
        title: printed above.
        head: names of the columns, units included; empty for a table of labels and values.
        rows: cells, shown by `str`; None is shown as a dash.
        stream: stderr unless given, since a stage's stdout carries only its manifest's path.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [["–" if cell is None else str(cell) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, show_header=bool(head), pad_edge=False)
    for column in range(len(head) or max(map(len, cells), default=0)):
        numeric = column > 0 and all(_is_number(row[column]) for row in cells if row[column] != "–")
        table.add_column(head[column] if head else "", justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    stream = stream or sys.stderr
    console = Console(file=stream, width=None if stream.isatty() else 120, highlight=False)
    console.print(Text(title, style="bold"), soft_wrap=True)  # a table's own title would wrap to its width
    console.print(table)


def milliseconds(value: float) -> str:
    """Three significant digits, and no more of a thousand: 0.00123, 0.123, 12.3, 1234."""
    return f"{value:.0f}" if value == 0 or value >= 999.5 else f"{value:#.3g}".rstrip(".")


def block(part: float) -> str:
    """The block character for a part of a whole; more than nothing is never drawn as nothing."""
    return BLOCKS[min(len(BLOCKS) - 1, int(part * len(BLOCKS)))]


def _is_number(cell: str) -> bool:
    cell = cell.lstrip(BLOCKS + " ")
    return bool(cell) and cell[0] in "+-−0123456789" and cell[-1] in "0123456789%×"


def spelled_threads(count: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count} thread{'s' * (count != 1)}"


def spelled_method(method: str) -> str:
    """What stands before the name of a device: whether it ran anything, or was only modelled."""
    return "measured on" if method == "measured" else "modelled for"


def share_percent(part: float, whole: float) -> float:
    """A part of a whole; 0 of nothing."""
    return 100 * part / whole if whole else 0.0

"""The log of every round or epoch: a line in a .jsonl file, and TensorBoard's curves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from dmsflow.files import write_atomically
from dmsflow.training import processes

Row = dict[str, Any]


class Log:
    """The rows of a run so far, each written as it comes, by the first process.

    Args:
        path: of the .jsonl file, one row a line; it is there, whole, after every row.
        tensorboard: write a folder `tensorboard` beside it too (needs the extra tensorboard).
    """

    def __init__(self, path: Path, *, tensorboard: bool = False) -> None:
        self.path, self.rows = path, list[Row]()
        self._board: Any = None
        if tensorboard and processes.is_first():
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(path.parent / "tensorboard" / path.stem)

    def add(self, row: Row) -> None:
        """Append a row."""
        self.rows.append(row)
        if not processes.is_first():
            return
        write_atomically(self.path, b"".join(msgspec.json.encode(each) + b"\n" for each in self.rows))
        if self._board:
            for name, value in numbers_of(row):
                self._board.add_scalar(name, value, len(self.rows))
            self._board.flush()


def numbers_of(row: Row, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a row, by their names; those in a dictionary inside it as "widths/conv1".

    >>> list(numbers_of({"loss": 1.5, "phase": "binary", "widths": {"conv1": 16}}))
    [('loss', 1.5), ('widths/conv1', 16)]
    """
    for name, value in row.items():
        if isinstance(value, dict):
            yield from numbers_of(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{name}", value

"""The one exception that a user can act on, and text that a terminal can be given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

# In messages of torch, oneDNN, C++ and the system's loader about too little memory; the last two are Python's, where an
# extension module found none and set no exception.
NO_MEMORY = (
    *("out of memory", "allocate memory", "could not create a primitive", "bad_alloc", "failed to map segment"),
    *("without exception set", "without setting an exception"),
)


class DmsflowError(Exception):
    """An error that the user can correct; printed as one line, exit code 1.

    Args:
        where: the file, option or object that is wrong.
        what: what is wrong with it.
        right: what would be right.
    """

    exit_code = 1

    def __init__(self, where: object, what: str, right: str) -> None:
        super().__init__(printable(" ".join(f"{where}: {what}; {right}".split())))


def printable(text: str) -> str:
    r"""Text of any origin for a terminal or a page: what controls one becomes visible, and lines stay lines.

    >>> printable("conv\x1b[31m × 2")
    'conv\\x1b[31m × 2'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def require_utf8(where: str, text: str) -> str:
    """A name that is kept in a file, as it is; its bytes on the disk may be no text, and JSON has only text.

    Raises:
        DmsflowError: it is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DmsflowError(where, f"{text} is not UTF-8", "rename the file or folder") from error
    return text


class BudgetMissed(DmsflowError):
    """A budget or a requirement was missed by a finished stage; exit code 3."""

    exit_code = 3


@contextlib.contextmanager
def within_memory() -> Iterator[None]:
    """Turn an out-of-memory error in the block, of a GPU or this machine, into a DmsflowError."""
    try:
        yield
    except (MemoryError, RuntimeError, ImportError, OSError, SystemError) as error:
        why = str(error).partition("\n")[0]
        if not isinstance(error, MemoryError) and not any(words in why.lower() for words in NO_MEMORY):
            raise
        right = "set a smaller batch_size, free some memory, or use another --device"
        raise DmsflowError("memory", f"is too small ({why or 'nothing more can be allocated'})", right) from error

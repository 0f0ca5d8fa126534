"""The one exception that a user can act on."""

from __future__ import annotations


class DmsflowError(Exception):
    """An error that the user can correct; printed as one line, exit code 1.

    Args:
        where: the file, option or object that is wrong.
        what: what is wrong with it.
        right: what would be right.
    """

    exit_code = 1

    def __init__(self, where: object, what: str, right: str) -> None:
        super().__init__(" ".join(f"{where}: {what}; {right}".split()))


class BudgetMissed(DmsflowError):
    """A budget or a requirement was missed by a finished stage; exit code 3."""

    exit_code = 3

"""A process that is killed between any two changes of a folder, as far as one process can play it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest


class Killed(BaseException):
    """What `die_after` raises: no `except Exception` of the program stops it."""


def die_after(patch: pytest.MonkeyPatch, calls: int) -> list[int]:
    """Raise in the call of that number that changes a folder, and in every later one, as a killed process does nothing."""
    count = [0]

    def counted(plain: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] > calls:
                raise Killed
            return plain(*args, **kwargs)

        return call

    for owner, name in ((Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (Path, "rmdir"), (shutil, "rmtree")):
        patch.setattr(owner, name, counted(getattr(owner, name)))
    return count

"""How the scripts here end: as `dmsflow` does, an error in one line and with exit code 1."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from dmsflow.errors import DmsflowError


def run(main: Callable[[], object]) -> None:
    """Call a script's main, and end the program where it cannot go on."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except DmsflowError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted")

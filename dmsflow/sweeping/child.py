"""The command line in a process that ends with the one that started it: python -m dmsflow.sweeping.child WORDS."""

from __future__ import annotations

import os
import runpy
import signal
import threading
import time

EVERY_S = 0.5


def end_with(parent: int) -> None:
    """Wait until the parent has ended, then interrupt this process, which saves what it has."""
    while os.getppid() == parent:
        time.sleep(EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    runpy.run_module("dmsflow", run_name="__main__")

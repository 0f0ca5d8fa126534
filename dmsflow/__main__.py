"""The program: `dmsflow`, or `python -m dmsflow` for when the script is not on the path."""

from __future__ import annotations

import gc
import signal
import sys

from dmsflow.terminal import end_interrupted, interruptible

# Allocations between two collections; Python's own number, 700 to 2,000, is for programs without torch's million objects.
COLLECT_AFTER = 10_000


def main() -> int:
    """Run the command line of this process, and give its exit code."""
    gc.set_threshold(COLLECT_AFTER)
    with interruptible() as received:
        try:
            from dmsflow import cli
        except (KeyboardInterrupt, ImportError):
            if not received:
                raise
            code = end_interrupted(sys.argv[1:], received)
        else:
            code = cli.main()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is written: what still ends needs no traceback
    gc.freeze()  # as the process ends, Python looks through all that torch has made, for seconds
    return code


if __name__ == "__main__":
    sys.exit(main())

"""The program: `dmsflow`, or `python -m dmsflow` for when the script is not on the path."""

from __future__ import annotations

import signal
import sys

from dmsflow.terminal import end_interrupted, interruptible


def main() -> int:
    """Run the command line of this process, and give its exit code."""
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
    return code


if __name__ == "__main__":
    sys.exit(main())

"""The C++ part: LCE's operations for stock LiteRT, as a delegate in one shared library.

This file is also copied to devices beside the library, so it imports nothing but the errors.
"""

from __future__ import annotations

from pathlib import Path

from dmsflow.errors import DmsflowError

LIBRARY = "libdmsflow_lce.so"


def library() -> Path:
    """The delegate's library, for `load_delegate`.

    Raises:
        DmsflowError: it was not built when dmsflow was installed.
    """
    path = Path(__file__).with_name(LIBRARY)
    if not path.is_file():
        right = "install dmsflow from a wheel, or again from its source where a C++ compiler is (g++ or clang++)"
        raise DmsflowError(path, "this installation was made without the C++ part", right)
    return path

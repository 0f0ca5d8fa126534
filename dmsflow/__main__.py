"""`python -m dmsflow`, for when the script is not on the path."""

from __future__ import annotations

import sys

from dmsflow.cli import main

sys.exit(main())

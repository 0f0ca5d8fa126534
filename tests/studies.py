"""The studies of benchmarks/, which are scripts there and modules here."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import ablations  # noqa: E402
import budgets  # noqa: E402
import front  # noqa: E402
import int8  # noqa: E402
import jobs  # noqa: E402
import kernel_sizes  # noqa: E402
import modules  # noqa: E402
import quantisers  # noqa: E402
import recipe  # noqa: E402
import search_cost  # noqa: E402
import table1  # noqa: E402
import take_home  # noqa: E402

sys.path.remove(str(BENCHMARKS))

__all__ = [
    "BENCHMARKS",
    "ablations",
    "budgets",
    "front",
    "int8",
    "jobs",
    "kernel_sizes",
    "modules",
    "quantisers",
    "recipe",
    "search_cost",
    "table1",
    "take_home",
]

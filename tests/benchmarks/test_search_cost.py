"""benchmarks/search_cost.py: its two steps run at the same widths, and its windows are as wide as it says."""

from __future__ import annotations

import pytest
from studies import search_cost


@pytest.mark.parametrize(("narrow", "window"), [(True, 3), (False, 16)])
def test_both_steps_are_timed(narrow: bool, window: int) -> None:
    row = search_cost.row((16,) * 8, 4, narrow, 1, 1)
    assert (row["largest_widths"], row["window"]) == ((16,) * 8, window)
    assert min(row["search_ms"], row["plain_ms"], row["ratio"]) > 0

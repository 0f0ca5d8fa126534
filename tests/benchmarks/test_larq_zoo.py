"""benchmarks/larq_zoo.py: a small network, and the table of what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from studies import larq_zoo

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import timing  # noqa: E402

sys.path.remove(str(DOCS))


def test_both_files_of_a_network_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(larq_zoo, "NETWORKS", ("quicknet-small",))
    monkeypatch.setattr(larq_zoo, "RESOLUTION", 32)
    monkeypatch.setattr(larq_zoo, "CLASSES", 10)
    # The official converter takes seconds, and is not everywhere; its place here takes dmsflow's own file.
    monkeypatch.setattr(larq_zoo, "WRITERS", {"dmsflow": "direct", "official": "direct"})
    monkeypatch.setattr(larq_zoo, "RUNNERS", ("litert",))
    monkeypatch.setattr(larq_zoo.runtimes, "WARM_UP", 0)
    path = tmp_path / "larq-zoo.json"
    monkeypatch.setattr("sys.argv", ["larq_zoo.py", "--runs", "3", "--out", str(path)])
    larq_zoo.main()
    content = json.loads(path.read_text("utf-8"))
    (row,) = content["rows"]
    first, second = row["files"].values()
    assert first["operators"] == second["operators"] and first["operators"]["LceBconv2d"] == 16
    assert (
        first["file_bytes"] == second["file_bytes"] > 100_000 and 0 < first["litert_ms_minimum"] <= first["litert_ms"]
    )
    assert "16 LceBconv2d" in (page := timing.larq_zoo(content)) and "| quicknet-small | LCE's converter |" in page
    assert "Not run yet" in timing.larq_zoo(None)

"""benchmarks/modules.py: one module that goes through and one that is refused, at toy size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from studies import modules

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import timing  # noqa: E402

sys.path.remove(str(DOCS))


@pytest.mark.slow
def test_a_module_goes_through_or_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "MODULES", ("resnet18", "shufflenet_v2_x0_5"))
    monkeypatch.setattr(modules, "RESOLUTION", 32)
    monkeypatch.setattr(modules, "CLASSES", 2)
    words = ["modules.py", "--out", str(tmp_path / "runs"), "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    modules.main()
    monkeypatch.setattr(modules, "go_through", None)  # none is done twice
    modules.main()
    monkeypatch.setattr("sys.argv", [*words, "--tabulate"])
    modules.main()
    content = json.loads((tmp_path / "modules.json").read_text("utf-8"))
    through, refused = content["rows"]
    assert through["file_bytes"] > 100_000 and through["latency_ms_median"] > 0 and "refused" not in through
    assert refused["stage"] == "search" and "uses view" in refused["refused"]
    assert str(tmp_path) not in json.dumps(content), "no path of this machine is published"
    page = timing.modules(content)
    assert "Of 2 classifiers of torchvision, 1 go through" in page and "stage2.0.view: uses view" in page

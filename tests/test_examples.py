"""The examples of the guides and the notebook run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent


def python_blocks(page: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL))


@pytest.mark.slow
@pytest.mark.parametrize(("page", "printed"), [("docs/python.md", 9), ("README.md", 1)])
def test_the_python_examples_run(
    page: str, printed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(python_blocks(page), page, "exec"), {"__name__": "__main__"})
    written = capfd.readouterr()
    assert len(written.out.splitlines()) >= printed and written.err == ""


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    notebook = nbformat.read(ROOT / "examples" / "digits.ipynb", as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), "commit it without outputs"
    done = NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = "".join(
        output.get("text", "") for cell in done.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert float(re.search(r"([\d.]+) % of the test images", printed)[1]) > 90
    assert re.search(r"model\.onnx: [\d,]+ bytes", printed)

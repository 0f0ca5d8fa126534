"""The examples of the guides and the notebook run as they are printed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from dmsflow import cli

ROOT = Path(__file__).parent.parent


def python_blocks(page: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL))


@pytest.mark.slow
@pytest.mark.parametrize(("page", "printed"), [("docs/python.md", 10), ("README.md", 1)])
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


def masked(text: str) -> str:
    """Words with their numbers masked, so that lines are compared and not the speed of a machine."""
    return re.sub(r"\d[\d.,]*(e-\d+)?", "#", " ".join(text.split()))


@pytest.mark.slow
def test_getting_started_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every command in order; each line of the text below a command is among what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DMSFLOW_SEARCH_SET", "search.rounds=2 search.weight_steps=2 search.width_batches=2")
    monkeypatch.setenv("DMSFLOW_TRAIN_EPOCHS", "2")
    page = (ROOT / "docs" / "getting-started.md").read_text("utf-8")
    ran = []
    for commands, said in re.findall(r"^```sh\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", page, re.MULTILINE | re.DOTALL):
        for line in commands.splitlines():
            program, *arguments = shlex.split(line)
            if program == "python":
                subprocess.run([sys.executable, ROOT / arguments[0], *arguments[1:]], check=True)
            else:
                assert cli.main(arguments) == 0, f"{line}: {capfd.readouterr().err}"
                ran.append(arguments[0])
        printed = [masked(line) for line in "\n".join(capfd.readouterr()).splitlines()]
        printed = [re.sub("measured on: .*", "measured on: AMD EPYC, Linux x#_#", line) for line in printed]
        assert not [line for line in said.splitlines() if masked(line) not in printed]
    assert ran == ["doctor", "search", "search", "train", "export", "bench", "show", "report"]
    photos = sorted(Path("flowers", "test").glob("*/*.jpg"))
    program = [sys.executable, ROOT / "examples" / "classify.py", "runs/flowers/model.tflite", "flowers/test", *photos]
    lines = subprocess.run(program, check=True, capture_output=True, text=True).stdout.splitlines()
    right = [photo.parent.name == line.split()[1][:-1] for photo, line in zip(photos, lines, strict=True)]
    benched = json.loads(Path("runs", "flowers", "bench.json").read_bytes())["metrics"]
    assert 100 * sum(right) / len(photos) == pytest.approx(benched["top1_percent"])

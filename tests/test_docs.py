"""What the documents say is what the code does: help, manifest fields, and every worked example."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import msgspec
import pytest

from dmsflow import cli
from dmsflow.manifest import Artifact, Data, Manifest
from dmsflow.network import Layer, Network

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"(?:^`(?P<name>[\w.]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str | None, str, str]]:
    """Name of the file (if it is one), language and text of each fenced block."""
    return [(found["name"], found["kind"], found["text"]) for found in BLOCK.finditer((DOCS / page).read_text("utf-8"))]


def test_every_example_of_adding_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = 0
    for name, kind, text in blocks("adding.md"):
        if kind == "sh":
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "dmsflow"
                code = cli.main([*arguments, *(["--threads", "1"] if arguments[0] != "export" else [])])
                captured = capsys.readouterr()
                assert code == 0, f"{line}\n{captured.err}"
                assert Path(captured.out.strip()).is_file()
                commands += 1
        else:
            assert name, f"a {kind} block without a file name above it"
            Path(name).write_text(text, encoding="utf-8")
    assert commands == 7


def test_the_command_line_page_is_the_help() -> None:
    spec = importlib.util.spec_from_file_location("docs_cli", DOCS / "cli.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "cli.md").read_text("utf-8") == module.page(), "make docs writes it again"


@pytest.mark.parametrize("struct", [Manifest, Artifact, Data, Network, Layer])
def test_the_manifest_page_has_every_field(struct: type[msgspec.Struct]) -> None:
    text = (DOCS / "manifest.md").read_text("utf-8")
    section = re.search(rf"^## {struct.__name__}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"no section {struct.__name__}"
    fields = re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)
    assert fields == list(struct.__struct_fields__)

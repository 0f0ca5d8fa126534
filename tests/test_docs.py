"""What the documents say is what the code does: help, manifest fields, and every worked example."""

from __future__ import annotations

import ast
import io
import re
import runpy
import shlex
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from dmsflow import cli
from dmsflow.files import Artifact
from dmsflow.manifest import Manifest
from dmsflow.measuring import devices
from dmsflow.measuring.devices import Operation
from dmsflow.network.network import Layer, Network, Op
from dmsflow.network.profile import Checked, Granularity, Profile, Table
from dmsflow.reporting.show import show_file
from dmsflow.settings import Data

DOCS = Path(__file__).parent.parent / "docs"
ONE_THREAD = {stage: ("--set", f"{stage}.threads=1") for stage in ("search", "train")} | {"bench": ("--threads", "1")}
BLOCK = re.compile(r"(?:^`(?P<name>[\w.]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str | None, str, str]]:
    """Name of the file (if it is one), language and text of each fenced block."""
    return [(found["name"], found["kind"], found["text"]) for found in BLOCK.finditer((DOCS / page).read_text("utf-8"))]


def test_every_example_of_adding_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMSFLOW_PROFILE_TIMEOUT_MINUTES", "0")  # how sure the times are is not the matter here
    monkeypatch.setattr("dmsflow.measuring.timing.PAUSE_S", 0.0)
    commands = 0
    for name, kind, text in blocks("adding.md"):
        if kind == "sh":
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "dmsflow"
                code = cli.main([*arguments, *ONE_THREAD.get(arguments[0], ())])
                captured = capsys.readouterr()
                assert code == 0, f"{line}\n{captured.err}"
                assert arguments[0] == "show" or Path(captured.out.strip()).is_file()
                commands += 1
        else:
            assert name, f"a {kind} block without a file name above it"
            Path(name).write_text(text, encoding="utf-8")
    assert commands == 12


def test_the_command_line_page_is_the_help() -> None:
    page = runpy.run_path(str(DOCS / "cli.py"))["page"]
    assert (DOCS / "cli.md").read_text("utf-8") == page(), "make docs writes it again"


def test_the_settings_page_has_every_setting() -> None:
    page = runpy.run_path(str(DOCS / "settings_page.py"))["page"]
    assert (DOCS / "settings.md").read_text("utf-8") == page(), "make docs writes it again"


def test_the_tree_in_the_readme_is_the_packages() -> None:
    tree = runpy.run_path(str(DOCS / "tree.py"))
    for page, modules in ((tree["README"], False), (tree["ARCHITECTURE"], True)):
        text = page.read_text("utf-8")
        assert text == tree["with_tree"](text, modules=modules), "make docs writes it again"
        lines = list(tree["describe"](DOCS.parent / "dmsflow", modules=modules))
        assert len(lines) <= 45 and max(map(len, lines)) <= 120  # one screen


def test_every_package_says_in_one_line_what_it_is_for() -> None:
    for path in (DOCS.parent / "dmsflow").rglob("__init__.py"):
        first, _, rest = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")
        assert first.endswith(".") and (not rest or rest.startswith("\n")), path


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/adding.md", "docs/architecture.md"])
def test_the_files_that_a_page_names_exist(page: str) -> None:
    """Paths in backticks: from the repository's root, or the end of a path in dmsflow/."""
    root = DOCS.parent
    for name in re.findall(r"`(\w+/[\w./]+)`", (root / page).read_text("utf-8")):
        found = (root / name).exists() or any((root / "dmsflow").rglob(name if "." in name else f"{name}*"))
        assert found, f"{page} names {name}"


@pytest.mark.parametrize(
    ("page", "struct"),
    [
        *(("manifest.md", struct) for struct in (Manifest, Artifact, Data, Network, Layer)),
        *(("profiles.md", struct) for struct in (Profile, Table, Granularity, Checked)),
    ],
)
def test_a_page_of_records_has_every_field(page: str, struct: type[msgspec.Struct]) -> None:
    text = (DOCS / page).read_text("utf-8")
    section = re.search(rf"^## {struct.__name__}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"no section {struct.__name__}"
    fields = re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)
    assert fields == list(struct.__struct_encode_fields__)


def test_the_page_of_operations_has_every_operation() -> None:
    text = (DOCS / "operations.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert {op for row in rows for op in re.findall("`(.+?)`", row)} >= set(get_args(Op))


def test_the_profile_page_shows_what_show_prints() -> None:
    """Its titles and the names of its rows; figures change with every measurement, and carry their date."""
    (shown,) = (text for _, _, text in blocks("profiles.md") if text.startswith("$ dmsflow show"))
    command, *lines = shown.splitlines()
    out = io.StringIO()
    show_file(DOCS.parent / command.split()[-1], False, out)
    labels = [re.split(r"\s{2,}", line.strip())[0] for line in lines]
    words = {label for label in labels if re.match(r"[a-z]", label)}
    assert words <= {re.split(r"\s{2,}", line.strip())[0] for line in out.getvalue().splitlines()}
    assert words >= {"method", "steps of widths", "error on other networks", "date"}


def test_settings_and_metrics_of_latency_are_in_the_manifest_page() -> None:
    text = (DOCS / "manifest.md").read_text("utf-8")
    names = set(re.findall(r"`(\w+)`", text))
    assert names >= {"profile", "predicted_latency_ms", "prediction_error_percent", "pieces", "operations", "machine"}
    assert names >= set(Operation.__struct_fields__) | set(devices.Machine.__struct_fields__)


def test_the_options_that_the_profile_page_names_exist() -> None:
    text = (DOCS / "profiles.md").read_text("utf-8")
    known = {
        name
        for command in cli.cli.commands.values()
        for param in command.params
        for name in (*param.opts, *param.secondary_opts)
    }
    assert set(re.findall(r"`?(--[a-z-]+[a-z])", text)) <= known

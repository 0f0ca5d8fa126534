"""What docs/security.md promises and no other file tests; and that each line there names a test that exists."""

from __future__ import annotations

import ast
import os
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmsflow import cli, files
from dmsflow.reporting import page

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_every_line_names_tests_that_exist() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| rule")]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            tree = ast.parse((ROOT / "tests" / file).read_text())
            assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test


class Opened:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_an_archive_with_a_pickle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = np.array([Opened(tmp_path / "opened")], dtype=object)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(tmp_path / "a.npz", **dict.fromkeys(names, hostile))
    arguments = ["search", "--dataset", f"arrays:{tmp_path / 'a.npz'}", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    assert "a.npz" in capsys.readouterr().err and not (tmp_path / "opened").exists()


def test_no_shell_is_started() -> None:
    """No call in the package asks for one; what runs on a device goes through its shell, quoted."""
    for path in (ROOT / "dmsflow").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert all(keyword.arg != "shell" for keyword in node.keywords), path
                assert ast.unparse(node.func) not in ("os.system", "os.popen", "subprocess.getoutput"), path


def test_a_report_forbids_what_it_does_not_hold() -> None:
    policy = re.search(r"default-src 'none'[^\"]*", page.POLICY)
    assert policy and "script-src" not in page.POLICY and "http" not in page.POLICY


def test_an_image_that_unpacks_to_too_much_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A PNG of a few bytes whose head promises 40,000 × 40,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )
    for part in ("train", "test"):
        for kind in ("ant", "bee"):
            (tmp_path / "set" / part / kind).mkdir(parents=True)
            for number in range(8):
                (tmp_path / "set" / part / kind / f"{number}.png").write_bytes(bomb)
    dataset = ["--dataset", f"image-folder:{tmp_path / 'set'}", "--resolution", "32"]
    assert cli.main(["search", *dataset, "--method", "equal", "--out", str(tmp_path / "out")]) == 1
    assert "cannot be read as an image" in capsys.readouterr().err


def test_a_file_is_private_while_it_is_written(tmp_path: Path) -> None:
    with files.writing(tmp_path / "a.json") as partial:
        partial.write_bytes(b"secret")
        assert stat.S_IMODE(os.stat(partial).st_mode) == 0o600 and not (tmp_path / "a.json").exists()
    assert (tmp_path / "a.json").read_bytes() == b"secret"

"""Progress is plain lines where no one watches, and the last unit always has one."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from dmsflow import terminal
from dmsflow.errors import DmsflowError
from dmsflow.terminal import print_table


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.track("train", total=4, unit="epoch") as track:
        for _ in range(4):
            seconds[0] += 30
            track.advance(1, note="loss [1.20]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "train: epoch 1/4, 0:30 elapsed, 1:30 left | loss [1.20]",
        "train: epoch 2/4, 1:00 elapsed, 1:00 left | loss [1.20]",
        "train: epoch 3/4, 1:30 elapsed, 0:30 left | loss [1.20]",
        "train: epoch 4/4, 2:00 elapsed, 0:00 left | loss [1.20]",
    ]


def test_at_most_one_line_a_second_and_always_the_last(
    seconds: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.track("search", total=50, unit="step") as track:
        for _ in range(50):
            seconds[0] += 0.1
            track.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 6
    assert lines[-1] == "search: step 50/50, 0:05 elapsed, 0:00 left"


def test_a_resumed_loop_reckons_only_with_its_own_pace(
    seconds: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.track("train", total=10, unit="epoch", done=8) as track:
        seconds[0] += 60
        track.advance()
    assert capsys.readouterr().err == "train: epoch 9/10, 1:00 elapsed, 1:00 left\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with terminal.track("train", total=2, unit="epoch") as track:
        track.advance(2, note="loss [1.20]")
    shown = screen.getvalue()
    assert "2/2" in shown
    assert "━" in shown
    assert "loss [1.20]" in shown


@pytest.mark.parametrize(("given", "shown"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7205, "2:00:05")])
def test_clock(given: float, shown: str) -> None:
    assert terminal.clock(given) == shown


def test_a_table_shows_every_cell_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("result [x]", ("file", "median ms"), [("a[b].tflite", 0.5), ("c", None)])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split() for line in captured.err.splitlines() if line.strip() and "─" not in line] == [
        ["result", "[x]"],
        ["file", "median", "ms"],
        ["a[b].tflite", "0.5"],
        ["c", "–"],
    ]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, ""),
        (1, "conv1"),
        (2, "conv1 and conv2"),
        (4, "conv1, conv2, conv3 and conv4"),
        (5, "conv1, conv2, conv3 and 2 more"),
    ],
)
def test_names_in_a_line(count: int, shown: str) -> None:
    assert terminal.list_names([f"conv{index + 1}" for index in range(count)]) == shown


@pytest.mark.parametrize(
    "cell", ["0.12", "−3", "+0.1 ± 0.2", "98 %", "12%", "1.50×", "1,234", "▃ 0.12", "0.28 modelled", "2 draws"]
)
def test_a_number_is_aligned_right(cell: str) -> None:
    assert terminal.is_number(cell)


@pytest.mark.parametrize("cell", ["", "–", "16 32 64", "memory", "2 threads", "9d3f0ab", "0.12 ms by profile desk"])
def test_text_is_aligned_left(cell: str) -> None:
    assert not terminal.is_number(cell)


# --- text of others, and terminals that lack characters -------------------------------------------

HOSTILE = "conv\x1b[31m\x07\u202e[/b]\udcff"
VISIBLE = "conv\\x1b[31m\\x07\\u202e[/b]\\udcff"


def test_names_of_others_are_printed_as_visible_text(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    print_table(HOSTILE, (HOSTILE, "[bold]x"), [(HOSTILE, "1")], stream=stream)
    assert stream.getvalue().count(VISIBLE) == 3 and "[bold]x" in stream.getvalue()
    assert stream.getvalue().replace("\n", "").isprintable()
    terminal.print_line(HOSTILE)
    assert capsys.readouterr().err == VISIBLE + "\n"
    assert str(DmsflowError(HOSTILE, "is\nwrong", "x")) == f"{VISIBLE}: is wrong; x"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_stream_takes_every_character(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    terminal.write_anything()
    print_table("0.2 ± 0.1 µm", ("3×3 – 4", "→"), [("▃ 0.12", "σ")], stream=sys.stdout)
    print("a\udcffb", file=sys.stdout, flush=True)  # the path of a file, for a script
    shown = written.getvalue()
    assert shown.endswith(b"a\xffb\n")
    assert {"ascii": b"0.2 +- 0.1 um", "latin-1": b"0.2 \xb1 0.1 \xb5m", "utf-8": "±".encode()}[encoding] in shown


def test_the_command_line_prints_on_an_ascii_terminal() -> None:
    """`show` of a network's widths has ×; Python turns LC_ALL=C into UTF-8 by itself, but not this."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-m", "dmsflow", "show", "vgg11-cifar10-0.08"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert b"32x32 pixels" in done.stdout and done.stderr == b""

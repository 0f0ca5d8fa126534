"""The workflows of a public forge type what a developer types: each of their commands exists."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from dmsflow import cli

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def jobs(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load(path.read_text())["jobs"].values())


def check(command: str) -> None:
    """Raise unless a command is one of this project, or of the system that a workflow runs on."""
    words = shlex.split(command)
    match words[0]:
        case "make":
            assert {word for word in words[1:] if "=" not in word} <= TARGETS, command
        case "bash":
            assert (ROOT / words[1]).is_file(), command
        case ".venv/bin/dmsflow":
            cli.cli.commands[words[1]].make_context(words[1], words[2:])
        case _:
            assert words[0] == "sudo", command


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_command_of_a_workflow_exists(path: Path) -> None:
    commands = [step["run"] for job in jobs(path) for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        check(command)


@pytest.mark.parametrize("command", ["make tests", "bash .ci/runs", ".venv/bin/dmsflow bench x --fast", "tox"])
def test_a_command_that_does_not_exist_is_noticed(command: str) -> None:
    with pytest.raises((AssertionError, click.NoSuchOption)):
        check(command)


def test_every_python_that_the_project_names_is_tested() -> None:
    tested = {
        each
        for path in WORKFLOWS
        for job in jobs(path)
        for each in job.get("strategy", {}).get("matrix", {}).get("python", ())
    }
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    named = {word for each in classifiers for word in re.findall(r"Python :: (3\.\d+)$", each)}
    assert tested == named

"""A missing tool leaves out the tests that need it, names and counts them; with --all-tools it is an error."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import tools

TESTS = Path(__file__).parent
# As on a machine that has none of the tools, nor torch where the option says so.
BARE = """
import sys
sys.path.insert(0, sys.argv[1])
import tools
tools.SEARCHED = ""
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision"):
            raise ModuleNotFoundError(name)
if "--without-torch" in sys.argv:
    sys.meta_path.insert(0, NoTorch())
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


def collect(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE, str(TESTS), "--collect-only", *arguments, "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_what_is_not_run_is_named_and_counted() -> None:
    done = collect("tests/measuring/test_ssh.py", "tests/test_tools.py")
    assert done.returncode == 0 and "test_ssh.py::test_nobody_listens" not in done.stdout
    assert "test_ssh.py::test_arguments_reach_a_shell_quoted" in done.stdout  # which needs no server
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("not run here: "))
    assert line.endswith(" tests that need ssh and sshd (measuring/test_ssh.py)") and int(line.split()[3]) > 40
    assert "to run them: apt install openssh-client openssh-server" in done.stdout.splitlines()


@pytest.mark.slow
def test_with_all_tools_a_missing_one_is_an_error() -> None:
    done = collect("--all-tools", "tests/test_tools.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "not installed: " in done.stderr and "sshd" in done.stderr and "apt install " in done.stderr


def test_ci_installs_all_tools() -> None:
    script = (TESTS.parent / ".ci" / "run").read_text("utf-8")
    assert "packages=$(python3 tests/tools.py)" in script and "make test OPTIONS=--all-tools" in script
    assert script.index("make witness") < script.index("make test OPTIONS") < script.index("make test-without-torch")


@pytest.mark.parametrize("name", tools.NEEDED_BY)
def test_what_needs_a_tool_is_there(name: str) -> None:
    path, _, test = name.partition("::")
    functions = [
        node.name for node in ast.parse((TESTS / path).read_text("utf-8")).body if isinstance(node, ast.FunctionDef)
    ]
    assert not test or test in functions
    assert set(tools.NEEDED_BY[name]) <= tools.TOOLS.keys()


@pytest.mark.slow
def test_without_torch_its_tests_are_named_and_counted() -> None:
    done = collect("--without-torch")  # all of them, so that no file imports torch beside its tests
    assert done.returncode == 0, done.stdout[-2000:]
    collected = {line.removeprefix("tests/") for line in done.stdout.splitlines()}
    assert "test_cli.py::test_a_missing_file[export]" in collected
    assert "test_cli.py::test_a_missing_file[train]" not in collected
    assert not any(line.startswith("training/test_mask.py") for line in collected)
    (line,) = (line for line in done.stdout.splitlines() if " tests that need torch (" in line)
    assert int(line.split()[3]) > 100 and "training/test_mask.py" in line and "test_cli.py" in line


@pytest.mark.parametrize("name", tools.NEED_TORCH)
def test_what_needs_torch_is_there(name: str) -> None:
    path, _, test = name.partition("::")
    if "/" not in path and "." not in path and not (TESTS / path).is_dir():
        path, test = "conftest.py", path  # a fixture
    assert f"\ndef {test.partition('[')[0]}(" in (TESTS / path).read_text("utf-8") if test else (TESTS / path).exists()


def test_the_witness_is_made_by_make() -> None:
    assert tools.describe_install(["witness"], "linux") == "make witness"
    assert tools.describe_install(["ssh", "witness"], "linux") == "apt install openssh-client; make witness"
    assert tools.describe_install(["ssh", "witness"], "darwin") == "brew install openssh; make witness"


@pytest.mark.parametrize("name", tools.NEEDED_BY_FIXTURE)
def test_a_fixture_that_needs_a_tool_is_there(name: str) -> None:
    texts = [path.read_text("utf-8") for path in TESTS.rglob("*.py")]
    assert sum(f"\ndef {name}(" in text for text in texts) == 1  # another of this name would be left out too
    assert set(tools.NEEDED_BY_FIXTURE[name]) <= tools.TOOLS.keys()


def test_each_system_has_its_own_line() -> None:
    lacking = ["sshd", "qemu", "ssh"]
    assert tools.describe_install(lacking, "linux") == "apt install openssh-server qemu-user openssh-client"
    assert tools.describe_install(lacking, "darwin") == "brew install openssh; Homebrew does not have qemu"
    assert tools.describe_install(["qemu"], "darwin") == "Homebrew does not have qemu"

"""What continuous integration itself relies on: the README's commands, and the list of tests that ran nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / ".ci" / "skipped_everywhere.py"
RAN = '<testcase classname="a" name="{}"/>'
SKIPPED = '<testcase classname="a" name="{}"><skipped message="no sshd"/></testcase>'


@pytest.mark.parametrize(
    ("reports", "code", "said"),
    [
        ([[RAN.format("x"), SKIPPED.format("y")], [RAN.format("y")]], 0, "2 tests in 2 reports; 0 of them ran nowhere"),
        ([[RAN.format("x"), SKIPPED.format("y")], [SKIPPED.format("y")]], 1, "a::y: no sshd\n2 tests in 2 reports; 1 of them"),
        ([[SKIPPED.format("y")], [RAN.format("x")]], 1, "a::y: no sshd"),
        ([[]], 1, "0 tests in 1 reports"),
    ],
)  # fmt: skip
def test_a_test_that_ran_nowhere_is_named(tmp_path: Path, reports: list[list[str]], code: int, said: str) -> None:
    """One report in which it ran is enough; no report at all is not."""
    files = []
    for number, cases in enumerate(reports):
        files.append(tmp_path / f"{number}.xml")
        files[-1].write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    done = subprocess.run([sys.executable, SCRIPT, *files], capture_output=True, text=True)
    assert (code, "") == (done.returncode, done.stderr)
    assert said in done.stdout


def test_both_documents_print_the_same_two_commands() -> None:
    """CI runs the lines of the README's first block; CONTRIBUTING has the same."""
    block = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    commands = [line.partition("#")[0].strip() for line in block[1].splitlines()]
    assert ["demo", "tests"] == [command.rpartition(" -s ")[2] for command in commands]
    for command in commands:
        assert command in (ROOT / "CONTRIBUTING.md").read_text()

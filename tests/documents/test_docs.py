"""The documents are complete and true: every option is named, every link leads somewhere (``test_examples.py`` runs them)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pgsnap.cli import cli
from pgsnap.errors import PgsnapError

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def sections(text: str) -> dict[str, str]:
    """Return the parts of a page by their second-level headings."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its whole name."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_of_each_command_is_in_the_reference(name: str) -> None:
    """A command's section names all of its options, and no option that it does not have."""
    text = sections((ROOT / "docs/reference/cli.md").read_text())[name]
    options = {opt for param in COMMANDS[name].params if isinstance(param, click.Option) for opt in param.opts}
    table = "\n".join(line for line in text.splitlines() if line.startswith("| `-"))
    named = set(re.findall(r"`(--?[a-z][a-z-]*)", "\n".join(line.split("|")[1] for line in table.splitlines())))
    assert options == named


def test_global_options_are_in_the_reference() -> None:
    """So are the options that stand before the command."""
    text = (ROOT / "docs/reference/cli.md").read_text()
    for param in cli.params:
        for option in param.opts:
            assert f"`{option}" in text


def test_the_exit_codes_are_those_of_the_errors() -> None:
    """README and reference have one table of exit codes, and every error's code is in it."""
    readme = sections((ROOT / "README.md").read_text())["Exit codes"]
    reference = sections((ROOT / "docs/reference/cli.md").read_text())["Exit codes"]
    pattern = re.compile(r"^\| (\d+) \|", re.MULTILINE)
    codes = {int(code) for code in pattern.findall(readme)}
    assert codes == {int(code) for code in pattern.findall(reference)}

    def all_errors(kind: type[PgsnapError]) -> Iterator[type[PgsnapError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from all_errors(child)

    assert {kind.exit_code for kind in all_errors(PgsnapError)} <= codes


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    """A relative link names a file that is there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target or target.startswith("#"):
            continue
        path = page.parent / target.partition("#")[0]
        assert path.exists(), f"{page.relative_to(ROOT)} links to {target}, which does not exist"


def test_failures_name_tests_that_exist() -> None:
    """Each test that the table of failures names is a function in the tree."""
    text = (ROOT / "docs/explanation/failures.md").read_text()
    named = re.findall(r"`((?:tests|plugins)/[\w./-]+\.py)::(\w+)`", text)
    assert named
    for path, function in named:
        assert re.search(rf"def {function}\b", (ROOT / path).read_text()), f"{path} has no {function}"


def test_every_dependency_has_its_line() -> None:
    """What the core and the plugins depend on stands in the page that says why."""
    import tomllib

    text = (ROOT / "docs/explanation/dependencies.md").read_text()
    for project in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]:
        declared = tomllib.loads(project.read_text())["project"]
        for requirement in declared.get("dependencies", ()):
            match = re.match(r"[A-Za-z0-9._-]+", requirement)
            assert match is not None
            if not match[0].startswith("pgsnap"):
                assert f"`{match[0]}" in text, (
                    f"{project.parent.name} depends on {match[0]}, which dependencies.md does not explain"
                )

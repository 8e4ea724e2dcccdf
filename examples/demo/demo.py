"""A first backup and its restore, on one screen.

Starts a PostgreSQL of its own and fills it with a sample shop (or takes the database of DATABASE_URL), makes a key, writes a
configuration, and then runs the real ``pgsnap`` command as you would: backup, list, verify, restore into a second, empty server.
In the end it compares the two databases row by row. Exit status 0 means that they are equal.

What it made stays in ``demo-output/``: the configuration, the key, and the backup in two folders.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from compare import describe
from psycopg.conninfo import make_conninfo
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pgsnap import ConfigError
from pgsnap.components.values import format_size
from pgsnap_postgres.connection.url import parse_url
from pgsnap_postgres.server import Server, throwaway_server

HERE = Path(__file__).parent
PGSNAP = str(Path(sys.executable).parent / "pgsnap")

CONFIG = """\
# Written by the demo. The key's private half is in key.txt; only reading a backup needs it, making one does not.

[pipeline.{name}.dump]
use = "pg_dump"                         # compresses inside its own archive where the client can (zstd)
url = {{ env = "DATABASE_URL" }}

[[pipeline.{name}.transform]]
use = "zstd"                            # what pg_dump has not compressed

[[pipeline.{name}.transform]]
use = "age"
recipients = ["{recipient}"]

[[pipeline.{name}.transform]]
use = "checksum"                        # a .sha256 beside each file, for: sha256sum -c

[[pipeline.{name}.store]]
url = "{folder}/store-a"

[[pipeline.{name}.store]]
url = "{folder}/store-b"
"""


class Failed(Exception):
    """The demo cannot go on; the text says why."""


class Screen:
    """What the demo has done so far, one line a step: with colours on a terminal, plain otherwise."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.width = min(self.console.width, 100) if self.console.is_terminal else 100
        self.console.width = self.width

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a step; call what it gives with what the step has to say."""
        said: list[str] = []
        started = time.monotonic()
        with self.console.status(f"[dim]{name} …") if self.console.is_terminal else ExitStack():
            yield said.append
        took = f"{time.monotonic() - started:.1f} s"
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(width=1, style="green")
        line.add_column(width=15, style="bold")
        line.add_column(ratio=1, overflow="fold")
        line.add_column(justify="right", style="dim", width=7)
        line.add_row("✓", name, Text(" ".join(said)), took)
        self.console.print(line)


def run(*args: str, environment: Mapping[str, str]) -> str:
    """Run ``pgsnap`` with these arguments; return what it printed, or raise with all of that."""
    done = subprocess.run(
        [PGSNAP, *args], env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise Failed(f"'{shlex.join(['pgsnap', *args])}' exited with {done.returncode}:\n{done.stdout}")
    return done.stdout


def size_below(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def make_shop(server: Server) -> str:
    """Make the sample database ``shop`` and return its URL."""
    with psycopg.connect(server.socket_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE shop TEMPLATE template0")
    with psycopg.connect(server.database_url("shop", socket=True)) as connection:
        connection.execute((HERE / "shop.sql").read_bytes())
    return server.database_url("shop", socket=True)


def look_at(url: str) -> tuple[str, int, int]:
    """Return how to connect to a database, the major version of its server, and its size in bytes."""
    try:
        conninfo = make_conninfo(**parse_url(url).conninfo())  # type: ignore[arg-type]
        with psycopg.connect(conninfo, connect_timeout=10) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
            assert row is not None
            return conninfo, connection.info.server_version // 10000, int(row[0])
    except (ConfigError, psycopg.Error) as error:
        raise Failed(f"the database of DATABASE_URL cannot be reached: {error}") from None


@contextmanager
def second_server(major: int) -> Iterator[Server]:
    """Start the empty server to restore into: of the same major version, or else a newer one."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(throwaway_server(major=major, listen=None))
        except ConfigError:
            server = stack.enter_context(throwaway_server(listen=None))
            if server.major < major:
                raise Failed(
                    f"restoring needs a PostgreSQL {major} or newer on this machine; there is only {server.major}."
                ) from None
        yield server


Description = Mapping[str, tuple[int, str]]


def differences(before: Description, after: Description, restored: Description) -> tuple[list[str], list[str]]:
    """Return what differs from the restored database, and what somebody changed in the source during the backup."""
    changed = [what for what in sorted({*before, *after}) if before.get(what) != after.get(what)]
    wrong = [what for what in sorted({*before, *restored}) if before.get(what) != restored.get(what)]
    return [what for what in wrong if what not in changed], changed


def summary(found: Description, wrong: list[str]) -> Group:
    """Return the table of what was compared: the largest tables first, then all else in one sentence."""
    shown = Table(box=None, padding=(0, 2), header_style="dim", expand=True)
    shown.add_column("compared", ratio=1, overflow="ellipsis", no_wrap=True)
    shown.add_column("rows", justify="right")
    shown.add_column("sha256 of them", no_wrap=True, style="dim")
    shown.add_column("restored", no_wrap=True)
    tables = {what: value for what, value in found.items() if "." in what}
    largest = sorted(tables, key=lambda what: -tables[what][0])[:8]
    rest = [what for what in found if what not in largest]
    for what in sorted({*largest, *wrong}):
        count, digest = found.get(what, (0, "-"))
        same = Text("differs", "bold red") if what in wrong else Text("equal", "green")
        shown.add_row(Text(what.replace("\n", "⏎")), f"{count:,}", f"{digest[:12]}…", same)
    equal = [what for what in rest if what not in wrong]
    smaller = sum(1 for what in equal if "." in what)
    words = [f"smaller tables ({smaller})"] if smaller else []
    words += [f"{what} ({found[what][0]})" for what in equal if "." not in what and found[what][0]]
    return Group(shown, Text(), Text(f"  Equal as well: {', '.join(words)}.", style="dim"))


def demo(folder: Path, screen: Screen) -> None:
    """Do all of it; leave the result in ``folder``."""
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "pgsnap.toml").exists():
            raise Failed(f"{folder} holds something that is not from the demo; name another folder with --output.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, mode=0o700)

    own = os.environ.get("DATABASE_URL", "")
    with ExitStack() as stack:
        if own:
            with screen.step("your database") as say:
                source, major, size = look_at(own)
                name, url = "mine", own
                before = describe(source, roles=False)
                say(f"PostgreSQL {major}, {format_size(size)}, {sum('.' in what for what in before)} tables; it is only read")
            if shutil.disk_usage(folder).free < 4 * size:
                raise Failed(f"the database has {format_size(size)}; the demo wants four times that of free space here.")
        else:
            with screen.step("a sample shop") as say:
                server = stack.enter_context(throwaway_server(listen=None))
                major, name, source = server.major, "shop", make_shop(server)
                url = source
                before = describe(source)
                rows = sum(count for what, (count, _) in before.items() if "." in what)
                tables = sum("." in what for what in before)
                say(f"PostgreSQL {major} of its own: {tables} tables, {rows:,} rows, {before['large objects'][0]} large objects")

        with screen.step("a key") as say:
            recipient = run("keygen", "--output", str(folder / "key.txt"), environment={}).splitlines()[0]
            config = folder / "pgsnap.toml"
            config.write_text(CONFIG.format(name=name, recipient=recipient, folder=folder))
            say(f"{recipient[:14]}… (key.txt); pgsnap.toml: zstd, age, sha256, two stores")

        use = ("--config", str(config))
        identity = {"PGSNAP_AGE_IDENTITY": str(folder / "key.txt")}
        with screen.step("pgsnap backup") as say:
            run(*use, "backup", name, environment={"DATABASE_URL": url})
            backup = next(path.parent for path in (folder / "store-a" / name).glob("*/manifest.json"))
            others = (folder / "store-b" / name / backup.name / "manifest.json").read_bytes()
            if others != (backup / "manifest.json").read_bytes():
                raise Failed("the two stores hold different manifests.")
            say(f"{backup.name}, {format_size(size_below(backup))} in each store; it never saw the private key")
        with screen.step("pgsnap list") as say:
            if backup.name not in run(*use, "list", environment={}):
                raise Failed(f"'pgsnap list' does not show {backup.name}.")
            say("shows it")
        with screen.step("pgsnap verify") as say:
            run(*use, "verify", name, "--decode", environment=identity)
            say("every block of both copies was read, decrypted and checked")

        after = describe(source, roles=not own)
        with screen.step("pgsnap restore") as say:
            second = stack.enter_context(second_server(major))
            target = second.database_url("restored", socket=True)
            run(
                *(*use, "restore", name, "--backup", "latest", "--to-env", "RESTORE_URL"),
                environment={"RESTORE_URL": target, **identity},
            )
            say("into a second, empty server, roles and rights and all")
        with screen.step("compare") as say:
            restored = describe(target, roles=not own)
            wrong, changed = differences(before, after, restored)
            say(f"{len(before) - len(wrong)} of {len(before)} equal" if wrong else "equal to the last byte of every row")
            if changed:
                say(f"(changed meanwhile in the source, so not compared: {', '.join(changed)})")

    screen.console.print(Group(Text(), summary({k: v for k, v in before.items() if k not in changed}, wrong), Text()))
    if wrong:
        raise Failed(f"restored differently: {', '.join(wrong)}")
    at = folder if os.path.relpath(folder).startswith("..") else Path(os.path.relpath(folder))
    command = shlex.quote(os.path.relpath(PGSNAP) if Path(PGSNAP).is_relative_to(Path.cwd()) else PGSNAP)
    screen.console.print(Text(f"Left for you in {at}/: pgsnap.toml, key.txt, store-a/ and store-b/. To go on:", style="bold"))
    here = shlex.quote(str(at))
    for line in (
        f"{command} --config {here}/pgsnap.toml list",
        f"{command} --config {here}/pgsnap.toml verify --decode --identity {here}/key.txt",
        f"less {here}/store-a/{name}/{backup.name}/RECOVER.txt",
    ):
        screen.console.print(Text(f"  {line}", style="cyan"), soft_wrap=True)  # whole, to be copied
    screen.console.print(Text("The last one is how to restore it without pgsnap.", style="dim"))


def main() -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(prog="demo", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="where the result stays (demo-output)")
    folder = parser.parse_args().output.absolute()
    screen = Screen()
    try:
        demo(folder, screen)
    except Failed as error:
        screen.console.print(Text(f"✗ {error}", "bold red"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

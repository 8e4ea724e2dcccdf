"""The command: what it prints for people and for machines, its exit codes, and how it behaves on a terminal.

It runs in a process of its own, with a dumper that needs no database; ``end_to_end/`` has the real one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shlex
import shutil
import stat
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import click
import pytest

from desk import Desk
from pgsnap.cli import cli
from programs import missing

PROGRAM = str(Path(sys.executable).with_name("pgsnap"))
REFERENCE = Path(__file__).parent.parent.parent / "docs" / "reference" / "cli.md"

TOYBOX = Path(__file__).parent.parent / "shared" / "toybox.py"


@attrs.define
class Toys:
    """A desk whose pipelines dump toys."""

    desk: Any

    @property
    def folder(self) -> Path:
        """Where it stands."""
        return Path(self.desk.folder)

    def configure(self, **pipelines: str) -> None:
        """Write pipelines of these names and options, each into two stores of its own: ``NAME-1`` and ``NAME-2``."""
        text = ""
        for name, options in pipelines.items():
            text += f'[pipeline.{name}]\n[pipeline.{name}.dump]\nuse = "toybox:Toy"\n{options}\n'
            for number in (1, 2):
                text += f'[[pipeline.{name}.store]]\nurl = "{self.folder}/{name}-{number}"\n'
        (self.folder / "pgsnap.toml").write_text(text)

    def run(self, *arguments: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command, which must end with this code."""
        done: subprocess.CompletedProcess[str] = self.desk.run(*arguments, **{"PYTHONPATH": str(self.folder / "lib"), **env})
        assert code == done.returncode, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, code: int = 0, **env: str) -> Any:
        """Run it and return what it printed as JSON."""
        return json.loads(self.run(*arguments, code=code, **env).stdout)

    def ids(self, store: str) -> list[str]:
        """Return the backups in a store."""
        return [path.name for path in self.desk.committed(store)]

    def break_store(self, store: str) -> None:
        """Put a file where the store's folder is."""
        shutil.rmtree(self.folder / store, ignore_errors=True)
        (self.folder / store).write_text("not a folder")

    def damage(self, store: str) -> None:
        """Cut a byte off the dump of the oldest backup."""
        path = sorted((self.folder / store).rglob("toy.dump"))[0]
        path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture
def toys(desk: Desk) -> Toys:
    """A desk with one pipeline, ``shop``."""
    lib = desk.folder / "lib"
    lib.mkdir()
    shutil.copy(TOYBOX, lib)
    found = Toys(desk)
    found.configure(shop="")
    return found


# --- help ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", *sorted(cli.commands)])
def test_help_has_every_option_and_fits_a_screen(toys: Toys, name: str) -> None:
    """Also where there is no configuration; no line is longer than 80 characters, no sentence cut off."""
    (toys.folder / "pgsnap.toml").unlink()
    text = toys.run(*([name] if name else []), "--help").stdout
    command: click.Command = cli.commands[name] if name else cli
    for option in (opt for param in command.params if isinstance(param, click.Option) for opt in param.opts):
        assert option in text
    assert text.startswith("Usage: pgsnap")
    assert max(map(len, text.splitlines())) <= 80
    assert [] == [line for line in text.splitlines()[1:] if line.endswith("...")]


def test_without_arguments_it_shows_its_help(toys: Toys) -> None:
    """On stderr, since nothing was asked for."""
    done = toys.run(code=2)
    assert "Usage: pgsnap" in done.stderr
    assert "" == done.stdout


def test_help_costs_no_more_than_150_ms() -> None:
    """Over an interpreter that does nothing. In seconds of the processor: other work on the machine is not our cost."""

    def seconds(*argv: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    bare, full = [], []
    for _ in range(20):
        bare.append(seconds(sys.executable, "-c", "pass"))
        full.append(seconds(PROGRAM, "--help"))
        if len(full) > 4 and min(full) - min(bare) <= 0.15:
            break
    assert min(full) - min(bare) <= 0.15


# --- for machines --------------------------------------------------------------------------------------------------------


def documented_keys() -> dict[str, set[str]]:
    """Return the keys that the reference promises, by command."""
    text = REFERENCE.read_text().partition("\n## JSON\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (.+) \|$", text, flags=re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", keys)) for name, keys in rows}


def test_json_has_the_documented_keys(toys: Toys) -> None:
    """Each command that prints data prints it as JSON too, and nothing else on stdout."""
    keys = documented_keys()
    (backup,) = toys.json("backup", "--json")
    assert keys["backup"] == set(backup)
    assert ["shop", 100_000, 0, ""] == [backup[key] for key in ("pipeline", "size", "exit_code", "error")]
    assert [True, True] == [store["ok"] for store in backup["stores"]]
    assert ["a toy"] == backup["notes"]
    (listed,) = toys.json("list", "--json")
    assert keys["list"] == set(listed)
    assert backup["id"] == listed["id"]
    assert 2 == len(listed["stores"])
    assert keys["show"] <= set(toys.json("show", "--json"))
    (verified,) = toys.json("verify", "--json")
    assert keys["verify"] == set(verified)
    assert verified["ok"] is True
    shutil.rmtree(toys.folder / "shop-2")
    (copied,) = toys.json("copy", "--json")
    assert keys["copy"] == set(copied)
    assert [[], [backup["id"]]] == list(copied["copied"].values())
    findings = toys.json("doctor", "--json")
    assert keys["doctor"] == set(findings[0])
    plugins = toys.json("plugins", "--json")
    assert keys["plugins"] == set(plugins)
    assert "core" in [plugin["name"] for plugin in plugins["plugins"]]


def test_json_is_printed_when_something_failed(toys: Toys) -> None:
    """It says what, beside the sentence on stderr; paths and order of the others stay."""
    toys.configure(bad="fails = true", good="")
    bad, good = toys.json("backup", "--json", code=1)
    assert ["bad", 1, "the toy broke; mend it."] == [bad[key] for key in ("pipeline", "exit_code", "error")]
    assert ["good", 0, ""] == [good[key] for key in ("pipeline", "exit_code", "error")]
    bad, good = toys.json("verify", "--json", code=1)
    assert ["bad", False] == [bad[key] for key in ("pipeline", "ok")]
    assert "no backup" in bad["error"]
    assert ["good", True] == [good[key] for key in ("pipeline", "ok")]


@pytest.mark.parametrize("options", ["", "fails = true"])
def test_json_lines(toys: Toys, options: str) -> None:
    """With ``--log-format json`` each line on stderr is an object with time, level and message, whatever it is about."""
    toys.configure(shop=options)
    for arguments in (["backup"], ["verify"], ["list"], ["copy"], ["restore", "--to", "out"], ["show", "99"], ["plugins"]):
        done = toys.desk.run("--log-format", "json", *arguments, PYTHONPATH=str(toys.folder / "lib"))
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert all({"time", "level", "message"} <= set(line) for line in lines)
        assert (done.returncode != 0) == any(line["level"] == "error" for line in lines)


def test_quiet_says_nothing_when_all_is_well(toys: Toys) -> None:
    """For cron: not a word, unless something is wrong."""
    for arguments in (["backup"], ["verify"], ["copy"], ["restore", "--to", "out"]):
        done = toys.run("-q", *arguments)
        assert ("", "") == (done.stdout, done.stderr)
    toys.damage("shop-1")
    assert "toy.dump" in toys.run("-q", "verify", code=4).stderr


def test_verbose_shows_where_an_error_came_from(toys: Toys) -> None:
    """An error of a plugin's own is not swallowed; without -v it is one line that says how to see more."""
    text = (toys.folder / "lib" / "toybox.py").read_text()
    (toys.folder / "lib" / "toybox.py").write_text(text.replace("run.log.info", "1 / 0, run.log.info"))
    done = toys.run("backup", code=1)
    assert "unexpected ZeroDivisionError" in done.stderr
    assert "run with -v" in done.stderr
    done = toys.desk.run("-v", "backup", PYTHONPATH=str(toys.folder / "lib"))
    assert "Traceback" in done.stderr
    assert "toybox.py" in done.stderr


# --- several pipelines and stores ----------------------------------------------------------------------------------------


def test_a_pipeline_that_fails_does_not_stop_the_next(toys: Toys) -> None:
    """The exit code is the worst of all, wherever it stands."""
    toys.configure(one="", two="fails = true", three="")
    done = toys.run("backup", code=1)
    assert "error: two: no backup was made: the toy broke; mend it." in done.stderr
    assert 1 == done.stderr.count("the toy broke")
    assert [1, 0, 1] == [len(toys.ids(f"{name}-1")) for name in ("one", "two", "three")]
    assert [] == toys.desk.files("two-1")
    toys.run("backup", "three")
    assert [1, 2] == [len(toys.ids(f"{name}-1")) for name in ("one", "three")]


def test_exit_codes_of_several_pipelines(toys: Toys) -> None:
    """1 before 4 before 3 before 0."""
    toys.configure(one="", two="")
    toys.run("backup")
    toys.damage("one-1")
    toys.run("verify", code=4)
    toys.break_store("two-2")
    toys.run("list", code=3)
    assert "Missing" in toys.run("backup", code=3).stderr
    toys.break_store("two-1")
    done = toys.run("backup", code=1)
    assert "no store is left" in done.stderr
    assert 3 == len(toys.ids("one-2"))
    toys.run("verify", "-b", toys.ids("one-1")[0], code=1)


def test_list_with_a_store_offline(toys: Toys) -> None:
    """What the others hold is shown; the store is named on stderr and has a question mark; exit code 3."""
    toys.run("backup")
    toys.break_store("shop-2")
    done = toys.run("list", code=3)
    assert re.search(rf"{toys.ids('shop-1')[0]} +0 m +[\d.]+ kB +yes +\?", done.stdout)
    assert "shop-2" in done.stderr
    (item,) = toys.json("list", "--json", code=3)
    assert [str(toys.folder / "shop-1")] == item["stores"]


def test_only_one_store(toys: Toys) -> None:
    """list, show, verify and restore with ``--store``: the others are not touched, and may be broken."""
    toys.run("backup")
    one, two = (str(toys.folder / f"shop-{number}") for number in (1, 2))
    assert [one] == toys.json("list", "--json", "--store", one)[0]["stores"]
    assert [one, two] == toys.json("list", "--json", "--store", two, "--store", one)[0]["stores"]
    manifest = toys.folder / "shop-2" / "shop" / toys.ids("shop-2")[0] / "manifest.json"
    manifest.write_text(manifest.read_text().replace("a toy", "a boy"))
    error = toys.run("restore", "--to", "out", code=4).stderr
    assert f"use the one you trust by --store {shlex.quote(one)} or --store {shlex.quote(two)}" in " ".join(error.split())
    assert "a boy" in toys.run("show", "--store", two).stdout
    assert "a toy" in toys.run("show", "--store", one).stdout
    toys.run("verify", "--store", one)
    toys.break_store("shop-2")
    toys.run("restore", "--to", "out", "--store", one)
    assert bytes(100_000) == (toys.folder / "out").read_bytes()
    toys.run("list", "--store", one)


@pytest.mark.parametrize("command", [["list"], ["show"], ["verify"], ["restore", "--to", "out"]])
def test_a_store_that_is_not_there_is_refused_with_the_labels(toys: Toys, command: list[str]) -> None:
    """Exit code 2, and what there is to choose from; nothing was done."""
    toys.run("backup")
    error = toys.run(*command, "--store", "shop-1", code=2).stderr
    assert f"pipeline 'shop' has no store 'shop-1'; it has {toys.folder}/shop-1, {toys.folder}/shop-2." in error
    assert not (toys.folder / "out").exists()


def test_show_with_a_store_offline(toys: Toys) -> None:
    """It shows what the other has, and names the one that could not be asked."""
    toys.run("backup")
    toys.break_store("shop-2")
    done = toys.run("show", code=3)
    assert "shop-1" in done.stdout
    assert "shop-2" in done.stderr


def test_verify_with_a_store_offline(toys: Toys) -> None:
    """What could not be looked at is not called damaged, and no repair is offered that would do nothing."""
    toys.run("backup")
    toys.break_store("shop-2")
    said = " ".join(toys.run("verify", code=4).stderr.split())
    assert f"shop-1 has it whole; of {toys.folder}/shop-2 nothing is known: run: pgsnap doctor shop" in said
    assert "--repair" not in said


def test_a_pipeline_whose_stores_are_all_offline_does_not_hide_the_others(toys: Toys) -> None:
    """list, verify and copy go on with the next pipeline."""
    toys.configure(lost="", shop="")
    toys.run("backup")
    toys.break_store("lost-1")
    toys.break_store("lost-2")
    assert toys.ids("shop-1")[0] in toys.run("list", code=1).stdout
    assert ["shop"] == [item["pipeline"] for item in toys.json("list", "--json", code=1)]
    assert "shop: " in toys.run("verify", "--all", code=1).stderr
    assert "nothing was missing" in toys.run("copy", code=1).stderr


def test_list_marks_what_is_missing_and_what_is_unfinished(toys: Toys) -> None:
    """A store that missed a backup; and a folder without a manifest, which does not count."""
    assert f"no backup yet in {toys.folder}/shop-1, {toys.folder}/shop-2" in toys.run("list").stdout
    (toys.folder / "shop-1").write_text("in the way")  # a store that cannot be read is not said to be empty
    assert f"no backup yet in {toys.folder}/shop-2" in toys.run("list", code=3).stdout
    (toys.folder / "shop-1").unlink()
    toys.run("backup")
    (name,) = toys.ids("shop-1")
    shutil.rmtree(toys.folder / "shop-2" / "shop" / name)
    left = toys.folder / "shop-1" / "shop" / "20260101T000000Z-abcd" / "toy.dump"
    left.parent.mkdir()
    left.write_text("half")
    text = toys.run("list").stdout
    assert re.search(rf"{name} +0 m +[\d.]+ kB +yes +missing", text)
    assert "20260101T000000Z-abcd  unfinished; it does not count" in text


def test_show_by_the_beginning_of_an_id(toys: Toys) -> None:
    """One backup is enough of a name; two that fit are told; two pipelines need ``--pipeline``."""
    toys.configure(shop="", other="")
    toys.run("backup", "shop")
    (name,) = toys.ids("shop-1")
    text = toys.run("show", name[:8]).stdout
    assert text.startswith(f"shop {name}\n")
    for word in ("toy.dump: 100 kB", "sha256 ", f"{toys.folder}/shop-2/shop/{name}", "note  a toy"):
        assert word in text
    toys.run("backup", "shop")
    done = toys.run("show", name[:8], code=2)
    assert "is the beginning of 2 backups" in done.stderr
    toys.run("backup", "other")
    assert "say which by --pipeline" in toys.run("show", code=2).stderr
    assert toys.run("show", "-p", "other").stdout.startswith("other ")


def test_verify_all(toys: Toys) -> None:
    """Every backup is read; without it only the latest."""
    toys.run("backup")
    toys.run("backup")
    toys.damage("shop-1")
    toys.run("verify")
    done = toys.run("verify", "--all", "--decode", code=4)
    assert 1 == done.stderr.count("error: ")
    assert 3 == done.stderr.count("is whole in")
    assert [False, True] == [item["ok"] for item in toys.json("verify", "--all", "--json", code=4)]


def test_copy_and_restore(toys: Toys) -> None:
    """A store that missed backups gets them; a restore writes what was dumped, from either."""
    toys.run("backup")
    toys.run("backup")
    shutil.rmtree(toys.folder / "shop-1")
    done = toys.run("copy", "shop", "--to", str(toys.folder / "shop-1"), "--backup", toys.ids("shop-2")[0])
    assert "copied" in done.stderr
    assert toys.ids("shop-2")[:1] == toys.ids("shop-1")
    toys.run("copy")
    assert toys.ids("shop-2") == toys.ids("shop-1")
    assert "no store 'elsewhere'" in toys.run("copy", "--to", "elsewhere", code=2).stderr
    done = toys.run("restore", "--to", "out")
    assert f"{toys.ids('shop-1')[-1]} was restored into out" in done.stderr
    assert bytes(100_000) == (toys.folder / "out").read_bytes()


# --- init, keygen, doctor, plugins ---------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_writes_once_and_only_for_the_owner(toys: Toys) -> None:
    """What it writes works; secrets stay in the environment; a file that exists is left as it is."""
    before = (toys.folder / "pgsnap.toml").read_text()
    env = {"DATABASE_URL": "postgresql://shop:c4nary@db.example/shop"}
    assert "exists and was left as it is; give another name by --output" in toys.run("init", code=2, **env).stderr
    assert before == (toys.folder / "pgsnap.toml").read_text()
    toys.run("init", "-o", "new.toml", **env)
    assert 0o600 == mode(toys.folder / "new.toml")
    text = (toys.folder / "new.toml").read_text()
    assert "c4nary" not in text
    assert "DATABASE_URL" in text
    assert text == toys.run("init", "--output", "-", **env).stdout
    assert "no backup yet" in toys.run("-c", "new.toml", "list", **env).stdout
    assert "cannot be written" in toys.run("init", "-o", "no/such/place", code=2, **env).stderr


def test_keygen_never_writes_over_a_key(toys: Toys) -> None:
    """The public key alone is on stdout; the file is the owner's; the second time it is refused."""
    done = toys.run("keygen", "--output", "key.txt")
    assert re.fullmatch(r"age1\w+\n", done.stdout)
    assert 0o600 == mode(toys.folder / "key.txt")
    secret = (toys.folder / "key.txt").read_text()
    assert secret.split()[-1] not in done.stdout + done.stderr
    assert "never written over" in toys.run("keygen", "--output", "key.txt", code=2).stderr
    assert secret == (toys.folder / "key.txt").read_text()


def test_doctor_ends_with_1_if_a_backup_would_fail(toys: Toys) -> None:
    """And with 0 if it would not; each finding has a mark and its remedy."""
    text = toys.run("doctor").stdout
    assert "  ok  toy: It works." in text
    toys.configure(shop="", ill="complains = true")
    text = toys.run("doctor", code=1).stdout
    assert "  ok  toy: It works." in text
    assert "  NO  toy: It is broken. Mend it." in text
    toys.run("doctor", "shop")


def install(toys: Toys, name: str, module: str) -> None:
    """Make a distribution with an entry point."""
    info = toys.folder / "lib" / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[pgsnap]\n{name} = {module}\n")


def test_plugins_shows_what_is_broken_and_what_is_in_conflict(toys: Toys) -> None:
    """Both spoil nothing else; the exit code is 1; a conflict raises when the name is used."""
    text = toys.run("plugins").stdout
    assert re.search(r"pgsnap +[\d.]+ +ok +store file, store fsspec", text)
    install(toys, "nursery", "toybox")
    install(toys, "broken-toys", "no_such_module")
    text = toys.run("plugins", code=1).stdout
    assert re.search(r"nursery +1\.2 +ok +dump toy", text)
    assert "broken-toys: it cannot be imported: ModuleNotFoundError: No module named 'no_such_module'" in text
    assert "conflict" not in text
    toys.run("backup")
    shutil.copy(TOYBOX, toys.folder / "lib" / "second.py")
    install(toys, "second-toys", "second")
    found = toys.json("plugins", "--json", code=1)
    assert {"dump toy": ["nursery", "second-toys"]} == found["conflicts"]
    text = toys.run("plugins", code=1).stdout
    assert "conflict: dump toy is claimed by nursery and second-toys; name one in PGSNAP_DISABLE_PLUGINS" in text
    config = (toys.folder / "pgsnap.toml").read_text().replace("toybox:Toy", "toy")
    (toys.folder / "pgsnap.toml").write_text(config)
    assert "claimed by nursery and second-toys" in toys.run("backup", code=2).stderr
    assert "disabled" in toys.run("plugins", code=1, PGSNAP_DISABLE_PLUGINS="second-toys").stdout
    toys.run("backup", PGSNAP_DISABLE_PLUGINS="second-toys")


# --- on a terminal -------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_terminal(toys: Toys) -> Callable[..., tuple[int, str]]:
    """Run the command on a terminal of 80 columns; return its exit code and all that it wrote."""

    def run(*arguments: str, **env: str) -> tuple[int, str]:
        try:
            master, slave = os.openpty()
        except OSError:
            missing("a pseudo-terminal")
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {k: v for k, v in toys.desk.env.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")}
        environment |= {"PYTHONPATH": str(toys.folder / "lib"), "TERM": "xterm-256color", **env}
        process = subprocess.Popen(
            [PROGRAM, *arguments], cwd=toys.folder, env=environment, stdin=slave, stdout=slave, stderr=slave, close_fds=True
        )
        os.close(slave)
        seen = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # Linux's way to say that nobody holds the other end
                break
            if not piece:
                break
            seen += piece
        os.close(master)
        return process.wait(30), seen.decode()

    return run


def screen(written: str) -> list[str]:
    """Return the lines that a terminal shows at the end; it knows what a progress bar uses."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]", written):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b"):
            count, command = part[2:-1], part[-1]
            assert command in "mAKhl", f"the terminal of this test does not know {part!r}"
            if command == "A":
                row -= int(count or 1)
            elif command == "K":
                assert "2" == count
                lines[row] = ""
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|9[0-7]|38;)[0-9;]*m")


def test_progress_bars_come_and_go(toys: Toys, on_terminal: Any) -> None:
    """On a terminal a bar moves while the dump runs, and at the end only the lines are left, within the width."""
    toys.configure(shop="seconds = 1.0")
    code, written = on_terminal("backup")
    assert 0 == code
    drawn = [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)) if "━" in line]
    assert drawn
    # A bar each, on one line, whatever the store is called.
    assert [] == [line for line in drawn if len(line) > 80 or not re.search(r"\d (bytes|kB) ", line)]
    assert "\x1b[?25h" == re.findall(r"\x1b\[\?25[hl]", written)[-1]  # the cursor is back
    shown = screen(written)
    assert "━" not in "".join(shown)
    assert any(line.startswith("shop: ") and " is in" in line for line in shown)
    assert max(map(len, shown)) <= 80


def test_a_bar_of_unknown_length_is_not_measured_by_the_object_before(toys: Toys, on_terminal: Any) -> None:
    """The run's own note of 90 bytes is written first, under the same name; then comes a dump whose size nobody knows."""
    toys.configure(shop="seconds = 1.0\nmeasured = false")
    code, written = on_terminal("backup")
    assert 0 == code
    totals = dict(re.findall(r"([\d,.]+)/([\d,.?]+) (?:bytes|kB|MB) ", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)))
    large = {done: total for done, total in totals.items() if float(done.replace(",", "")) > 1 and total != done}
    assert large, repr(written)
    assert {"?"} == set(large.values())


def test_colours_are_on_a_terminal_only(toys: Toys, on_terminal: Any) -> None:
    """And not there either where NO_COLOR is set; then and on a dumb terminal the words are the same."""
    toys.run("backup")
    plain = toys.run("list")
    assert "\x1b" not in plain.stdout + plain.stderr
    code, written = on_terminal("list")
    assert 0 == code
    assert COLOUR.search(written)
    assert plain.stdout.split() == " ".join(screen(written)).split()  # a long path stands on a line of its own there
    _, bare = on_terminal("list", NO_COLOR="1")
    assert not COLOUR.search(bare)
    assert screen(written) == screen(bare)
    assert COLOUR.search(on_terminal("show", "99")[1])
    assert not COLOUR.search(on_terminal("show", "99", NO_COLOR="1")[1])


def test_a_dumb_terminal_and_quiet_have_no_bars(toys: Toys, on_terminal: Any) -> None:
    """Nothing moves where it cannot, or where nobody wants it."""
    toys.configure(shop="seconds = 0.5")
    assert "\x1b" not in on_terminal("backup", TERM="dumb")[1]
    assert "" == on_terminal("-q", "backup")[1]
    done = toys.run("backup")
    assert "\x1b" not in done.stderr
    assert "━" not in done.stderr


def test_an_error_on_a_terminal_clears_the_bars(toys: Toys, on_terminal: Any) -> None:
    """The sentence stands alone, and no word of it is torn."""
    toys.configure(shop="seconds = 0.5\nfails = true")
    code, written = on_terminal("backup")
    assert 1 == code
    shown = screen(written)
    assert "━" not in "".join(shown)
    assert "error: shop: no backup was made: the toy broke; mend it." in shown

"""The configuration file: where it is found, what it may say, and what is said about everything that is wrong with it."""

from __future__ import annotations

import contextlib
import enum
import os
import pickle
import re
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idle import IdleDumper, IdleNotifier, IdleTransform
from pgsnap import (
    ConfigError,
    Dumper,
    FsspecStore,
    LocalStore,
    Notifier,
    Pipeline,
    RetentionPolicy,
    Secret,
    Transform,
    hookimpl,
)
from pgsnap.components.registry import Registry
from pgsnap.config import ROLES, Config, Role, find_config, load
from pgsnap.config.build import Builder
from pgsnap.config.references import References
from pgsnap.stores import builtin

CANARY = "hunter22-canary"


class Shade(enum.IntEnum):
    """An enumeration that is a whole number too."""

    LIGHT = 1
    DARK = 2


def _not_canary(instance: object, attribute: attrs.Attribute[Secret], value: Secret) -> None:
    if value.reveal().startswith("bad"):
        raise ConfigError(f"passphrase {value.reveal()!r} is not good enough; take another.")


@attrs.frozen(kw_only=True)
class ToyDump(IdleDumper):
    name: ClassVar[str] = "toy"
    url: Secret
    port: int = 5432


def _broken(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value:
        raise KeyError(value)


def _even(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value % 2:
        raise ConfigError(f"{attribute.name} is {value}; give an even number.")


@attrs.frozen
class Corner:
    x: int
    note: str = ""


@attrs.frozen(kw_only=True)
class Zip(IdleTransform):
    name: ClassVar[str] = "zip"
    level: int = 3
    ratio: float = 0.5
    fast: bool = False
    mode: Literal["quick", "small"] = "quick"
    recipients: tuple[str, ...] = ()
    passphrase: Secret | None = attrs.field(default=None, validator=attrs.validators.optional(_not_canary))
    keys: tuple[Secret, ...] = ()
    pace: float | None = attrs.field(default=None, metadata={"unit": "seconds"})
    block: int = attrs.field(default=1024, metadata={"unit": "bytes"})
    even: int = attrs.field(default=0, validator=_even)
    also_even: int = attrs.field(default=0, validator=_even)
    small: int = attrs.field(default=0, validator=attrs.validators.le(9))
    folder: Path | None = None
    labels: Mapping[str, int] = attrs.field(factory=dict)
    pair: tuple[int, str] = (0, "")
    corners: list[Corner] = attrs.field(factory=list)
    anything: Any = None
    either: int | str = 0
    shade: Shade = Shade.LIGHT
    odd_one: str = attrs.field(default="", validator=_broken)
    file: str = ""


@attrs.frozen(kw_only=True)
class Bell(IdleNotifier):
    name: ClassVar[str] = "bell"
    webhook: Secret


class Plugin:
    """What a module of a plugin has."""

    @hookimpl
    def pgsnap_dumpers(self) -> Sequence[type[Dumper]]:
        return [ToyDump]

    @hookimpl
    def pgsnap_transforms(self) -> Sequence[type[Transform]]:
        return [Zip]

    @hookimpl
    def pgsnap_notifiers(self) -> Sequence[type[Notifier]]:
        return [Bell]


@pytest.fixture
def registry() -> Registry:
    return Registry([("core", builtin), ("toy", Plugin())])


GOOD = """
[pipeline.shop.dump]
use = "toy"
url = "postgresql:///shop"
[[pipeline.shop.store]]
url = "/backups"
"""
Load = Callable[..., Config]


@pytest.fixture
def config(tmp_path: Path, registry: Registry) -> Load:
    """Load a text as ``pgsnap.toml``."""

    def load_text(
        text: str, environ: Mapping[str, str] | None = None, roles: Collection[Role] = ROLES, name: str = "pgsnap.toml"
    ) -> Config:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o600)
        return load(path, registry=registry, environ=environ or {}, roles=roles)

    return load_text


@pytest.fixture
def problems(config: Load, tmp_path: Path) -> Callable[..., list[str]]:
    """Load a text that is wrong; return the problems, without the directory."""

    def of(text: str, environ: Mapping[str, str] | None = None, **more: Any) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            config(text, environ, **more)
        assert str(caught.value) == "\n".join(caught.value.problems)
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None
        return [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]

    return of


def zip_with(options: str) -> str:
    """A good file with one transform of these options."""
    return f'{GOOD}\n[[pipeline.shop.transform]]\nuse = "zip"\n{options}\n'


# --- what is built ---------------------------------------------------------------------------------------------------


def test_builds_a_pipeline_of_components(config: Load) -> None:
    """Everything a file may say arrives, with the type of its field."""
    loaded = config(
        """
        [defaults]
        timezone = "Asia/Seoul"
        keep = { daily = 7, weekly = 4 }
        [pipeline.shop]
        timeout = "2h"
        buffer = "16MiB"
        stall_timeout = 60
        quorum = 2
        [pipeline.shop.dump]
        use = "toy"
        url = { env = "DATABASE_URL" }
        [[pipeline.shop.transform]]
        use = "zip"
        level = 9
        recipients = ["age1abc"]
        [[pipeline.shop.transform]]
        use = "zip"
        [[pipeline.shop.store]]
        url = "/var/backups/pgsnap"
        keep = { last = 3 }
        [[pipeline.shop.store]]
        url = "memory://bucket"
        options = { skip_instance_cache = true }
        [[pipeline.shop.notify]]
        use = "bell"
        webhook = { env = "HOOK" }
        on = ["failed"]
        """,
        {"DATABASE_URL": CANARY, "HOOK": "https://hook"},
    )
    assert ["shop"] == list(loaded.pipelines)
    shop = loaded.pipelines["shop"]
    assert ToyDump(url=Secret(CANARY)) == shop.dump
    assert (Zip(level=9, recipients=("age1abc",)), Zip()) == shop.transforms
    assert (
        LocalStore(url="/var/backups/pgsnap", keep=RetentionPolicy(last=3)),
        FsspecStore(url="memory://bucket", options={"skip_instance_cache": True}, keep=RetentionPolicy(daily=7, weekly=4)),
    ) == shop.stores
    assert (Bell(webhook=Secret("https://hook"), on=("failed",)),) == shop.notifiers
    assert ("shop", 2, 7200.0, 60.0, 16 << 20) == (shop.name, shop.quorum, shop.timeout, shop.stall_timeout, shop.buffer)
    assert ("Asia/Seoul", RetentionPolicy(daily=7, weekly=4)) == (shop.timezone, shop.keep)
    assert () == loaded.notes


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ratio = 2", {"ratio": 2.0}),
        ("fast = true", {"fast": True}),
        ('mode = "small"', {"mode": "small"}),
        ('pace = "1m30s"', {"pace": 90.0}),
        ("pace = 2", {"pace": 2.0}),
        ('block = "1MiB"', {"block": 1 << 20}),
        ("block = 7", {"block": 7}),
        ('folder = "/tmp"', {"folder": Path("/tmp")}),
        ("labels = { a = 1 }", {"labels": {"a": 1}}),
        ('pair = [1, "a"]', {"pair": (1, "a")}),
        ("corners = [{ x = 1 }]", {"corners": [Corner(1)]}),
        ("anything = [1, { a = true }]", {"anything": [1, {"a": True}]}),
        ("either = 5", {"either": 5}),
        ('either = "5"', {"either": "5"}),
        ("shade = 2", {"shade": Shade.DARK}),
        ('file = "cat"', {"file": "cat"}),
        ('keys = ["a", { env = "K" }]', {"keys": (Secret("a"), Secret("from env"))}),
    ],
)
def test_takes_a_value_of_the_fields_type(config: Load, option: str, value: dict[str, Any]) -> None:
    transform = config(zip_with(option), {"K": "from env"}).pipelines["shop"].transforms[0]
    assert Zip(**value) == transform
    assert {k: type(v) for k, v in value.items()} == {k: type(getattr(transform, k)) for k in value}


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("level", "9", 9),
        ("ratio", "0.25", 0.25),
        ("fast", "yes", True),
        ("fast", "FALSE", False),
        ("mode", "small", "small"),
        ("recipients", "age1a, age1b\nage1c,", ("age1a", "age1b", "age1c")),
        ("passphrase", " with blanks ", Secret(" with blanks ")),
        ("keys", "a,b", (Secret("a"), Secret("b"))),
        ("pace", "2h", 7200.0),
        ("pace", "2", 2.0),
        ("block", "64MiB", 64 << 20),
        ("folder", "/tmp", Path("/tmp")),
        ("pair", "1,a", (1, "a")),
        ("anything", "1", "1"),
        ("either", "5", 5),
        ("either", "five", "five"),
    ],
)
def test_parses_only_what_a_reference_gives(config: Load, option: str, text: str, value: Any) -> None:
    """An environment variable is text, whatever it stands for."""
    transform = config(zip_with(f'{option} = {{ env = "X" }}'), {"X": text}).pipelines["shop"].transforms[0]
    assert Zip(**{option: value}) == transform
    assert type(value) is type(getattr(transform, option))


def test_defaults_are_replaced_whole_by_a_pipeline(config: Load) -> None:
    """Shallow: a pipeline that gives transforms of its own gets none of the defaults'."""
    text = """
        [defaults]
        keep = { daily = 7, weekly = 4 }
        [[defaults.transform]]
        use = "zip"
        [[defaults.store]]
        url = "/backups"
        [pipeline.a.dump]
        use = "toy"
        url = "x"
        [pipeline.b]
        transform = []
        keep = { last = 2 }
        [pipeline.b.dump]
        use = "toy"
        url = "y"
        """
    pipelines = config(text).pipelines
    assert ["a", "b"] == list(pipelines)
    assert ((Zip(),), ()) == (pipelines["a"].transforms, pipelines["b"].transforms)
    assert (RetentionPolicy(daily=7, weekly=4), RetentionPolicy(last=2)) == (pipelines["a"].keep, pipelines["b"].keep)
    assert RetentionPolicy(last=2) == pipelines["b"].stores[0].keep


def test_a_component_may_be_named_by_its_path(config: Load) -> None:
    text = GOOD.replace('url = "/backups"', 'use = "pgsnap.stores:LocalStore"\nurl = "/backups"')
    assert (LocalStore(url="/backups"),) == config(text).pipelines["shop"].stores


def test_reads_the_table_of_a_pyproject(config: Load, problems: Callable[..., list[str]]) -> None:
    text = GOOD.replace("pipeline.shop", "tool.pgsnap.pipeline.shop")
    assert ["shop"] == list(config(text, name="pyproject.toml").pipelines)
    assert ["pyproject.toml: tool.pgsnap.pipeline.shop.dump (toy): unknown option 'prot'. Did you mean 'port'?"] == problems(
        text.replace('use = "toy"', 'use = "toy"\nprot = 1'), name="pyproject.toml"
    )
    assert ["pyproject.toml has no table [tool.pgsnap]; add [tool.pgsnap.pipeline.NAME], or name another file."] == problems(
        "[tool.other]", name="pyproject.toml"
    )


# --- what is wrong ---------------------------------------------------------------------------------------------------

WHERE = "pgsnap.toml: pipeline.shop.transform[0] (zip): "


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("levle = 3", "unknown option 'levle'. Did you mean 'level'?"),
        ("xyz = 3", "unknown option 'xyz'."),
        ('level = "3"', "option 'level' wants a whole number, got text '3'. Remove the quotes."),
        ("level = 3.5", "option 'level' wants a whole number, got a number 3.5."),
        ("level = true", "option 'level' wants a whole number, got true."),
        ("ratio = nan", "option 'ratio' wants a number, got a number nan."),
        ('fast = "false"', "option 'fast' wants true or false, got text 'false'. Remove the quotes."),
        ("fast = 0", "option 'fast' wants true or false, got a whole number 0."),
        ('mode = "quikc"', "option 'mode' wants one of 'quick', 'small', got 'quikc'. Did you mean 'quick'?"),
        ('recipients = "age1abc"', "option 'recipients' wants a list of text, got text 'age1abc'. Write [\"age1abc\"]."),
        (
            "level = 'x://u:hunter22-canary@h'",
            "option 'level' wants a whole number, got text 'x://u:***@h'.",
        ),
        ("recipients = [1]", "option 'recipients[0]' wants text, got a whole number 1. Put it in quotes."),
        ("passphrase = 42424242", "option 'passphrase' wants text, got a whole number. Put it in quotes."),
        ('keys = "hunter22-canary"', "option 'keys' wants a list of text, got text. Put it in brackets."),
        ('pace = "2 moons"', "option 'pace' wants seconds, or a duration such as \"2h\", got text '2 moons'."),
        ('block = "16 mibs"', "option 'block' wants bytes, or a size such as \"16MiB\", got text '16 mibs'."),
        ("labels = { a = 'x' }", "option 'labels.a' wants a whole number, got text 'x'."),
        ("labels = 3", "option 'labels' wants a table, got a whole number 3."),
        ("pair = [1]", "option 'pair' wants 2 items, got 1."),
        ("corners = [{ y = 1 }]", "unknown option 'corners[0].y'."),
        (
            'file = { evn = "X" }',
            "option 'file' wants text, got a table. For a reference write { env = \"NAME\" }, "
            '{ file = "PATH" } or { command = ["PROGRAM"] }.',
        ),
        ("either = true", "option 'either' wants a whole number or text, got true."),
        ("shade = 3", "option 'shade' wants a Shade, got a whole number 3."),
        ("folder = 3", "option 'folder' wants a path, got a whole number 3. Put it in quotes."),
        ("even = 3", "even is 3; give an even number."),
        ("small = 10", "'small' must be <= 9: 10"),
        ("odd_one = { env = 'CANARY' }", "it cannot be made of these options: KeyError: '***'"),
        ("even = { env = 'NO' }", "option 'even' needs the environment variable NO, which is not set; set it."),
        ("even = { env = 'EMPTY' }", "option 'even' needs the environment variable EMPTY, which is empty; set it."),
        (
            "even = { env = 'CANARY' }",
            "option 'even' wants a whole number; what the environment variable CANARY holds is not that.",
        ),
        (
            "mode = { env = 'CANARY' }",
            "option 'mode' wants one of 'quick', 'small'; what the environment variable CANARY holds is not that.",
        ),
        (
            "pace = { env = 'CANARY' }",
            "option 'pace' wants seconds, or a duration such as \"2h\"; what the environment variable CANARY holds is not that.",
        ),
        ("passphrase = { env = 'BAD' }", "passphrase '***' is not good enough; take another."),
        ("passphrase = 'bad-hunter22-canary'", "passphrase '***' is not good enough; take another."),
        ("even = { env = 'X', file = 'y' }", "option 'even' has a reference with env and file; give one of them."),
        ("even = { env = 3 }", "option 'even' needs the name of a variable: { env = \"NAME\" }."),
        (
            "even = { command = 'ls -l' }",
            'option \'even\' needs a program and its arguments, without a shell: { command = ["PROGRAM", "ARGUMENT"] }.',
        ),
    ],
)
def test_says_what_is_wrong_with_an_option(problems: Callable[..., list[str]], option: str, problem: str) -> None:
    """File, path, component, what was wanted, what was got (never of a secret), and the next step."""
    environ = {"EMPTY": "", "CANARY": CANARY, "BAD": f"bad-{CANARY}"}
    found = problems(zip_with(option), environ)
    assert (WHERE + problem) == found[0]
    assert CANARY not in "".join(found)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "pgsnap.toml: it defines no pipeline; add [pipeline.NAME], or let 'pgsnap init' write one."),
        ("[pipelin.shop]", "pgsnap.toml: unknown key 'pipelin'. Did you mean 'pipeline'?"),
        ("pipeline = 3", "pgsnap.toml: 'pipeline' must be a table."),
        ("pipeline.shop = 3", "pgsnap.toml: pipeline.shop: must be a table: [pipeline.shop]."),
        ("[defaults]\nkep = 1\n" + GOOD, "pgsnap.toml: defaults: unknown option 'kep'. Did you mean 'keep'?"),
        (
            "[defaults]\nkeep = { daily = 0 }\n" + GOOD,
            "pgsnap.toml: defaults: keep.daily is 0; give a number of backups of 1 or more, or leave it out.",
        ),
        (
            "[defaults]\nkeep = { dayly = 1 }\n" + GOOD,
            "pgsnap.toml: defaults: unknown option 'keep.dayly'. Did you mean 'daily'?",
        ),
        (f"[pipeline.shop]\nstores = []\n{GOOD}", "pgsnap.toml: pipeline.shop: unknown option 'stores'. Did you mean 'store'?"),
        (
            f"[pipeline.shop]\nquorum = 2\n{GOOD}",
            "pgsnap.toml: pipeline.shop: quorum is 2 and there are 1 stores; give a number from 1 to that.",
        ),
        (
            f"[pipeline.shop]\ntimezone = 'Mars'\n{GOOD}",
            "pgsnap.toml: pipeline.shop: timezone 'Mars' is unknown; write it like 'Asia/Seoul' or 'UTC'.",
        ),
        (
            GOOD.replace("shop", "'a b'"),
            "pgsnap.toml: pipeline.a b: the pipeline's name 'a b' cannot be used: begin with a letter "
            "or digit and use at most 100 of A-Z a-z 0-9 . _ -",
        ),
        (GOOD.partition("[[")[0], "pgsnap.toml: pipeline.shop: it has no store; add [[pipeline.shop.store]]."),
        ("[[pipeline.shop.store]]\nurl = '/x'", "pgsnap.toml: pipeline.shop: it has no dump; add [pipeline.shop.dump]."),
        (
            GOOD.replace("[[", "[").replace("]]", "]"),
            "pgsnap.toml: pipeline.shop: 'store' must be an array of tables: write [[pipeline.shop.store]].",
        ),
        (
            GOOD.replace('use = "toy"', ""),
            "pgsnap.toml: pipeline.shop.dump: option 'use' is missing; it names the component: toy.",
        ),
        (
            GOOD.replace('use = "toy"', "use = 1"),
            "pgsnap.toml: pipeline.shop.dump: option 'use' wants the name of a component, as text.",
        ),
        (GOOD.replace("toy", "tyo"), "pgsnap.toml: pipeline.shop.dump (tyo): there is no dump 'tyo'; did you mean 'toy'?"),
        (
            GOOD.replace("toy", "pg_dump"),
            "pgsnap.toml: pipeline.shop.dump (pg_dump): the dump 'pg_dump' is not installed; run: "
            "pip install ./plugins/pgsnap-postgres",
        ),
        (
            GOOD.replace('url = "postgresql:///shop"', ""),
            "pgsnap.toml: pipeline.shop.dump (toy): option 'url' is missing; it wants text.",
        ),
        (
            GOOD.replace('url = "/backups"', ""),
            "pgsnap.toml: pipeline.shop.store[0]: option 'url' is missing; it wants text, such as \"/var/backups/pgsnap\".",
        ),
        (
            GOOD.replace('"/backups"', "7"),
            "pgsnap.toml: pipeline.shop.store[0]: option 'url' wants text, such as \"/var/backups/pgsnap\".",
        ),
        (
            GOOD.replace("/backups", "s4x://u:hunter22-canary@b"),
            "pgsnap.toml: pipeline.shop.store[0]: s4x://b: neither a plugin nor fsspec knows the scheme 's4x'. "
            "Correct it, or install the plugin that serves it.",
        ),
        (
            GOOD.replace("/backups", "memry://b"),
            "pgsnap.toml: pipeline.shop.store[0]: memry://b: neither a plugin nor fsspec knows "
            "the scheme 'memry'. Did you mean 'memory'?",
        ),
        (
            GOOD + "[[pipeline.shop.store]]\nurl = '/backups'",
            "pgsnap.toml: pipeline.shop: the store /backups is given twice; two copies need two places.",
        ),
        (
            GOOD.replace("[[pipeline.shop.store]]", "[pipeline.shop.store]") + "[pipeline.shop.store]\nurl = '/more'",
            "pgsnap.toml: line 7, column 21: [pipeline.shop.store] is there twice; "
            "write [[pipeline.shop.store]] for each of several.",
        ),
        (
            GOOD + "[pipeline.shop.dump]\nuse = 'toy'",
            "pgsnap.toml: line 7, column 20: [pipeline.shop.dump] is there twice; keep one of them.",
        ),
        ("a = b", 'pgsnap.toml: line 1, column 5: this is no value; text stands in "quotes".'),
        ("[a\nb", "pgsnap.toml: line 1, column 3: expected ']' at the end of a table declaration; correct the TOML there."),
        (
            GOOD + "[[pipeline.shop.notify]]\nuse = 'bell'",
            "pgsnap.toml: pipeline.shop.notify[0] (bell): option 'webhook' is missing; it wants text.",
        ),
    ],
)
def test_says_what_is_wrong_with_a_file(problems: Callable[..., list[str]], text: str, problem: str) -> None:
    found = problems(text)
    assert problem in found
    assert CANARY not in "".join(found)


def test_tells_everything_at_once(problems: Callable[..., list[str]]) -> None:
    """Who has five mistakes shall not have to start five times: also where one validator after another refuses."""
    text = zip_with("levle = 1\neven = 1\nalso_even = 3\nsmall = 10\nlevel = 'x'\nfast = { env = 'NO' }") + (
        "[pipeline.two]\ntimeout = 'never'\n[pipeline.two.dump]\nuse = 'toy'\n[[pipeline.two.store]]\nurl = 'nope://x'"
    )
    assert [
        f"{WHERE}option 'fast' needs the environment variable NO, which is not set; set it.",
        f"{WHERE}unknown option 'levle'. Did you mean 'level'?",
        f"{WHERE}option 'level' wants a whole number, got text 'x'.",
        f"{WHERE}even is 1; give an even number.",
        f"{WHERE}also_even is 3; give an even number.",
        f"{WHERE}'small' must be <= 9: 10",
        "pgsnap.toml: pipeline.two: option 'timeout' wants seconds, or a duration such as \"2h\", got text 'never'.",
        "pgsnap.toml: pipeline.two.dump (toy): option 'url' is missing; it wants text.",
        "pgsnap.toml: pipeline.two.store[0]: nope://x: neither a plugin nor fsspec knows the scheme 'nope'. "
        "Correct it, or install the plugin that serves it.",
    ] == problems(text)


def test_tells_a_mistake_in_the_defaults_once(problems: Callable[..., list[str]]) -> None:
    text = "[defaults]\nquorum = 'x'\n" + GOOD + GOOD.replace("shop", "two")
    assert ["pgsnap.toml: defaults: option 'quorum' wants a whole number, got text 'x'."] == problems(text)


def test_says_which_package_a_scheme_needs(problems: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec knows many schemes whose packages are not installed."""
    from fsspec.registry import known_implementations

    known = {"class": "nowhere.NoSystem", "err": "Install nowhere to access it"}
    monkeypatch.setitem(known_implementations, "nowhere", known)
    assert [
        "pgsnap.toml: pipeline.shop.store[0]: nowhere://b needs a package that is not installed (fsspec says: Install nowhere to "
        "access it); run: pip install nowhere"
    ] == problems(GOOD.replace("/backups", "nowhere://b"))


def test_a_file_that_is_not_text_is_told_with_its_line(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "pgsnap.toml"
    path.write_bytes(b"# fine\n# \xff\n")
    with pytest.raises(ConfigError, match=r"pgsnap.toml: line 2: it is not UTF-8 text; save it as UTF-8\."):
        load(path, registry=registry, environ={})


def test_an_error_shows_no_secret_in_its_traceback(config: Load) -> None:
    """Neither the message nor what is chained to it."""
    with pytest.raises(ConfigError) as caught:
        config(zip_with("passphrase = { env = 'BAD' }\nlevel = { env = 'BAD' }"), {"BAD": f"bad-{CANARY}"})
    assert CANARY not in "".join(traceback.format_exception(caught.value))


# --- references ------------------------------------------------------------------------------------------------------


def passphrase(loaded: Config) -> str:
    transform = loaded.pipelines["shop"].transforms[0]
    assert isinstance(transform, Zip)
    assert transform.passphrase is not None
    return transform.passphrase.reveal()


@pytest.mark.parametrize(
    ("content", "value"), [(b"abc", "abc"), (b"abc\n", "abc"), (b"abc\r\n", "abc"), (b"abc\n\n", "abc\n"), (b" a b ", " a b ")]
)
def test_a_file_gives_its_text_without_one_new_line(config: Load, tmp_path: Path, content: bytes, value: str) -> None:
    """Relative to the configuration file, wherever the command is started."""
    (tmp_path / "pass").write_bytes(content)
    assert value == passphrase(config(zip_with('passphrase = { file = "pass" }')))
    assert value == passphrase(config(zip_with(f'passphrase = {{ file = "{tmp_path}/pass" }}')))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "which cannot be read: No such file or directory."),
        (b"", "but that is empty."),
        (b"\n", "but that is empty."),
        (b"\xff" + CANARY.encode(), "but that is not UTF-8 text."),
        (b"a\0" + CANARY.encode(), "but that is not UTF-8 text."),
        (b"a" * ((1 << 20) + 1), "but that is more than 1 MiB."),
    ],
)
def test_a_file_that_is_no_good(problems: Callable[..., list[str]], tmp_path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "pass").write_bytes(content)
    (found,) = problems(zip_with('passphrase = { file = "pass" }'))
    assert found.startswith(f"{WHERE}option 'passphrase' needs the file pass")
    assert found.endswith(problem)
    assert CANARY not in found


def test_a_command_gives_what_it_prints(config: Load, tmp_path: Path) -> None:
    """With the environment of the caller, which tools for secrets need; without a shell; run once however often it is named."""
    count = tmp_path / "count"
    script = f"import os; open({str(count)!r}, 'a').write('x'); print('$HOME', os.environ['VAULT'])"
    reference = f"{{ command = [{sys.executable!r}, '-c', {chr(34) * 3}{script}{chr(34) * 3}] }}"
    loaded = config(zip_with(f"passphrase = {reference}\nkeys = {reference}"), {"VAULT": CANARY})
    assert f"$HOME {CANARY}" == passphrase(loaded)
    assert "x" == count.read_text()


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["/nowhere/tool"], "the command '/nowhere/tool', which could not be started; install it or correct its path."),
        (
            ["sh", "-c", f"echo {CANARY}; echo {CANARY} >&2; exit 3"],
            "the command 'sh', which failed with exit status 3; run it by hand to see why.",
        ),
        (["sh", "-c", "kill -9 $$"], "the command 'sh', which was ended by signal 9; run it by hand to see why."),
        (["true"], "what the command 'true' prints, but that is empty."),
        (["yes"], "what the command 'yes' prints, but that is more than 1 MiB."),
    ],
)
def test_a_command_that_is_no_good(problems: Callable[..., list[str]], argv: list[str], problem: str) -> None:
    """What it wrote is not shown, not even to stderr: tools for secrets repeat them."""
    environ = {"PATH": os.environ["PATH"]}
    found = problems(zip_with(f"passphrase = {{ command = {argv!r} }}"), environ)
    assert [f"{WHERE}option 'passphrase' needs {problem}"] == found


def test_a_command_has_a_time_limit(tmp_path: Path) -> None:
    """One that asks for a password on no terminal would wait for ever."""
    found: list[str] = []
    references = References({"PATH": os.environ["PATH"]}, tmp_path, timeout=0.2)
    references.resolve({"command": ["sleep", "60"]}, True, lambda place, text: found.append(f"{place} {text}"), "url")
    assert ["url needs the command 'sleep', which took longer than 0.2 s and was ended; run it by hand to see why."] == found


# --- roles -----------------------------------------------------------------------------------------------------------

RESTORE: tuple[Role, ...] = ("transform", "store")
FULL = GOOD.replace('"postgresql:///shop"', '{ env = "DATABASE_URL" }\nport = { env = "PORT" }') + (
    "[[pipeline.shop.notify]]\nuse = 'missing'\nwebhook = { env = 'HOOK' }\n"
)


def test_a_recovery_host_needs_no_database_url(config: Load) -> None:
    """References of roles that are not asked for are left out; notifiers are not even looked up."""
    shop = config(FULL, {}, roles=RESTORE).pipelines["shop"]
    assert ToyDump(url=Secret("")) == shop.dump
    assert () == shop.notifiers


def test_a_backup_needs_every_reference(problems: Callable[..., list[str]]) -> None:
    assert [
        "pgsnap.toml: pipeline.shop.dump (toy): option 'url' needs the environment variable DATABASE_URL, which is not set; "
        "set it.",
        "pgsnap.toml: pipeline.shop.dump (toy): option 'port' needs the environment variable PORT, which is not set; set it.",
        "pgsnap.toml: pipeline.shop.notify[0] (missing): there is no notify 'missing'; installed are: bell; "
        "correct the name or install its plugin.",
    ] == problems(FULL)


def test_literal_values_of_other_roles_are_checked_all_the_same(problems: Callable[..., list[str]]) -> None:
    assert ["pgsnap.toml: pipeline.shop.dump (toy): option 'port' wants a whole number, got text 'x'."] == problems(
        GOOD.replace('use = "toy"', 'use = "toy"\nport = "x"'), roles=RESTORE
    )


def test_a_store_may_have_its_url_from_elsewhere(config: Load) -> None:
    text = GOOD.replace('"/backups"', '{ env = "PLACE" }')
    assert (FsspecStore(url="memory://x"),) == config(text, {"PLACE": "memory://x"}).pipelines["shop"].stores


# --- notes -----------------------------------------------------------------------------------------------------------


def test_notes_a_secret_in_the_file_and_who_can_read_it(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "pgsnap.toml"
    path.write_text(GOOD.replace("postgresql:///shop", CANARY))
    path.chmod(0o644)
    notes = load(path, registry=registry, environ={}).notes
    assert ["pipeline.shop.dump (toy)", str(path)] == [note.subject for note in notes]
    assert ["warning", "warning"] == [note.level for note in notes]
    assert 'Write url = { env = "NAME" } or { file = "PATH" } instead.' == notes[0].remedy
    assert f"Run: chmod 600 {path}" == notes[1].remedy
    assert CANARY not in repr(notes)
    path.chmod(0o600)
    assert 1 == len(load(path, registry=registry, environ={}).notes)


def test_notes_a_password_in_the_url_of_a_store(config: Load) -> None:
    text = GOOD.replace("/backups", f"memory://u:{CANARY}@x").replace('"postgresql:///shop"', '{ env = "U" }')
    (note,) = config(text, {"U": "x"}).notes
    assert "pipeline.shop.store[0] (fsspec)" == note.subject
    assert CANARY not in repr(note)


def test_notes_a_relative_directory(config: Load) -> None:
    """Started from another directory, list would show nothing and backup begin anew."""
    text = GOOD.replace("/backups", "backups").replace('"postgresql:///shop"', '{ env = "U" }')
    (note,) = config(text, {"U": "x"}).notes
    assert ("warning", "pipeline.shop.store[0]", "Give an absolute path.") == (note.level, note.subject, note.remedy)


# --- where it is -----------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """A directory and a home with every file in its place."""
    work, home = tmp_path / "work", tmp_path / "home"
    files = {
        "named": tmp_path / "named.toml",
        "variable": tmp_path / "variable.toml",
        "here": work / "pgsnap.toml",
        "project": work / "pyproject.toml",
        "user": home / ".config" / "pgsnap" / "pgsnap.toml",
    }
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[tool.pgsnap]" if path.name == "pyproject.toml" else "")
    return {**files, "work": work, "home": home}


def test_the_first_that_is_found_wins(places: dict[str, Path]) -> None:
    """In the order of the documentation; each is taken away after it was found."""
    environ = {"HOME": str(places["home"]), "PGSNAP_CONFIG": str(places["variable"])}
    assert places["named"] == find_config(places["named"], environ=environ, directory=places["work"])
    assert places["variable"] == find_config(environ=environ, directory=places["work"])
    del environ["PGSNAP_CONFIG"]
    for name in ("here", "project", "user"):
        assert places[name] == find_config(environ=environ, directory=places["work"])
        places[name].unlink()
    assert find_config(environ=environ, directory=places["work"]) in (None, Path("/etc/pgsnap/pgsnap.toml"))


@pytest.mark.parametrize("content", ["[tool.black]", "[tool.black", "\0"])
def test_a_pyproject_of_others_is_passed_by(places: dict[str, Path], content: str) -> None:
    """Without our table, and even if it is broken."""
    places["here"].unlink()
    places["project"].write_text(content)
    environ = {"HOME": str(places["home"])}
    assert places["user"] == find_config(environ=environ, directory=places["work"])


def test_a_broken_pyproject_with_our_table_is_an_error(places: dict[str, Path], registry: Registry) -> None:
    """Passed by, it would give way to the configuration of something else."""
    places["here"].unlink()
    places["project"].write_text("[tool.pgsnap\n")
    with pytest.raises(ConfigError, match=r"pyproject\.toml: line 1, column 13: expected ']'"):
        load(registry=registry, environ={}, directory=places["work"])


def test_a_named_file_that_is_missing_is_an_error(places: dict[str, Path]) -> None:
    """It is never replaced by what else there is."""
    gone = places["work"] / "gone.toml"
    with pytest.raises(ConfigError, match=rf"^--config names {gone}, which is not there; correct the path"):
        find_config(gone, environ={}, directory=places["work"])
    with pytest.raises(ConfigError, match=rf"^PGSNAP_CONFIG names {gone}, which is not there"):
        find_config(environ={"PGSNAP_CONFIG": str(gone)}, directory=places["work"])


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, registry: Registry) -> None:
    """A directory in its place, or a link to nowhere, is not taken for absent."""
    (tmp_path / "pgsnap.toml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"pgsnap\.toml cannot be read: No such file or directory; check"):
        load(registry=registry, environ={}, directory=tmp_path)
    (tmp_path / "pgsnap.toml").unlink()
    (tmp_path / "pgsnap.toml").mkdir()
    with pytest.raises(ConfigError, match=r"pgsnap\.toml cannot be read: Is a directory; check"):
        load(registry=registry, environ={}, directory=tmp_path)


def test_nothing_at_all_says_what_to_do(tmp_path: Path, registry: Registry) -> None:
    if Path("/etc/pgsnap/pgsnap.toml").exists():
        pytest.skip("this machine has a configuration of its own")
    with pytest.raises(ConfigError, match=r"^there is no configuration: .* run 'pgsnap init' .* or set DATABASE_URL\.$"):
        load(registry=registry, environ={}, directory=tmp_path)


def test_a_config_pickles(config: Load) -> None:
    """Its pipelines may run in another process."""
    loaded = config(GOOD)
    assert loaded == pickle.loads(pickle.dumps(loaded))


# --- its documentation -----------------------------------------------------------------------------------------------

REFERENCE = Path(__file__).parent.parent.parent / "docs" / "reference"


@pytest.mark.skipif(not REFERENCE.exists(), reason="the tests run without the documentation")
def test_every_key_is_in_the_reference() -> None:
    """Of a pipeline, a policy, and the components of the core."""
    text = (REFERENCE / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, flags=re.MULTILINE))
    renamed = {"transforms": "transform", "stores": "store", "notifiers": "notify"}
    keys = {renamed.get(field.name, field.name) for field in attrs.fields(Pipeline)} - {"name"}
    assert keys | {"url"} == rows.keys()
    named = set(re.findall(r"`(\w+)`", text))
    for class_ in (RetentionPolicy, LocalStore, FsspecStore, Notifier):
        assert {field.name for field in attrs.fields(class_)} <= named


@pytest.mark.skipif(not REFERENCE.exists(), reason="the tests run without the documentation")
def test_every_variable_is_in_the_reference() -> None:
    """Whatever the module that reads the environment mentions."""
    import pgsnap.config.environment as module

    text = (REFERENCE / "environment.md").read_text()
    variables = set(re.findall(r'"([A-Z][A-Z0-9]*_[A-Z0-9_]+)"', Path(module.__file__).read_text()))
    assert {"DATABASE_URL", "PGSNAP_DIR", "SMTP_PORT"} < variables
    assert set() == {name for name in variables if name not in text}


# --- whatever comes --------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.datetimes(), st.sampled_from(["toy", "zip", "2h"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["env", "file", "x", "daily"]), inner, max_size=3)
    ),
    max_leaves=6,
)
OPTIONS = st.dictionaries(st.sampled_from(["use", "url", *(field.name for field in attrs.fields(Zip))]), VALUES, max_size=4)
PIPELINES = st.fixed_dictionaries(
    {},
    optional={
        "dump": OPTIONS.map(lambda table: {"use": "toy", **table}) | VALUES,
        "transform": st.lists(OPTIONS.map(lambda table: {"use": "zip", **table}), max_size=2) | VALUES,
        "store": st.lists(OPTIONS.map(lambda table: {"url": "/x", **table}), min_size=1, max_size=2) | VALUES,
        "notify": VALUES,
        "timeout": VALUES,
        "buffer": VALUES,
        "keep": VALUES,
        "quorum": VALUES,
        "timezone": VALUES,
        "other": VALUES,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    document=st.fixed_dictionaries(
        {"pipeline": st.dictionaries(st.text(max_size=5), PIPELINES | VALUES, max_size=2) | VALUES},
        optional={"defaults": PIPELINES | VALUES, "more": VALUES},
    )
)
def test_any_document_gives_pipelines_or_a_config_error(document: dict[str, Any], registry: Registry) -> None:
    """Nothing that TOML can say makes another exception come out, and each problem begins with the file."""
    builder = Builder("f.toml", registry, References({}, Path("/nowhere")), ROLES)
    pipelines = {}
    with contextlib.suppress(ConfigError):
        pipelines = builder.build(document)
    assert bool(builder.problems) != bool(pipelines)
    assert all(problem.startswith("f.toml: ") for problem in builder.problems)
    assert all(isinstance(pipeline, Pipeline) for pipeline in pipelines.values())

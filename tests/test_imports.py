"""The shape of the package: no circles, imports one way, few places with threads, a light start, a complete front door."""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import pgsnap

CORE = Path(pgsnap.__file__).parent
ROOT = Path(__file__).parent.parent
PLUGINS = ROOT / "plugins"

HEAVY = {
    "fsspec", "cattrs", "rich", "pluggy", "tenacity", "s3fs", "gcsfs", "aiohttp", "botocore", "requests", "paramiko",
    "psycopg", "pyrage", "isal", "backports", "blake3", "zstandard", "pytest", "asyncio", "ssl", "http",
}  # fmt: skip


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def is_typing_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def everywhere(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))


def modules_of(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Dotted names of what is imported; ``from pgsnap import X`` counts as the module that X comes from."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.level:  # a plugin's own modules; the core has no relative imports
        return []
    if node.module != "pgsnap":
        return [node.module or ""]
    return [f"pgsnap.{pgsnap._MODULE.get(alias.name, alias.name)}" for alias in node.names if alias.name != "__version__"]


def name_of(path: Path) -> str:
    """The first part of a module's name below pgsnap."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def graph(package: Path) -> dict[str, set[str]]:
    """Return what each file of a package imports from it, by dotted names; in functions and for type checkers too."""
    names = {}
    for path in files(package):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        wanted = set()
        for node in everywhere(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            else:
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= {full if full in names else str(node.module) for full in below}
        found[name] = (wanted & names.keys()) - {name}
    return found


@pytest.mark.parametrize(
    "package", [CORE, *sorted(path for path in PLUGINS.glob("*/src/*") if path.is_dir())], ids=lambda p: p.name
)
def test_no_file_imports_itself_by_way_of_others(package: Path) -> None:
    """There is no circle, not even one that is hidden in functions or in ``if TYPE_CHECKING``."""
    TopologicalSorter(graph(package)).prepare()


def test_a_circle_would_be_found(tmp_path: Path) -> None:
    """Also by an import inside a function."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "__init__.py").write_text("")
    (tmp_path / "p" / "a.py").write_text("from p.b import x\n")
    (tmp_path / "p" / "b.py").write_text("def f():\n    from p import a\n")
    with pytest.raises(CycleError):
        TopologicalSorter(graph(tmp_path / "p")).prepare()


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("pgsnap/streams/basics.py", "from pgsnap.repository.manifest import Manifest", "The rooms of the core"),
        ("pgsnap/repository/guard.py", "def f():\n    from pgsnap.pipeline import Pipeline", "The rooms of the core"),
        ("pgsnap/testing/sources.py", "from pgsnap.config import load", "The rooms of the core"),
        ("pgsnap/cli/session.py", "from pgsnap.testing import text", "Only authors of plugins"),
        ("pgsnap_postgres/options.py", "from pgsnap_postgres.dump.tables import Table", "The rooms of pgsnap-postgres"),
        ("pgsnap_zstd/__init__.py", "from pgsnap.streams.process import spawn", "Plugins import pgsnap"),
        ("pgsnap_zstd/__init__.py", "import pgsnap_gzip", "Plugins never import each other"),
    ],
)
def test_an_import_that_goes_up_breaks_a_contract(tmp_path: Path, file: str, line: str, said: str) -> None:
    """``nox -s lint`` fails for it; what it holds of the tree as it is, that session says."""
    for package in (ROOT / "pgsnap", *(path for path in PLUGINS.glob("*/src/*") if path.is_dir())):
        shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    program = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def lint() -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, "--no-cache"], cwd=tmp_path, env=environment, capture_output=True, text=True)

    whole = lint()
    assert 0 == whole.returncode, whole.stdout + whole.stderr
    with open(tmp_path / file, "a") as source:
        source.write(f"\n\n{line}\n")
    done = lint()
    broken = " ".join(done.stdout.partition("Broken contracts")[2].split())
    assert 1 == done.returncode, done.stdout + done.stderr
    assert said in broken


def test_the_core_has_few_doors() -> None:
    """What lies in the package's folder tells its story; a new room is a decision."""
    entries = {path.name for path in (ROOT / "pgsnap").iterdir() if path.name != "__pycache__"}
    assert len(entries) <= 12, sorted(entries)


def test_the_picture_of_the_rooms_is_that_of_the_code() -> None:
    """``python docs/pictures/rooms.py`` draws it anew."""
    picture = ROOT / "docs" / "pictures" / "rooms.svg"
    done = subprocess.run(
        [sys.executable, "-c", f"import runpy; print(runpy.run_path({str(picture.with_suffix('.py'))!r})['draw'](), end='')"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert picture.read_text() == done.stdout


def test_the_core_has_no_relative_imports() -> None:
    """They would escape the checks above."""
    assert [] == [
        str(path)
        for path in files(CORE)
        for node in everywhere(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def test_threads_are_in_one_room_only() -> None:
    """Nobody else starts a thread, a pool or a process, in the core and in our plugins."""
    starters = {"Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor", "Popen", "start_new_thread", "to_thread", "fork"}
    pools = {"concurrent", "multiprocessing", "_thread", "asyncio", "trio", "anyio"}
    wrong = []
    for path in [*files(CORE), *(p for source in PLUGINS.glob("*/src") for p in files(source))]:
        if path.parent == CORE / "streams":
            continue
        tree = ast.parse(path.read_text())
        wrong += [
            f"{path}:{node.lineno} imports {module}"
            for node in everywhere(tree)
            for module in modules_of(node)
            if module.split(".")[0] in pools
        ]
        wrong += [
            f"{path}:{node.lineno} calls {called}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and (called := ast.unparse(node.func)).split(".")[-1] in starters
        ]
    assert ALLOWED_STARTERS >= {entry.rpartition("/")[2].split(":")[0] for entry in wrong}, wrong


ALLOWED_STARTERS = {"throwaway.py", "keeper.py", "fault_proxy.py", "connection.py", "upload.py", "web.py"}
"""pgsnap_postgres' throwaway server, which outlives any stream: the server itself and the keeper that stops it. The fault proxy
of the tests, a process of its own, and their web server. The object stores' connections and what they share, whose coroutines run
on the loop of fsspec's own thread. An upload to S3, whose parts wait by a Future for the answer to its creation."""


def loaded_by(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{program}\nprint('\\n' + json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=CORE.parent,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_pgsnap_loads_nothing_heavy() -> None:
    """``import pgsnap`` loads not even its own modules, let alone a plugin, a driver or a network client."""
    bare, loaded = loaded_by(""), loaded_by("import pgsnap")
    fresh = {name.split(".")[0] for name in loaded - bare}
    assert {"pgsnap"} == {name for name in loaded - bare if name.startswith("pgsnap")}
    assert set() == fresh & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["backup", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """The command answers at once: no plugin, no fsspec, cattrs or rich, no driver, no network client."""
    bare = loaded_by("")
    loaded = loaded_by(f"from pgsnap.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass")
    fresh = {name.split(".")[0] for name in loaded - bare}
    assert "click" in fresh
    assert set() == fresh & HEAVY
    assert set() == {name for name in fresh if name.startswith("pgsnap_")}


def test_all_is_complete() -> None:
    """Every name of the lazy table is in __all__, and the other way round; each resolves and is public where it lives."""
    assert {*pgsnap._MODULE, "__version__"} == set(pgsnap.__all__)
    assert sorted(pgsnap.__all__) == dir(pgsnap)
    for name, module in pgsnap._MODULE.items():
        home = import_module(f"pgsnap.{module}")
        assert getattr(home, name) is getattr(pgsnap, name)
        assert name in getattr(home, "__all__", [name])


def test_type_checkers_see_the_lazy_table() -> None:
    """The imports for type checkers and the table of the lazy ones agree."""
    tree = ast.parse((CORE / "__init__.py").read_text())
    typed = {
        alias.name: node.module
        for block in tree.body
        if is_typing_only(block)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: f"pgsnap.{module}" for name, module in pgsnap._MODULE.items()}


def test_whatever_a_pipeline_returns_can_be_imported() -> None:
    """The return types of its methods are names of the front door."""
    known = {name for module in (pgsnap, builtins) for name in dir(module)} | {"Self", "datetime"}
    methods = [getattr(pgsnap.Pipeline, name) for name in dir(pgsnap.Pipeline) if not name.startswith("_")]
    for method in methods:
        function = method.fget if isinstance(method, property) else method
        returned = getattr(function, "__annotations__", {}).get("return", "")
        names = set(re.findall(r"[A-Za-z_]\w*", returned)) - {"None", "Sequence"}
        assert names <= known, f"{function.__qualname__} returns {returned}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of any module, so that hasattr and from-imports work."""
    assert not hasattr(pgsnap, "Nonsense")
    with pytest.raises(ImportError, match="Nonsense"):
        exec("from pgsnap import Nonsense")


def test_every_module_names_what_is_public() -> None:
    """Each module's __all__ names things that exist."""
    for path in files(CORE):
        parts = path.relative_to(CORE.parent).with_suffix("").parts
        if "testing" in parts or path.name == "__main__.py":
            continue
        module = import_module(".".join(parts).removesuffix(".__init__"))
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{module.__name__}.__all__ names {name}"

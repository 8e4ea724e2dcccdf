"""The shape of the package: one direction of imports, few places with threads, a light start, a complete front door."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import pgsnap

CORE = Path(pgsnap.__file__).parent
PLUGINS = Path(__file__).parent.parent / "plugins"

ORDER = """
    errors
    streams
    components
    stores
    repository
    operations
    pipeline
    config
    cli
    testing
"""
RANK = {name: rank for rank, line in enumerate(ORDER.split("\n")) for name in line.split()}
HEAVY = {
    "fsspec", "cattrs", "rich", "pluggy", "tenacity", "s3fs", "gcsfs", "aiohttp", "botocore", "requests", "paramiko",
    "psycopg", "pyrage", "isal", "backports", "blake3", "zstandard", "pytest", "asyncio", "ssl", "http",
}  # fmt: skip


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def is_typing_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def at_import_time(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that run when the module is imported: not those in functions or for type checkers only."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not (is_typing_only(node) or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            for field in ("body", "orelse", "finalbody"):
                yield from at_import_time(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from at_import_time(handler.body)


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


def test_every_module_has_a_place_in_the_order() -> None:
    """A new module must be put into ORDER on purpose."""
    assert set() == {name_of(path) for path in files(CORE)} - {"__init__"} - RANK.keys()


def test_every_module_stands_on_the_map() -> None:
    """The page that says how it is built names them all, and none that is gone."""
    page = (PLUGINS.parent / "docs" / "explanation" / "design.md").read_text()
    table = page.partition("## The modules")[2].partition("\nThreads exist")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert RANK.keys() == named


def test_imports_go_one_way() -> None:
    """No module imports one that stands beside or after it in ORDER; inside a package its modules may import each other."""
    wrong = [
        f"{path.relative_to(CORE)}:{node.lineno} imports {module}"
        for path in files(CORE)
        for node in at_import_time(ast.parse(path.read_text()).body)
        for module in modules_of(node)
        if module.startswith("pgsnap.")
        and (target := module.split(".")[1]) != name_of(path)
        and (name_of(path) == "__init__" or RANK[target] >= RANK[name_of(path)])
    ]
    assert [] == wrong


def test_plugins_import_only_the_public_modules() -> None:
    """A plugin uses pgsnap, the three modules below it for authors and pgsnap.testing, and never another plugin."""
    public = {"pgsnap", "pgsnap.streams", "pgsnap.streams.process", "pgsnap.streams.retry", "pgsnap.testing"}
    wrong = []
    for source in PLUGINS.glob("*/src"):
        own = {path.name for path in source.iterdir()}
        for path in files(source):
            for node in everywhere(ast.parse(path.read_text())):
                for module in [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]:
                    root = module.split(".")[0]
                    if (root == "pgsnap" and module not in public) or (root.startswith("pgsnap_") and root not in own):
                        wrong.append(f"{path.relative_to(PLUGINS)}:{node.lineno} imports {module}")
    assert [] == wrong


def test_the_core_has_no_relative_imports() -> None:
    """They would escape the checks above."""
    assert [] == [
        str(path)
        for path in files(CORE)
        for node in everywhere(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def test_threads_are_in_two_modules_only() -> None:
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

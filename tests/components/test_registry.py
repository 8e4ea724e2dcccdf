"""The registry: plugins by real entry points, and what broken, doubled and disabled ones do to the others: nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import attrs
import pytest

from pgsnap import ConfigError, Facts, PluginError, Registry, Transform, hookimpl
from pgsnap.components.contracts import Component
from pgsnap.streams import Chunks, Stream


@attrs.frozen(kw_only=True)
class Upper(Transform):
    name = "upper"
    level: int = 1

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        yield from chunks

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        yield from chunks

    def command(self, facts: Facts) -> str | None:
        return None


@attrs.frozen(kw_only=True)
class Other(Upper):
    name = "upper"


def giving(*classes: object, hook: str = "pgsnap_transforms") -> object:
    """A plugin object whose hook returns the classes."""

    def function() -> Sequence[object]:
        return classes

    function.__name__ = hook
    return SimpleNamespace(**{hook: hookimpl(function)})


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution with one entry point, as far as importlib.metadata can tell."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install(distribution: str, code: str, point: str = "", module: str = "") -> None:
        module = module or distribution.replace("-", "_")
        folder = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (folder / "entry_points.txt").write_text(f"[pgsnap]\n{point or distribution} = {module}\n")
        (tmp_path / f"{module}.py").write_text(dedent(code))

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("x_"):
            del sys.modules[name]


GOOD = """
    import attrs
    from pgsnap import Transform, hookimpl

    @attrs.frozen(kw_only=True)
    class Good(Transform):
        name = "NAME"
        def encode(self, chunks, facts): yield from chunks
        def decode(self, chunks, facts): yield from chunks
        def command(self, facts): return None

    @hookimpl
    def pgsnap_transforms(): return [Good]
"""


def good(name: str) -> str:
    return GOOD.replace("NAME", name)


# --- what a plugin gives ---------------------------------------------------------------------------------------------


def test_a_class_is_found_by_its_name() -> None:
    """A hook returns classes; the registry gives them by kind and name."""
    registry = Registry([("x", giving(Upper))])
    assert Upper is registry.get("transform", "upper")
    assert ["upper"] == registry.names("transform")
    assert [] == registry.names("store")
    assert {} == registry.conflicts
    assert [("x", "")] == [(plugin.name, plugin.error) for plugin in registry.plugins]


def test_installed_plugins_are_loaded(install: Install) -> None:
    """An entry point of the group is enough, and its distribution and version are known."""
    install("x-good", good("xgood"))
    registry = Registry.load()
    assert "Good" == registry.get("transform", "xgood").__name__
    assert ("x-good", "1.2", "") in [(p.distribution, p.version, p.error) for p in registry.plugins]


def _mutable() -> type[Component]:
    class Plain(Upper):
        name = "plain"

    return Plain


def _abstract() -> type[Component]:
    @attrs.frozen(kw_only=True)
    class Half(Transform):
        name = "half"

        def encode(self, chunks: Chunks, facts: Facts) -> Stream:
            yield from chunks

    return Half


def _named(value: object) -> type[Component]:
    return attrs.frozen(kw_only=True)(type("Named", (Upper,), {"name": value, "__annotations__": {}}))


@pytest.mark.parametrize(
    ("component", "problem"),
    [
        (Upper(), "is not a subclass of pgsnap.Transform; a hook returns classes"),
        (int, "is not a subclass of pgsnap.Transform"),
        (None, "is not a subclass of pgsnap.Transform"),
        (_mutable(), "Plain lacks @attrs.frozen(kw_only=True)"),
        (_abstract(), "Half does not implement"),
        (_named(7), "Named has no 'name'"),
        (_named(""), "Named has the name ''"),
        (_named("a:b"), "Named has the name 'a:b'"),
    ],
)
def test_a_class_that_cannot_be_used(component: object, problem: str) -> None:
    """It is told with the plugin, and the plugin's other classes are there."""
    registry = Registry([("x", giving(component, Upper))])
    assert problem in registry.plugins[0].error
    assert Upper is registry.get("transform", "upper")
    assert ["upper"] == registry.names("transform")


# --- broken plugins --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "raise RuntimeError('boom')",
        "import x_missing_library_boom",
        "def f(:  # boom",
        "import sys; sys.exit('boom')",
        "from pgsnap import hookimpl\n@hookimpl\ndef pgsnap_boom(): return []",
        "from pgsnap import hookimpl\n@hookimpl\ndef pgsnap_transforms(boom): return []",
        "from pgsnap import hookimpl\n@hookimpl\ndef pgsnap_transforms(): raise RuntimeError('boom')",
        "from pgsnap import hookimpl\n@hookimpl\ndef pgsnap_transforms(): return None  # boom",
    ],
)
def test_a_broken_plugin_spoils_nothing_else(install: Install, code: str) -> None:
    """Whatever is wrong with one, it is data, and those before and after it work."""
    install("x-a", good("xa"))
    install("x-broken", code)
    install("x-c", good("xc"))
    registry = Registry.load()
    assert {"xa", "xc"} <= set(registry.names("transform"))
    (broken,) = (plugin for plugin in registry.plugins if plugin.distribution == "x-broken")
    assert broken.error
    assert () == broken.components
    with pytest.raises(PluginError, match="x-broken"):
        registry.get("transform", "xbroken")


def test_two_distributions_may_use_one_entry_point_name(install: Install) -> None:
    """The name of an entry point is the author's choice: both plugins work."""
    install("x-one", good("xone"), point="tools")
    install("x-two", good("xtwo"), point="tools")
    registry = Registry.load()
    assert {"xone", "xtwo"} <= set(registry.names("transform"))
    assert [] == [p.error for p in registry.plugins if p.name == "tools" and p.error]


def test_a_disabled_plugin_is_not_imported(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """By entry point or distribution, with blanks around it."""
    install("x-boom", "raise SystemExit('imported')", point="boom")
    install("x-good", good("xgood"))
    for text in ("boom", "x-boom", "nothing, x-boom ,"):
        monkeypatch.setenv("PGSNAP_DISABLE_PLUGINS", text)
        registry = Registry.load()
        (plugin,) = (p for p in registry.plugins if p.distribution == "x-boom")
        assert (True, "") == (plugin.disabled, plugin.error)
        assert "xgood" in registry.names("transform")


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_conflict_raises_only_when_the_name_is_used() -> None:
    """Two plugins with one name: everything else works; the name tells who they are and what to do."""
    registry = Registry([("x", giving(Upper)), ("y", giving(Other))])
    assert [("transform", "upper")] == list(registry.conflicts)
    with pytest.raises(PluginError, match="'upper' is claimed by x and y; name one of them in PGSNAP_DISABLE_PLUGINS"):
        registry.get("transform", "upper")


def test_the_same_class_twice_is_no_conflict() -> None:
    """A class that is given by two plugins or twice by one is still one class."""
    registry = Registry([("x", giving(Upper, Upper)), ("y", giving(Upper))])
    assert Upper is registry.get("transform", "upper")
    assert {} == registry.conflicts


def test_an_unknown_name_says_what_to_do() -> None:
    """A slip of the pen, a plugin of ours that is not installed, a name of another kind, and anything else."""
    registry = Registry([("x", giving(Upper))])
    with pytest.raises(PluginError, match="there is no transform 'uper'; did you mean 'upper'"):
        registry.get("transform", "uper")
    with pytest.raises(PluginError, match=r"'zstd' is not installed; run: pip install \./plugins/pgsnap-zstd"):
        registry.get("transform", "zstd")
    with pytest.raises(PluginError, match="'upper' is a transform, not a store"):
        registry.get("store", "upper")
    with pytest.raises(PluginError, match="installed are: upper"):
        registry.get("transform", "qqq")


def test_use_by_path() -> None:
    """``module:Class`` needs no plugin."""
    assert "Event" not in Registry().names("transform")
    assert issubclass(Registry().get("store", "pgsnap.stores:LocalStore"), Component)


@pytest.mark.parametrize(
    ("path", "code", "problem"),
    [
        ("x_absent:Store", "", "cannot be imported"),
        (":Store", "", "cannot be imported"),
        ("x_mod:Absent", "", "cannot be imported"),
        ("x_mod:Store", "raise ValueError('boom')", "cannot be imported: boom"),
        ("x_mod:Store", "def f(:", "cannot be imported"),
        ("pgsnap.stores:LocalStore", "", "cannot be used as a transform"),
    ],
)
def test_use_by_a_path_that_is_wrong(install: Install, path: str, code: str, problem: str) -> None:
    """Each is a sentence with the path in it, never a traceback."""
    install("x-mod", code or "x = 1")
    with pytest.raises(ConfigError, match=problem) as caught:
        Registry().get("transform", path)
    assert path in str(caught.value)


# --- stores by URL ---------------------------------------------------------------------------------------------------


def test_a_store_is_found_by_its_scheme() -> None:
    """A plain path is the local store, a claimed scheme its plugin's, any other the general store."""
    from pgsnap import FsspecStore, LocalStore
    from pgsnap.stores import builtin

    @attrs.frozen(kw_only=True)
    class Mine(FsspecStore):
        name = "mine"
        schemes = ("mine", "my")

    registry = Registry([("core", builtin), ("x", giving(Mine, hook="pgsnap_stores"))])
    assert LocalStore is registry.store_for("/var/backups")
    assert LocalStore is registry.store_for("file:///var/backups")
    assert Mine is registry.store_for("my://x")
    assert Mine is registry.store_for("MINE://x")
    assert FsspecStore is registry.store_for("memory://x")


def test_two_stores_that_claim_one_scheme() -> None:
    """The scheme is in conflict, not the names."""
    from pgsnap import FsspecStore
    from pgsnap.stores import builtin

    @attrs.frozen(kw_only=True)
    class Mine(FsspecStore):
        name = "mine"
        schemes = ("my",)

    @attrs.frozen(kw_only=True)
    class Yours(FsspecStore):
        name = "yours"
        schemes = ("my",)

    plugins = [("core", builtin), *((c.name, giving(c, hook="pgsnap_stores")) for c in (Mine, Yours))]
    registry = Registry(plugins)
    assert [("store", "my://")] == list(registry.conflicts)
    assert Mine is registry.get("store", "mine")
    with pytest.raises(PluginError, match="'my://' is claimed by mine and yours"):
        registry.store_for("my://x")

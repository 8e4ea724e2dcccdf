"""Finds plugins and gives their classes by name.

A registry is an object; nothing here is global. Entry points are loaded one by one and every hook implementation is called and
checked one by one, so that a broken plugin or a name that two of them claim spoils nothing else: both are kept as data, shown by
``pgsnap plugins``, and raise only when the name is used.

``PGSNAP_DISABLE_PLUGINS`` names plugins (by entry point or distribution, separated by commas) that are not to be loaded.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import cast

import attrs
import pluggy

from pgsnap.components import hookspecs
from pgsnap.components.contracts import KIND_CLASSES, Component, ComponentKind, Store
from pgsnap.components.hookspecs import GROUP
from pgsnap.components.values import NAME
from pgsnap.errors import ConfigError, PluginError

__all__ = ["Plugin", "Registered", "Registry"]


HOOKS: dict[str, ComponentKind] = {
    "pgsnap_dumpers": "dump",
    "pgsnap_transforms": "transform",
    "pgsnap_stores": "store",
    "pgsnap_notifiers": "notify",
}
FIRST_PARTY = {
    "pg_dump": "pgsnap-postgres",
    "gzip": "pgsnap-gzip",
    "zstd": "pgsnap-zstd",
    "age": "pgsnap-age",
    "checksum": "pgsnap-checksum",
    "s3": "pgsnap-s3",
    "slack": "pgsnap-slack",
    "email": "pgsnap-email",
    "webhook": "pgsnap-webhook",
    "apprise": "pgsnap-apprise",
    "gcs": "pgsnap-gcs",
    "sftp": "pgsnap-sftp",
}
"""Names of our own plugins' components, for the hint that tells what to install."""


@attrs.frozen
class Registered:
    """One class that a plugin gave."""

    kind: ComponentKind
    name: str
    component: type[Component]
    distribution: str


@attrs.frozen
class Plugin:
    """One plugin that was found: ``error`` is empty, or says why it (or a part of it) cannot be used."""

    name: str
    distribution: str
    version: str
    components: tuple[Registered, ...] = ()
    error: str = ""
    disabled: bool = False


def _problem_of(component: object, kind: ComponentKind) -> str:
    base = KIND_CLASSES[kind]
    if not (inspect.isclass(component) and issubclass(component, base)):
        return f"{component!r} is not a subclass of pgsnap.{base.__name__}; a hook returns classes"
    if inspect.isabstract(component):
        missing = ", ".join(sorted(component.__abstractmethods__))
        return f"{component.__name__} does not implement {missing}"
    if not attrs.has(component) or "__attrs_attrs__" not in vars(component):
        return f"{component.__name__} lacks @attrs.frozen(kw_only=True)"
    name = getattr(component, "name", None)
    if not isinstance(name, str):
        return f"{component.__name__} has no 'name'"
    if not NAME.fullmatch(name):
        return f"{component.__name__} has the name {name!r}; use at most 100 of A-Z a-z 0-9 . _ -"
    return ""


class Registry:
    """The components that are installed.

    Args:
        plugins: Modules or objects with hook implementations, by name, as a test or an embedding program gives them.
    """

    def __init__(self, plugins: Iterable[tuple[str, object]] = ()) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._plugins: list[Plugin] = []
        for name, plugin in plugins:
            self._add(name, plugin, distribution=name, version="")

    @classmethod
    def load(cls) -> Registry:
        """Return a registry with every installed plugin, by the entry points of group ``pgsnap``."""
        registry = cls()
        disabled = {name.strip() for name in os.environ.get("PGSNAP_DISABLE_PLUGINS", "").split(",")} - {""}
        for point in sorted(set(entry_points(group=GROUP)), key=lambda p: (p.name != "core", p.name)):
            registry._load(point, disabled)
        return registry

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """All plugins that were found, the broken and the disabled too."""
        return tuple(self._plugins)

    @property
    def conflicts(self) -> dict[tuple[ComponentKind, str], tuple[Registered, ...]]:
        """Names (and, for stores, ``scheme://``) that more than one plugin claims, with those who do."""
        claims: dict[tuple[ComponentKind, str], list[Registered]] = {}
        for item in self._all():
            claims.setdefault((item.kind, item.name), []).append(item)
            if item.kind == "store":
                for scheme in cast("type[Store]", item.component).schemes:
                    claims.setdefault(("store", f"{scheme}://"), []).append(item)
        return {key: tuple(items) for key, items in claims.items() if len({i.component for i in items}) > 1}

    def _all(self) -> Iterable[Registered]:
        return (item for plugin in self._plugins for item in plugin.components)

    def _load(self, point: EntryPoint, disabled: set[str]) -> None:
        distribution = point.dist.name if point.dist else point.name
        version = point.dist.version if point.dist else ""
        if disabled & {point.name, distribution}:
            self._plugins.append(Plugin(point.name, distribution, version, disabled=True))
            return
        try:
            module = point.load()
        except (Exception, SystemExit) as error:
            text = f"it cannot be imported: {type(error).__name__}: {error}"
            self._plugins.append(Plugin(point.name, distribution, version, error=text))
            return
        self._add(point.name, module, distribution, version)

    def _add(self, name: str, module: ModuleType | object, distribution: str, version: str) -> None:
        found: list[Registered] = []
        problems: list[str] = []
        key = f"{len(self._plugins)}:{name}"  # two distributions may have entry points of one name
        try:
            self._manager.register(module, name=key)
            self._manager.check_pending()
        except Exception as error:
            if self._manager.has_plugin(key):
                self._manager.unregister(name=key)
            self._plugins.append(Plugin(name, distribution, version, error=f"its hooks do not fit: {error}"))
            return
        for hook, kind in HOOKS.items():
            for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                if implementation.plugin is not module:
                    continue
                try:
                    classes = list(implementation.function())
                except Exception as error:
                    problems.append(f"{hook}() failed: {type(error).__name__}: {error}")
                    continue
                for component in classes:
                    if problem := _problem_of(component, kind):
                        problems.append(f"{hook}(): {problem}")
                    else:
                        found.append(Registered(kind, component.name, component, distribution))
        self._plugins.append(Plugin(name, distribution, version, tuple(found), "; ".join(problems)))

    def names(self, kind: ComponentKind) -> list[str]:
        """Return the names of the installed components of one kind, sorted."""
        return sorted({item.name for item in self._all() if item.kind == kind})

    def get(self, kind: ComponentKind, name: str) -> type[Component]:
        """Return the class of a name, or of ``module:Class`` for one that no plugin gives.

        Raises:
            PluginError: nobody offers it (the message says what to install), or two plugins do, or it is broken.
            ConfigError: ``module:Class`` cannot be imported, or is no such component.
        """
        if ":" in name:
            return _by_path(kind, name)
        return self._only(kind, name, [i for i in self._all() if (i.kind, i.name) == (kind, name)])

    def store_for(self, url: str) -> type[Store]:
        """Return the class that serves a URL: the plugin that claims its scheme, else the general fsspec store."""
        scheme = url.partition("://")[0].lower() if "://" in url else "file"
        found = [item for item in self._all() if item.kind == "store" and scheme in cast("type[Store]", item.component).schemes]
        if not found:
            return cast("type[Store]", self.get("store", "fsspec"))
        return cast("type[Store]", self._only("store", f"{scheme}://", found))

    def _only(self, kind: ComponentKind, name: str, found: list[Registered]) -> type[Component]:
        if len({item.component for item in found}) == 1:
            return found[0].component
        if found:
            owners = " and ".join(sorted({item.distribution for item in found}))
            raise PluginError(
                f"the {kind} {name!r} is claimed by {owners}; name one of them in PGSNAP_DISABLE_PLUGINS or remove it."
            )
        for item in self._all():
            if item.name == name:
                raise PluginError(f"{name!r} is a {item.kind}, not a {kind}; name it there, or choose another {kind}.")
        package = FIRST_PARTY.get(name)
        for plugin in self._plugins:
            if package == plugin.distribution and (plugin.error or plugin.disabled):
                why = plugin.error or "it is disabled; take it out of PGSNAP_DISABLE_PLUGINS"
                raise PluginError(f"the {kind} {name!r} of {package} cannot be used: {why}.")
        if package is not None:
            raise PluginError(f"the {kind} {name!r} is not installed; run: pip install ./plugins/{package}")
        known = self.names(kind)
        close = get_close_matches(name, known, n=1)
        hint = f"installed are: {', '.join(known) or 'none'}; correct the name or install its plugin."
        hint = f"did you mean {close[0]!r}?" if close else hint
        broken = "; ".join(f"{p.distribution}: {p.error}" for p in self._plugins if p.error)
        raise PluginError(f"there is no {kind} {name!r}; {hint}{' Broken plugins: ' + broken if broken else ''}")


def _by_path(kind: ComponentKind, path: str) -> type[Component]:
    module_name, _, class_name = path.partition(":")
    try:
        component = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:
        raise ConfigError(f"use = {path!r} cannot be imported: {error}") from error
    if problem := _problem_of(component, kind):
        raise ConfigError(f"use = {path!r} cannot be used as a {kind}: {problem}.")
    return cast("type[Component]", component)

"""From a document (what TOML has become) to pipelines, collecting everything that is wrong with it on the way.

The environment alone is turned into such a document too, so there is one way in, with one set of rules and messages.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from pgsnap.components.contracts import Component, ComponentKind, Store
from pgsnap.components.redact import Redactor, secrets_in
from pgsnap.components.registry import Registry
from pgsnap.components.values import Finding, Secret, check_name, without_userinfo
from pgsnap.config.messages import Problem, ReferenceText, Unresolved, ValidationError, suggest
from pgsnap.config.options import Option, holds_secret, options_of
from pgsnap.config.references import References, is_reference
from pgsnap.config.values import construct, make_converter, structure_options
from pgsnap.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from pgsnap.pipeline import Pipeline

__all__ = ["Builder"]

Document: TypeAlias = Mapping[str, Any]

LISTS: tuple[ComponentKind, ...] = ("transform", "store", "notify")
NOT_SETTINGS = {"name", "dump", "transforms", "stores", "notifiers"}
"""The fields of a Pipeline that are not set by a key of the same name."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "sftp": "sftp", "ssh": "sftp"}
"""Schemes that an extra of pgsnap serves, in a version that has it."""


class Builder:
    """Builds the pipelines of one document.

    Args:
        label: What messages call the document: a file's name.
        prefix: Where in the file it stands, such as ``tool.pgsnap.``.
        roles: The kinds of component that the command needs. References of others are left out; notifiers are not even built.
        because: For a component's path, the variable it was made from, where a document stands for the environment.
    """

    def __init__(
        self,
        label: str,
        registry: Registry,
        references: References,
        roles: Collection[ComponentKind],
        *,
        prefix: str = "",
        because: Mapping[str, str] | None = None,
    ) -> None:
        self._label = label
        self._prefix = prefix
        self._registry = registry
        self._references = references
        self._roles = frozenset(roles)
        self._because = because or {}
        self._converter = make_converter()
        self.problems: list[str] = []
        self.notes: list[Finding] = []
        self.open_secrets = False
        """Whether a secret stands in the document itself."""

    def _problem(self, path: str, text: str, name: str = "") -> None:
        where = f"{self._prefix}{path}" + (f" ({name})" if name else "")
        line = f"{self._label}: {where}: {text}" if where else f"{self._label}: {text}"
        if line not in self.problems:  # what stands in [defaults] is met once for each pipeline
            self.problems.append(line)

    def build(self, document: Document) -> dict[str, Pipeline]:
        """Return the pipelines, in the document's order.

        Raises:
            ConfigError: with everything that is wrong.
        """
        pipelines = self._build(document)
        if self.problems:
            raise ConfigError(problems=self.problems)
        return pipelines

    def _build(self, document: Document) -> dict[str, Pipeline]:
        for key in document:
            if key not in ("defaults", "pipeline"):
                self._problem("", f"unknown key {self._prefix + key!r}.{suggest(key, ('defaults', 'pipeline'))}")
        settings = self._settings()
        defaults = self._table(document, "defaults", "")
        self._check_keys(defaults, "defaults", settings)
        tables = self._table(document, "pipeline", "")
        if not tables and not self.problems:
            self._problem("", f"it defines no pipeline; add [{self._prefix}pipeline.NAME], or let 'pgsnap init' write one.")
        pipelines = {}
        for name, table in tables.items():
            path = f"pipeline.{name}"
            if not isinstance(table, dict):
                self._problem(path, f"must be a table: [{self._prefix}{path}].")
                continue
            self._check_keys(table, path, settings)
            places = {key: f"{path if key in table else 'defaults'}" for key in {**defaults, **table}}
            pipeline = self._pipeline(name, path, {**defaults, **table}, places, settings)
            if pipeline is not None:
                pipelines[name] = pipeline
        return pipelines

    def _settings(self) -> dict[str, Option]:
        from pgsnap.pipeline import Pipeline

        return {name: option for name, option in options_of(Pipeline).items() if name not in NOT_SETTINGS}

    def _table(self, document: Document, key: str, path: str) -> dict[str, Any]:
        value = document.get(key, {})
        if isinstance(value, dict):
            return value
        self._problem(path, f"{key!r} must be a table.")
        return {}

    def _check_keys(self, table: Mapping[str, Any], path: str, settings: Mapping[str, Option]) -> None:
        known = ["dump", *LISTS, *settings]
        for key in table:
            if key not in known:
                self._problem(path, f"unknown option {key!r}.{suggest(key, known)}")

    # --- one pipeline ------------------------------------------------------------------------------------------------

    def _pipeline(
        self, name: str, path: str, table: dict[str, Any], places: Mapping[str, str], settings: Mapping[str, Option]
    ) -> Pipeline | None:
        from pgsnap.pipeline import Pipeline

        before = len(self.problems)
        try:
            check_name(name, "the pipeline's name")
        except ConfigError as error:
            self._problem(path, str(error))
        values: dict[str, Any] = {}
        for key, option in settings.items():
            if key in table:
                values |= self._options({key: table[key]}, {key: option}, places[key], "", wanted=True)[0]
        values["name"] = name
        if "dump" not in table:
            self._problem(path, f"it has no dump; add [{self._prefix}{path}.dump].")
        elif isinstance(table["dump"], dict):
            values["dump"] = self._component("dump", table["dump"], f"{places['dump']}.dump")
        else:
            self._problem(places["dump"], f"'dump' must be a table: [{self._prefix}{places['dump']}.dump].")
        for kind, field in zip(LISTS, ("transforms", "stores", "notifiers"), strict=True):
            if kind in table and (kind != "notify" or "notify" in self._roles):
                values[field] = self._list(kind, table[kind], places[kind])
        if not table.get("store"):
            self._problem(path, f"it has no store; add [[{self._prefix}{path}.store]].")
        if len(self.problems) > before:
            return None
        keep = values.get("keep")
        values["stores"] = tuple(attrs.evolve(s, keep=keep) if s.keep is None else s for s in values.get("stores", ()))
        try:
            return construct(Pipeline, values, settings)
        except ValidationError as error:
            clean = Redactor.from_components(values.values())
            for problem in error.problems:
                self._problem(path, clean(str(problem)))
        return None

    def _list(self, kind: ComponentKind, tables: object, path: str) -> tuple[Component, ...]:
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._problem(path, f"{kind!r} must be an array of tables: write [[{self._prefix}{path}.{kind}]].")
            return ()
        found = [self._component(kind, table, f"{path}.{kind}[{number}]") for number, table in enumerate(tables)]
        return tuple(component for component in found if component is not None)

    # --- one component -----------------------------------------------------------------------------------------------

    def _component(self, kind: ComponentKind, table: dict[str, Any], path: str) -> Component | None:
        given = {key: value for key, value in table.items() if key != "use"}
        try:
            class_ = self._class(kind, table, path)
        except (ConfigError, PluginError) as error:
            variable = self._because.get(path)
            why = f"{variable} is set, but {error}" if variable else str(error)
            self._problem(path, why, str(table.get("use", "")))
            return None
        if class_ is None:
            return None
        name = class_.name
        try:
            options = options_of(class_)
        except ConfigError as error:
            self._problem(path, str(error), name)
            return None
        values, resolved = self._options(given, options, path, name, wanted=kind in self._roles)
        self._note_secrets(given, options, path, name)
        if any(option.required and option.name not in values for option in options.values()):
            return None
        try:
            component = construct(class_, values, options)
        except ValidationError as error:
            clean = Redactor({*_texts(resolved), *(s for value in values.values() for s in secrets_in(value))})
            missing = [value.source for value in resolved.values() if isinstance(value, Unresolved) and not value.failed]
            note = f" (It was built without {' and '.join(missing)}.)" if missing else ""
            for problem in error.problems:
                self._problem(path, clean(str(problem)) + note, name)
            return None
        if isinstance(component, Store):
            self._check_store(component, path)
        return component

    def _options(
        self, given: Mapping[str, Any], options: Mapping[str, Option], path: str, name: str, *, wanted: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Resolve and structure; return the values for the class, and as they were before they were structured."""

        def unresolved(place: str, text: str) -> None:
            self._problem(path, str(Problem(text, place)), name)

        resolved = {key: self._references.resolve(value, wanted, unresolved, key) for key, value in given.items()}
        values, problems = structure_options(self._converter, resolved, options)
        clean = Redactor(secrets_in(dict(given)))  # a URL with a password, in an option that is no Secret
        for problem in problems:
            self._problem(path, clean(str(problem)), name)
        return values, resolved

    def _class(self, kind: ComponentKind, table: dict[str, Any], path: str) -> type[Component] | None:
        use = table.get("use")
        if isinstance(use, str) and use:
            return self._registry.get(kind, use)
        if use is not None:
            self._problem(path, "option 'use' wants the name of a component, as text.")
            return None
        if kind != "store":
            known = self._registry.names(kind)
            raise ConfigError(f"option 'use' is missing; it names the component{': ' + ', '.join(known) if known else ''}.")
        if "url" not in table:
            raise ConfigError("option 'url' is missing; it wants text, such as \"/var/backups/pgsnap\".")

        def unresolved(_: str, text: str) -> None:
            self._problem(path, f"option 'url' {text}")

        url = self._references.resolve(table["url"], "store" in self._roles, unresolved, "url")
        if isinstance(url, Unresolved):
            return None
        url = url.value if isinstance(url, ReferenceText) else url
        if not isinstance(url, str):
            raise ConfigError("option 'url' wants text, such as \"/var/backups/pgsnap\".")
        class_ = self._registry.store_for(url)
        if class_.name == "fsspec":
            check_scheme(url)
        return class_

    def _check_store(self, store: Store, path: str) -> None:
        if store.name == "file" and "://" not in store.url and not store.url.startswith(("/", "~")):
            self.notes.append(
                Finding(
                    "warning",
                    f"{self._prefix}{path}",
                    f"{store.label!r} is relative: where the backups are depends on the directory that pgsnap is started in.",
                    "Give an absolute path.",
                )
            )

    def _note_secrets(self, given: Mapping[str, Any], options: Mapping[str, Option], path: str, name: str) -> None:
        for key, value in given.items():
            in_url = isinstance(value, str) and "@" in value and value != without_userinfo(value) and any(secrets_in(value))
            if key in options and ((holds_secret(options[key].type) and _literal(value)) or in_url):
                self.open_secrets = True
                self.notes.append(
                    Finding(
                        "warning",
                        f"{self._prefix}{path} ({name})",
                        f"option {key!r} is a secret that stands in the file.",
                        f'Write {key} = {{ env = "NAME" }} or {{ file = "PATH" }} instead.',
                    )
                )


def _literal(value: object) -> bool:
    """Return whether some text in a value does not come from a reference."""
    if is_reference(value):
        return False
    if isinstance(value, (list, dict)):
        return any(map(_literal, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str)


def _texts(value: object) -> list[str]:
    """Return what references gave, anywhere in a value."""
    if isinstance(value, ReferenceText):
        return [value.value, *secrets_in(Secret(value.value))]
    if isinstance(value, (list, dict)):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in _texts(item)]
    return []


def check_scheme(url: str) -> None:
    """Raise ConfigError if fsspec cannot open URLs of this scheme here, with what to install."""
    import fsspec

    scheme, label = url.partition("://")[0], without_userinfo(url)
    try:
        fsspec.get_filesystem_class(scheme)
        return
    except ImportError as error:
        text = f"{label} needs a package that is not installed (fsspec says: {error}); {_install(scheme)}"
    except ValueError:
        known = [str(name) for name in fsspec.available_protocols()]
        hint = suggest(scheme, known) or " Correct it, or install the plugin that serves it."
        text = f"{label}: neither a plugin nor fsspec knows the scheme {scheme!r}.{hint}"
    raise ConfigError(text)


def _install(scheme: str) -> str:
    from fsspec.registry import known_implementations

    extra, offered = EXTRAS.get(scheme), ()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        offered = tuple(importlib.metadata.metadata("pgsnap").get_all("Provides-Extra") or ())
    if extra in offered:
        return f"run: pip install 'pgsnap[{extra}]'"
    package = str(known_implementations[scheme]["class"]).partition(".")[0]
    return f"run: pip install {package}" if package != "fsspec" else "install what it names with pip."

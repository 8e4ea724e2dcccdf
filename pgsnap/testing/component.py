"""What holds for components of all kinds. The classes for each kind inherit it; it is not meant for direct use."""

from __future__ import annotations

import inspect
import pickle
from abc import ABC, abstractmethod

import attrs
import pytest

from pgsnap.components.contracts import Component
from pgsnap.components.run import Run
from pgsnap.components.values import NAME, Finding, Secret

__all__ = ["ComponentConformance"]


class ComponentConformance(ABC):
    """Options, names, secrets and pickling."""

    @pytest.fixture
    @abstractmethod
    def component(self) -> Component:
        """The component to test; each kind's class gives it from its own fixture."""

    def test_is_a_frozen_attrs_class_with_a_name(self, component: Component) -> None:
        """A component is frozen, its options are keyword arguments, and its name can stand in a file."""
        assert attrs.has(type(component))
        assert NAME.fullmatch(component.name)
        assert isinstance(component.version, str)
        assert component.version
        for field in attrs.fields(type(component)):
            assert field.kw_only, f"the option {field.name} is positional; use @attrs.frozen(kw_only=True)"
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                setattr(component, field.name, None)

    def test_pickles(self, component: Component) -> None:
        """A pipeline may run in another process: a component pickles, and equals its copy."""
        assert component == pickle.loads(pickle.dumps(component))

    def test_shows_no_secret(self, component: Component) -> None:
        """The value of a Secret is in neither ``repr`` nor ``str``."""
        for field in attrs.fields(type(component)):
            value = getattr(component, field.name)
            if isinstance(value, Secret) and value:
                assert value.reveal() not in repr(component)
                assert value.reveal() not in str(component)

    def test_is_documented(self, component: Component) -> None:
        """The class has a docstring of its own, in which people read what it is for."""
        assert inspect.cleandoc(vars(type(component)).get("__doc__") or "")

    def test_preflight_finds_no_error(self, component: Component) -> None:
        """The preflight of a component that works returns findings, none of them an error."""
        findings = component.preflight(Run("conformance"))
        assert all(isinstance(finding, Finding) for finding in findings)
        assert [] == [finding for finding in findings if finding.level == "error"]

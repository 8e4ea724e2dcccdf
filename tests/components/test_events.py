"""Events: each kind has a class, a level and words; long texts are cut with a mark."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgsnap.components.contracts import Notifier
from pgsnap.components.events import (
    EVENTS,
    KINDS,
    Event,
    Failed,
    Kind,
    Partial,
    Pruned,
    StoreOutcome,
    StoreSummary,
    Succeeded,
    Summary,
    TestMessage,
    Verified,
    clip,
    one_line,
)
from pgsnap.errors import ConfigError
from pgsnap.testing.notifiers import event

WHEN = datetime(2026, 11, 22, 8, tzinfo=UTC)
GOOD, BAD = StoreOutcome(label="a"), StoreOutcome(label="b", error="b: it is offline.")


class Bell(Notifier):
    """Rings."""

    name = "bell"

    def notify(self, event: Event, *, timeout: float) -> None:
        raise NotImplementedError


def ended(kind: type[Succeeded] | type[Partial] | type[Failed], **more: object) -> Event:
    return kind(pipeline="shop", started=WHEN, ended=WHEN + timedelta(seconds=10), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_class_and_words(kind: Kind) -> None:
    """Frozen, picklable, and with a headline that is one line."""
    one = event(kind)
    assert type(one) is EVENTS[kind]
    assert kind == one.kind
    assert one == pickle.loads(pickle.dumps(one))
    assert one.title == one_line(one.title)
    assert one.title.startswith("shop: ")
    assert all(label and value for label, value in one.facts)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.pipeline = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("one", "level"),
    [
        (ended(Succeeded, stores=(GOOD,)), "ok"),
        (ended(Partial, stores=(GOOD, BAD)), "warning"),
        (ended(Partial, stores=(GOOD, BAD), quorum=2), "error"),
        (ended(Failed, stores=(BAD,)), "error"),
        (Verified(pipeline="shop", stores=(GOOD,)), "ok"),
        (Verified(pipeline="shop", stores=(GOOD, BAD)), "error"),
        (Pruned(pipeline="shop", store="a", deleted=("x",)), "info"),
        (Pruned(pipeline="shop", store="a", refused=("x is locked.",)), "warning"),
        (Summary(pipeline="shop", count=7, stores=(StoreSummary(label="a"),)), "ok"),
        (Summary(pipeline="shop", count=0), "warning"),
        (Summary(pipeline="shop", count=7, stores=(StoreSummary(label="a", error="offline."),)), "warning"),
        (TestMessage(pipeline="shop"), "info"),
    ],
)
def test_levels(one: Event, level: str) -> None:
    """How bad it is follows from what happened."""
    assert level == one.level


def test_facts_compare_with_last_time() -> None:
    """Size, change, duration, throughput and stores, in words."""
    one = ended(Partial, id="x", size=4_200_000_000, stored_size=900_000_000, last_size=4_000_000_000,
                last_stored_size=900_000_000, stores=(GOOD, BAD), quorum=2)  # fmt: skip
    assert (
        ("backup", "x"),
        ("size", "4.2 GB (+5.0%, last 4.0 GB)"),
        ("stored", "900 MB (as last time)"),
        ("took", "10.0 s, 420 MB/s"),
        ("stores", "1 of 2, 2 wanted"),
    ) == one.facts


def test_a_database_that_was_empty_last_time() -> None:
    """No division by nothing."""
    facts = dict(ended(Succeeded, id="x", size=5000, stored_size=10, last_size=0, last_stored_size=0).facts)
    assert "5.0 kB (+5.0 kB, last 0 B)" == facts["size"]


@pytest.mark.parametrize(
    ("on", "one", "wanted"),
    [
        (("succeeded",), ended(Succeeded), True),
        (("failed",), ended(Succeeded), False),
        (("failed",), ended(Partial, stores=(GOOD, BAD)), False),
        (("failed",), ended(Partial, stores=(GOOD, BAD), quorum=2), True),
        (("failed",), Verified(pipeline="shop", stores=(BAD,)), True),
        (("failed",), Verified(pipeline="shop", stores=(GOOD,)), False),
        (("failed",), event("suspect"), True),
        ((), ended(Failed), False),
        ((), TestMessage(pipeline="shop"), True),
    ],
)
def test_who_wants_what(on: tuple[Kind, ...], one: Event, wanted: bool) -> None:
    """What is in ``on``; what went badly reaches who asked for failures; a test reaches everyone."""
    assert wanted == Bell(on=on).wants(one)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("failure", "on = 'failure' is no event; did you mean 'failed'?"),
        ("success", "on = 'success' is no event; did you mean 'succeeded'?"),
        ("xyz", f"on = 'xyz' is no event; choose from {', '.join(KINDS)}."),
    ],
)
def test_an_unknown_kind_is_named(kind: str, message: str) -> None:
    """With what was meant, where that can be guessed."""
    with pytest.raises(ConfigError) as caught:
        Bell(on=(kind,))  # type: ignore[arg-type]
    assert message == str(caught.value)


@given(st.text(max_size=300), st.integers(40, 200))
def test_clip_keeps_all_or_says_how_much_is_missing(text: str, limit: int) -> None:
    """Never longer than the limit; the mark counts what was left out."""
    short = clip(text, limit)
    assert len(short) <= limit
    if len(text) <= limit:
        assert text == short
    else:
        kept, _, rest = short.rpartition(" … (")
        assert text.startswith(kept)
        assert len(text) - len(kept) == int(rest.removesuffix(" more characters)").replace(",", ""))


def test_one_line_takes_what_could_begin_a_header() -> None:
    """Line breaks of every kind, control characters."""
    assert "a Bcc: x b c d" == one_line("a\r\nBcc: x\x00b\u2028c\x85d\n")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_in_the_reference(kind: Kind) -> None:
    """Each kind, and each field of its class, stands in the page."""
    page = Path(__file__).parent.parent.parent / "docs" / "reference" / "events.md"
    if not page.exists():
        pytest.skip("the tests run without the documentation")
    text = page.read_text()
    assert f"| `{kind}` |" in text
    assert set() == {field.name for field in attrs.fields(EVENTS[kind]) if f"`{field.name}`" not in text}

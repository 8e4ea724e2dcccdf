"""The small values: secrets stay hidden, names stay distinct, and what people write is read exactly or refused."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgsnap.components.values import (
    NAME,
    RetentionPolicy,
    Secret,
    backup_time,
    check_name,
    escape_name,
    format_duration,
    format_size,
    new_backup_id,
    parse_duration,
    parse_size,
    plain_mapping,
    without_userinfo,
)
from pgsnap.errors import ConfigError

CANARY = "S3cr3t-Canary"


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_a_secret_is_not_seen(caplog: pytest.LogCaptureFixture) -> None:
    """No way of making text of it shows it."""
    secret = Secret(CANARY)
    texts = [str(secret), repr(secret), f"{secret}", f"{secret!r}", "{} {!r}".format(*[secret] * 2), f"{[secret]}"]
    with caplog.at_level(logging.INFO):
        logging.getLogger("x").info("it is %s", secret)
    try:
        raise ValueError(secret)
    except ValueError:
        texts.append(traceback.format_exc())
    makers: list[Callable[[], str]] = [lambda: f"{secret:>10}", lambda: json.dumps(secret)]
    for make in makers:
        try:
            texts.append(make())
        except TypeError as error:
            texts.append(str(error))
    assert CANARY not in "".join([*texts, caplog.text])
    assert CANARY == secret.reveal()
    with pytest.raises(TypeError):
        vars(secret)


@given(st.text(), st.text())
@example("\udcff", "\udcff")
def test_secrets_compare_by_value(one: str, other: str) -> None:
    """Equal values are equal and hash alike, whatever bytes an environment variable held; a str is not a Secret."""
    assert (one == other) == (Secret(one) == Secret(other))
    assert hash(Secret(one)) == hash(Secret(Secret(one)))
    assert Secret(one) != one
    assert bool(one) == bool(Secret(one))


def test_a_secret_travels_with_its_value() -> None:
    """Another process must be able to use it."""
    for same in (pickle.loads(pickle.dumps(Secret(CANARY))), copy.deepcopy(Secret(CANARY))):
        assert CANARY == same.reveal()


def test_a_secret_holds_text() -> None:
    """None, as a variable that is not set gives, is refused when it is made, not when it is needed."""
    with pytest.raises(TypeError, match="Secret holds text, not NoneType"):
        Secret(None)  # type: ignore[arg-type]


# --- URLs without secrets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@db.example:5432/shop?sslmode=require", "postgresql://db.example:5432/shop"),
        ("postgresql:///shop_copy", "postgresql:///shop_copy"),
        ("postgresql:///shop?password=p", "postgresql:///shop"),
        ("postgresql://u:p@[::1]:5432/shop", "postgresql://[::1]:5432/shop"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("s3://AKIA:key@bucket/a@b", "s3://***"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("https://token@host/x#y", "https://host/x"),
        ("file:///var/backups/a:b@c", "file:///var/backups/a:b@c"),
        ("memory://", "memory://"),
        ("/var/backups/pgsnap", "/var/backups/pgsnap"),
        ("./back ups/ü", "./back ups/ü"),
        ("simplecache::s3://AKIA:key@bucket/x", "simplecache::s3://bucket/x"),
        ("zip://a.zip::ftp://u:p@host/", "zip://a.zip::ftp://host/"),
    ],
)
def test_without_userinfo(url: str, shown: str) -> None:
    """User, password, query and fragment go, the rest stays as it was."""
    assert shown == without_userinfo(url)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{CANARY}@h/db",
        f"postgresql://u:{CANARY}/x@h/db",
        f"postgresql://u:x/{CANARY}@h/db",
        f"postgresql://u:x?{CANARY}@h/db",
        f"postgresql://u:x#{CANARY}@h/db",
        f"postgresql://u:x@{CANARY}@h/db",
        f"postgresql://u:x@y/{CANARY}@h/db",
        f"postgresql://{CANARY}@h/db",
        f"postgresql://u:{CANARY}@[bad/db",
        f"postgresql+asyncpg://u:{CANARY}@h/db",
        f" postgresql://u:{CANARY}@h/db",
        f"postgresql://h/db?password={CANARY}",
        f"simplecache::s3://AKIA:{CANARY}@bucket/x",
        f"zip://a::ftp://u:{CANARY}@host/",
        f"host=h user=u password={CANARY}",
        f"host=h user=u PASSWORD = '{CANARY}'",
        f"u:{CANARY}@host:path",
        f"//u:{CANARY}@host/path",
    ],
)
def test_without_userinfo_shows_no_secret(url: str) -> None:
    """However wrongly a URL is written, its password is not shown."""
    assert CANARY not in without_userinfo(url)


@given(
    st.sampled_from(["postgresql", "s3", "sftp", "https", "abc+d"]),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12),
)
def test_no_password_of_any_characters_is_shown(scheme: str, left: str, right: str) -> None:
    """A password with any unescaped characters around the canary, before a host: never seen."""
    assert CANARY not in without_userinfo(f"{scheme}://user:{left}{CANARY}{right}@host/db")


# --- names and ids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shop", "a", "0", "A.b_c-9", "x" * 100])
def test_good_names(name: str) -> None:
    """A name that can be a part of a key is given back."""
    assert name == check_name(name)


@pytest.mark.parametrize("name", ["", ".x", "-x", "_x", "..", "a/b", "a b", "a\n", "ü", "x" * 101, "a*", "a\0", "٣"])
def test_bad_names(name: str) -> None:
    """What could leave its folder, hide, expand or be an option is refused with what is allowed."""
    with pytest.raises(ConfigError, match=r"the artifact's name .* cannot be used: begin with"):
        check_name(name, "the artifact's name")


@pytest.mark.parametrize("name", ["postgresql://u:hunter22-canary@h/x", "PASSWORD=hunter22-canary", "u:hunter22-canary"])
def test_a_name_that_may_be_a_url_is_not_shown(name: str) -> None:
    """Somebody pasted it into the wrong variable."""
    with pytest.raises(ConfigError, match="the pipeline's name cannot be used: begin with") as caught:
        check_name(name, "the pipeline's name")
    assert "canary" not in str(caught.value)


@given(st.text())
@example("a\ud800")
def test_escaped_names_are_names(text: str) -> None:
    """Any text becomes a name, always the same one."""
    assert NAME.fullmatch(escape_name(text))
    assert escape_name(text) == escape_name(text)


@given(st.text(max_size=8), st.text(max_size=8))
@example("a*", "a_")
@example("app", "App")
@example("é", "e")
@example("x" * 120, "x" * 121)
def test_escaped_names_stay_distinct(one: str, other: str) -> None:
    """Two databases never share a folder."""
    assert (one == other) == (escape_name(one) == escape_name(other))


def test_a_name_that_looks_escaped_is_escaped() -> None:
    """A database that is named like the escaped name of another does not meet it."""
    assert escape_name("a*") != escape_name(escape_name("a*"))
    assert "shop" == escape_name("shop")


@given(st.datetimes(datetime(1000, 1, 1), datetime(9998, 1, 1)), st.integers(-14, 14))
def test_ids_hold_their_time(moment: datetime, hours: int) -> None:
    """An id begins with its time in UTC, to the second, whatever zone it was given in."""
    moment = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
    made = new_backup_id(moment)
    assert re.fullmatch(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{4}", made)
    assert moment.astimezone(UTC).replace(microsecond=0) == backup_time(made)


@pytest.mark.parametrize(
    "text",
    ["", "latest", "20261122T080000Z", "20261322T080000Z-4f3a", "20261122T080000Z-4F3A", "20261122T080000Z-4f3a\n",
     "٢٠٢٦1122T080000Z-4f3a", "../20261122T080000Z-4f3a"],
)  # fmt: skip
def test_what_is_no_id(text: str) -> None:
    """Anything else is refused, a date that does not exist too."""
    with pytest.raises(ConfigError, match="is not a backup id"):
        backup_time(text)


# --- sizes, durations, policies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1048576", 1 << 20), ("64 MiB", 64 << 20), ("5GB", 5 * 10**9), ("1.5 kB", 1500), (" 2 TiB ", 2 << 40),
     ("9007199254740993", 9007199254740993), ("0.1 TiB", (1 << 40) // 10), ("10 B", 10)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    """Sizes are exact, also beyond what a float can tell apart."""
    assert size == parse_size(text)


@pytest.mark.parametrize("text", ["", "x", "-1", "1e3", "64 M", "1 2", "MiB", "٣", "1.", "inf", "nan", "1 MiB 2"])
def test_what_is_no_size(text: str) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(ConfigError, match="is not a size; write it like 64MiB"):
        parse_size(text)


@given(st.integers(0, 10**30))
def test_any_whole_number_is_a_size(size: int) -> None:
    """However large."""
    assert size == parse_size(str(size))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45", 45.0), ("90s", 90.0), ("2h", 7200.0), ("1h30m", 5400.0), ("1h 30m", 5400.0), ("250 ms", 0.25),
     ("1.5d", 129600.0), (" 7 d ", 604800.0), ("0", 0.0)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    """Units add up."""
    assert seconds == parse_duration(text)


@pytest.mark.parametrize("text", ["", "x", "-1s", "1 2", "1 2 h", "2H", "1w", "h", "1h30", "٣s", "inf", "1e3"])
def test_what_is_no_duration(text: str) -> None:
    """Anything else is refused with an example; two numbers are not run together."""
    with pytest.raises(ConfigError, match="is not a duration; write it like 90s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1234, "1.2 kB"), (99_960, "100 kB"), (999_960, "1.0 MB"),
     (1_200_000_000, "1.2 GB"), (5 * 10**15, "5000.0 TB")],
)  # fmt: skip
def test_sizes_as_people_read_them(size: float, text: str) -> None:
    """Three digits, and the next unit where rounding would give a thousand."""
    assert text == format_size(size)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (0.44, "0.4 s"), (59.94, "59.9 s"), (59.96, "1 m 0 s"), (192, "3 m 12 s"), (3599.6, "1 h 0 m"),
     (7500, "2 h 5 m")],
)  # fmt: skip
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    """No 60 seconds and no 60 minutes."""
    assert text == format_duration(seconds)


@pytest.mark.parametrize("field", ["last", "hourly", "daily", "weekly", "monthly", "yearly"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_policy_that_keeps_nothing_is_refused(field: str, value: int) -> None:
    """0 could be read as "none" or as "all": the message says what to write."""
    with pytest.raises(ConfigError, match=f"keep.{field} is {value}; give a number of backups of 1 or more"):
        RetentionPolicy(**{field: value})
    assert 1 == getattr(RetentionPolicy(**{field: 1}), field)


def test_plain_mapping_is_a_copy() -> None:
    """Only dicts and lists remain, and nothing is shared."""
    inner: dict[Any, Any] = {"a": [1, (2, 3)], 4: {"b": None}}
    plain = plain_mapping(inner)
    assert {"a": [1, [2, 3]], "4": {"b": None}} == plain
    plain["a"].append(9)
    assert [1, (2, 3)] == inner["a"]

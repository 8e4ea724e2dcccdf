"""Secrets are found by type and by place, in every form they come by, and taken out of text and log records."""

from __future__ import annotations

import io
import json
import logging
import pickle
import threading
import time
from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import quote, quote_plus

import attrs
import pytest

from idle import IdleNotifier
from pgsnap import FsspecStore, LocalStore, Secret
from pgsnap.components.redact import Redactor, secrets_in

PASSWORD = "pä$$ w/or:d@42%"


@attrs.frozen
class Mail:
    password: Secret


@attrs.frozen(kw_only=True)
class ToyNotifier(IdleNotifier):
    name: ClassVar[str] = "toy"
    webhook: Secret | None = None
    tokens: tuple[Secret, ...] = ()
    headers: Mapping[str, Secret] = attrs.field(factory=dict)
    mail: Mail | None = None
    channel: str = "#backups"


@pytest.mark.parametrize(
    "form",
    [
        PASSWORD,
        quote(PASSWORD),
        quote(PASSWORD, safe=""),
        quote_plus(PASSWORD),
        quote(PASSWORD, safe="").lower(),
        json.dumps(PASSWORD)[1:-1],
        repr(PASSWORD)[1:-1],
    ],
)
def test_finds_a_value_in_every_encoding(form: str) -> None:
    """A library shows a password in the encoding it works with, not in ours."""
    assert "before *** after" == Redactor([PASSWORD])(f"before {form} after")


def test_finds_the_plain_form_of_an_encoded_value() -> None:
    """A URL holds the password percent-encoded; the server's message has it plain."""
    redactor = Redactor.from_components([LocalStore(url=f"file://user:{quote(PASSWORD, safe='')}@host/x")])
    assert "no *** here" == redactor(f"no {PASSWORD} here")


def test_finds_secrets_by_type_in_tuples_tables_and_nested_classes() -> None:
    """Wherever a field holds a Secret, however deep, it is known."""
    toy = ToyNotifier(
        webhook=Secret("hook-secret"),
        tokens=(Secret("first-token"), Secret("second-token")),
        headers={"X-Key": Secret("header-secret")},
        mail=Mail(Secret("mail-secret")),
    )
    text = "hook-secret first-token second-token header-secret mail-secret #backups"
    assert "*** *** *** *** *** #backups" == Redactor.from_components([toy])(text)


def test_finds_what_the_options_of_the_general_store_hide() -> None:
    """fsspec's options are no Secrets, but those that are called so are known: whole, and an account's key by itself."""
    options = {
        "connection_string": "AccountName=shop;AccountKey=a2V5LWluLWl0;BlobEndpoint=http://host/shop",
        "account_key": "a2V5LWFsb25l",
        "sas_token": "sv=1&sig=shared-signature",
        "auth": ("person", "webdav-password"),
        "account_name": "shop",
    }
    store = FsspecStore(url="az://container/x", options=options)
    redactor = Redactor.from_components([store])
    text = "shop a2V5LWluLWl0 a2V5LWFsb25l sv=1&sig=shared-signature webdav-password"
    assert "shop *** *** *** ***" == redactor(text)
    assert "***" == redactor(options["connection_string"])
    assert not any(secret in repr(store) for secret in ("a2V5", "shared", "webdav-password"))


def test_leaves_user_host_and_ordinary_fields_alone() -> None:
    """Only the password of a URL is secret: a message without host and user is of no use."""
    redactor = Redactor.from_components([LocalStore(url="sftp://backup:hunter22@host/backup")])
    assert "sftp://backup:***@host/backup" == redactor("sftp://backup:hunter22@host/backup")
    assert "backup of backup" == redactor("backup of backup")


@pytest.mark.parametrize(
    ("url", "text", "clean"),
    [
        ("postgresql://u:hunter22@h/db", "auth failed: hunter22", "auth failed: ***"),
        ("postgresql://u:a/b#c@h/db", "password 'a/b#c'", "password '***'"),
        ("postgresql://h/db?user=u&password=hunter22", "said hunter22", "said ***"),
        ("host=h password=hunter22 dbname=d", "said hunter22", "said ***"),
        ("host=h password='hun ter\\'22' dbname=d", "said hun ter'22", "said ***"),
        ("https://hooks.example/services/T00/B00/XXXX", "no route: /services/T00/B00/XXXX", "no route: ***"),
        ("-----BEGIN KEY-----\nbm90IGEga2V5\n-----END KEY-----", "line 2: bm90IGEga2V5", "line 2: ***"),
        ('{"type": "service", "private_key": "kkkkkkkk"}', "key kkkkkkkk of service", "key *** of service"),
    ],
)
def test_finds_the_secret_parts_of_a_secret(url: str, text: str, clean: str) -> None:
    """Of a secret URL, connection string, key file or JSON document the part that matters may come by alone."""
    assert clean == Redactor.from_components([ToyNotifier(webhook=Secret(url))])(text)


def test_finds_what_a_hidden_table_calls_a_secret() -> None:
    """The options of the fsspec store have no types; what is named like a secret is one, what is not stays readable."""
    options = {"key": "AKIAEXAMPLE", "secret": "abcd/efgh", "client_kwargs": {"session_token": "tttttt", "region": "eu-west-1"}}
    redactor = Redactor.from_components([FsspecStore(url="memory://x", options=options)])
    assert "*** *** *** eu-west-1" == redactor("AKIAEXAMPLE abcd/efgh tttttt eu-west-1")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a banana at password=a", "a banana at password=***"),
        ("postgres://u:a@h/a", "postgres://u:***@h/a"),
        ("{'token': 'a', 'at': 'a'}", "{'token': '***', 'at': 'a'}"),
        ("password=abc", "password=abc"),
    ],
)
def test_masks_a_short_value_only_where_a_password_stands(text: str, clean: str) -> None:
    """A password of one letter must not turn every message into stars."""
    assert clean == Redactor(["a", ""])(text)


def test_masks_the_longest_value_first() -> None:
    """A secret that begins with another one must not leave its end behind."""
    assert "x *** y" == Redactor(["secret", "secret-and-more"])("x secret-and-more y")


def test_without_secrets_returns_the_text_itself() -> None:
    text = "nothing to hide"
    assert text is Redactor()(text)


def test_shows_no_value_in_its_repr_and_pickles() -> None:
    redactor = Redactor(["hunter22"])
    assert "<Redactor of 1 values>" == repr(redactor)
    assert "***" == pickle.loads(pickle.dumps(redactor))("hunter22")


def test_walks_pipelines(make: object) -> None:
    """A pipeline's parts are found through its own fields."""
    pipeline = make(notifiers=[ToyNotifier(webhook=Secret("hook-secret"))])  # type: ignore[operator]
    assert "***" == Redactor.from_components([pipeline])("hook-secret")
    assert ["hook-secret"] == [value for value in secrets_in(pipeline) if "hook" in value]
    assert "*** ***" == Redactor.from_components([pipeline], extra=["argument"])("argument hook-secret")


@pytest.fixture
def logged() -> tuple[logging.Logger, io.StringIO]:
    """A logger that is redacted, and what it has written."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.addFilter(Redactor(["hunter22"]).filter())
    handler.setFormatter(logging.Formatter("%(message)s %(extra)s", defaults={"extra": ""}))
    logger = logging.Logger("redacted")
    logger.addHandler(handler)
    return logger, written


def test_filter_redacts_message_and_arguments(logged: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = logged
    logger.warning("%s and hunter22", Secret("x").reveal() + "hunter22")
    assert "x*** and *** \n" == written.getvalue()


def test_filter_redacts_the_whole_chain_of_exceptions(logged: tuple[logging.Logger, io.StringIO]) -> None:
    """Causes are printed too, and a cause is where a library puts its URL."""
    logger, written = logged
    try:
        try:
            raise ValueError("bad url u:hunter22@h")
        except ValueError as error:
            raise RuntimeError("cannot connect") from error
    except RuntimeError:
        logger.exception("failed", stack_info=True)
    assert "hunter22" not in written.getvalue()
    assert "ValueError: bad url u:***@h" in written.getvalue()
    assert "RuntimeError: cannot connect" in written.getvalue()


def test_filter_redacts_extra_attributes_and_objects(logged: tuple[logging.Logger, io.StringIO]) -> None:
    """A formatter for JSON takes them from the record."""
    logger, written = logged
    logger.warning("m", extra={"extra": {"url": ["hunter22", 3, ValueError("hunter22")]}})
    assert "m {'url': ['***', 3, '***']}\n" == written.getvalue()


def test_filter_survives_arguments_that_do_not_fit(logged: tuple[logging.Logger, io.StringIO]) -> None:
    """logging would print the arguments of a bad call to stderr, unredacted."""
    logger, written = logged
    logger.warning("%d rows", "hunter22")
    assert "%d rows ('***',) \n" == written.getvalue()


def test_threads_share_a_redactor() -> None:
    redactor = Redactor(["hunter22", "swordfish"])
    results: list[bool] = []

    def work() -> None:
        results.append(all(redactor(f"{n} hunter22 swordfish") == f"{n} *** ***" for n in range(500)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [True] * 4 == results


def test_a_long_log_costs_little() -> None:
    """10 MB with a dozen secrets in all their forms: under two seconds here, far under what writing them takes."""
    redactor = Redactor([f"{PASSWORD}{n}" for n in range(12)])
    text = "2026-11-22 08:00:00 pgsnap.run wrote 16 MiB of shop.dump to /var/backups/pgsnap, nothing to see\n" * 100_000
    began = time.process_time()
    assert text == redactor(text)
    assert time.process_time() - began < 5

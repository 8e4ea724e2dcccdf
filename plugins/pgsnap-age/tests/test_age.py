"""The age transform: the conformance kit, keys of all kinds, and the age program both ways."""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from pgsnap import ConfigError, Facts, IntegrityError, Run, StageError
from pgsnap.streams import CHUNK
from pgsnap.testing import TransformConformance, text
from pgsnap_age import Age

PLAIN = text(200_000)


class KeyPair(Protocol):
    @property
    def public(self) -> str: ...
    @property
    def file(self) -> Path: ...


def encode(transform: Age, plain: bytes = PLAIN) -> tuple[bytes, Facts]:
    facts: Facts = {}
    return b"".join(transform.encode([plain], facts)), json.loads(json.dumps(facts))


def decode(transform: Age, encoded: bytes, facts: Facts | None = None) -> bytes:
    return b"".join(transform.decode([encoded], facts or {}))


def age(*arguments: str, data: bytes) -> bytes:
    return subprocess.run(["age", *arguments], input=data, capture_output=True, check=True).stdout


class _Conformance(TransformConformance):
    @pytest.fixture
    def reader(self, transform: Age) -> Age:
        return Age(identity_file=transform.identity_file)

    @pytest.fixture
    def command_environment(self, transform: Age) -> Mapping[str, str]:
        return {"AGE_IDENTITY": str(transform.identity_file)}


class TestAge(_Conformance):
    """Two X25519 recipients."""

    @pytest.fixture
    def transform(self, alice: KeyPair, bob: KeyPair) -> Age:
        return Age(recipients=(alice.public, bob.public), identity_file=str(bob.file))


class TestAgeSsh(_Conformance):
    """An SSH key. The other kind, RSA, is slow to open; the tests below have it."""

    @pytest.fixture
    def transform(self, ed25519: KeyPair) -> Age:
        return Age(recipients=(ed25519.public,), identity_file=str(ed25519.file))

    @pytest.mark.needs_age  # the stand-in knows an older draft of these recipients
    def test_the_shell_command_decodes(self, transform: Age, command_environment: Mapping[str, str]) -> None:
        super().test_the_shell_command_decodes(transform, command_environment)


# --- who can read -------------------------------------------------------------------------------------------------------


def test_each_recipient_alone_can_read(alice: KeyPair, bob: KeyPair, ssh: KeyPair) -> None:
    """One private key of several is enough, of whatever kind."""
    encoded, facts = encode(Age(recipients=[alice.public, ssh.public, bob.public]))
    for pair in (alice, bob, ssh):
        assert PLAIN == decode(Age(identity_file=str(pair.file)), encoded, facts)


def test_encoding_never_needs_the_private_key(alice: KeyPair) -> None:
    """A missing or unreadable identity does not disturb a backup."""
    encoded, _ = encode(Age(recipients=[alice.public], identity_file="/does/not/exist"))
    assert PLAIN == decode(Age(identity_file=str(alice.file)), encoded)


def test_facts_hold_public_keys_without_comments(alice: KeyPair, ssh: KeyPair) -> None:
    """The manifest names no user and no host, as the comment of an SSH key does."""
    _, facts = encode(Age(recipients=[alice.public, ssh.public, alice.public]))
    assert {"recipients": [alice.public, ssh.public.removesuffix(" someone@somewhere")]} == facts


@pytest.mark.parametrize("as_path", [True, False])
def test_the_variable_gives_the_key(alice: KeyPair, monkeypatch: pytest.MonkeyPatch, as_path: bool) -> None:
    """PGSNAP_AGE_IDENTITY is the path of a file, or the key itself as hosts without files have it."""
    encoded, facts = encode(Age(recipients=[alice.public]))
    monkeypatch.setenv("PGSNAP_AGE_IDENTITY", str(alice.file) if as_path else alice.file.read_text().splitlines()[-1])
    assert PLAIN == decode(Age(), encoded, facts)
    assert PLAIN == decode(Age(identity_file="/does/not/exist"), encoded, facts)


def test_the_variable_may_hold_an_ssh_key(ssh: KeyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole private key with its line ends."""
    encoded, facts = encode(Age(recipients=[ssh.public]))
    monkeypatch.setenv("PGSNAP_AGE_IDENTITY", ssh.file.read_text())
    assert PLAIN == decode(Age(), encoded, facts)


def test_the_variable_and_the_option_are_both_tried(alice: KeyPair, bob: KeyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the configuration does not hide the one that was given for this command, nor the other way round."""
    monkeypatch.setenv("PGSNAP_AGE_IDENTITY", str(alice.file))
    for pair in (alice, bob):
        encoded, facts = encode(Age(recipients=[pair.public]))
        assert PLAIN == decode(Age(identity_file=str(bob.file)), encoded, facts)


def test_recipients_from_a_file(alice: KeyPair, bob: KeyPair, tmp_path: Path) -> None:
    """Lines and comments; they are added to those of the option."""
    (tmp_path / "keys.txt").write_text(f"# who may read\n\n  {bob.public}  \n")
    encoded, facts = encode(Age(recipients=[alice.public], recipients_file=str(tmp_path / "keys.txt")))
    assert [alice.public, bob.public] == facts["recipients"]
    assert PLAIN == decode(Age(identity_file=str(bob.file)), encoded, facts)


# --- what goes wrong -------------------------------------------------------------------------------------------------------


def test_a_wrong_key_names_the_right_ones(alice: KeyPair, bob: KeyPair) -> None:
    """A StageError that is no IntegrityError: the backup is whole; and it says whose key is needed."""
    encoded, facts = encode(Age(recipients=[alice.public]))
    with pytest.raises(StageError) as caught:
        decode(Age(identity_file=str(bob.file)), encoded, facts)
    assert not isinstance(caught.value, IntegrityError)
    assert str(bob.file) in str(caught.value)
    assert f"it was encrypted for {alice.public}" in str(caught.value)
    assert "--identity, PGSNAP_AGE_IDENTITY or identity_file" in str(caught.value)
    assert bob.file.read_text().splitlines()[-1] not in str(caught.value)


def test_a_missing_key_names_the_right_ones(alice: KeyPair) -> None:
    """Nothing was given."""
    encoded, facts = encode(Age(recipients=[alice.public]))
    with pytest.raises(StageError) as caught:
        decode(Age(), encoded, facts)
    assert (
        f"the backup is encrypted and no private key was given; it was encrypted for {alice.public}: give the file of a "
        "private key by --identity, PGSNAP_AGE_IDENTITY or identity_file." == str(caught.value)
    )


def test_a_damaged_header_is_no_wrong_key(alice: KeyPair, ssh: KeyPair) -> None:
    """With the right key at hand a stanza that no longer opens is damage, for X25519 and for OpenSSH keys."""
    for pair in (alice, ssh):
        encoded, facts = encode(Age(recipients=[pair.public]))
        at = encoded.index(b"\n", encoded.index(b"-> ")) + 5
        damaged = encoded[:at] + (b"A" if encoded[at : at + 1] != b"A" else b"B") + encoded[at + 1 :]
        with pytest.raises(IntegrityError, match=r"the beginning of the age data is (cut short or )?damaged"):
            decode(Age(identity_file=str(pair.file)), damaged, facts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read: No such file or directory; give the file"),
        (b"", r"holds no private key; give the file"),
        (b"# only a comment\n", r"holds no private key; give the file"),
        (b"# c\nhunter2-is-my-secret\n", r"line 2 of .* is not a private key of age \(not shown\)"),
        (b"age-encryption.org/v1\n-> scrypt", r"is itself encrypted; write a plain copy with 'age -d'"),
        (b"-----BEGIN AGE ENCRYPTED FILE-----\n", r"is itself encrypted; write a plain copy with 'age -d'"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n", r"holds an SSH private key that cannot be used"),
        (b"\xff\xfe\x00", r"holds no private key of age or SSH, it is not text"),
    ],
)
def test_an_identity_that_cannot_be_used(alice: KeyPair, tmp_path: Path, content: bytes | None, message: str) -> None:
    """Each names the file and the next step, never what stands in it; and says whose key is needed."""
    encoded, facts = encode(Age(recipients=[alice.public]))
    file = tmp_path / "key.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StageError, match=message) as caught:
        decode(Age(identity_file=str(file)), encoded, facts)
    assert str(file) in str(caught.value)
    assert alice.public in str(caught.value)
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/no/such/key.txt", "the file /no/such/key.txt (PGSNAP_AGE_IDENTITY) cannot be read: No such file or directory; "),
        ("~nobody-of-that-name/key", "the file ~nobody-of-that-name/key (PGSNAP_AGE_IDENTITY) cannot be read: No such file"),
        ("c3BvaWxlZC1rZXk=", "the file that PGSNAP_AGE_IDENTITY names cannot be read: No such file or directory; "),
        ("c3BvaWxlZC1rZXk=" * 400, "the file that PGSNAP_AGE_IDENTITY names cannot be read: File name too long; "),
        ("GE-SECRET-KEY-1SPOILED", "line 1 of PGSNAP_AGE_IDENTITY is not a private key of age (not shown); "),
        ("AGE-SECRET-KEY-1SPOILED", "line 1 of PGSNAP_AGE_IDENTITY is not a private key of age (not shown); "),
    ],
)
def test_a_variable_that_cannot_be_used(alice: KeyPair, monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    """A path is shown; what may be a spoiled key is not."""
    encoded, facts = encode(Age(recipients=[alice.public]))
    monkeypatch.setenv("PGSNAP_AGE_IDENTITY", value)
    with pytest.raises(StageError) as caught:
        decode(Age(), encoded, facts)
    assert str(caught.value).startswith(message)
    if not value.startswith(("/", "~")):
        assert value[:16] not in f"{caught.value} {caught.value.args}"


def test_an_ssh_key_with_a_passphrase_says_what_to_do(locked_ssh: KeyPair) -> None:
    """It cannot be asked for in a cron job."""
    encoded, facts = encode(Age(recipients=[locked_ssh.public]))
    with pytest.raises(StageError, match=r"decrypted first.*needs a copy without: ssh-keygen -p"):
        decode(Age(identity_file=str(locked_ssh.file)), encoded, facts)


PRIVATE = "AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ"


@pytest.mark.parametrize(
    ("recipients", "message"),
    [
        ("age1abc", 'recipients of age is one text; give a list: recipients = ["age1…"].'),
        (["age1abcdefghijklmnopqrstuvw"], "recipients[0] of age, 'age1abcdefghijkl…', is not a public key"),
        (["ssh-ed25519 AAAA"], "recipients[0] of age, 'ssh-ed25519 AAAA', is not a public key"),
        (["my-password-1"], "recipients[0] of age, (not shown), is not a public key"),
        ([""], "recipients[0] of age, (not shown), is not a public key"),
        ([PRIVATE], "recipients[0] of age is a private key (not shown); put its public key there"),
        ([PRIVATE.lower()], "recipients[0] of age is a private key (not shown); put its public key there"),
        (["-----BEGIN OPENSSH PRIVATE KEY-----\nx"], "recipients[0] of age is a private key (not shown)"),
    ],
)
def test_a_bad_recipient_is_refused_when_it_is_given(recipients: Sequence[str], message: str) -> None:
    """It is named by its position; a value that may be secret is not shown, nor chained."""
    with pytest.raises(ConfigError) as caught:
        Age(recipients=recipients)
    assert str(caught.value).startswith(message)
    assert "my-password" not in str(caught.value)
    assert PRIVATE[20:] not in str(caught.value).upper()
    assert caught.value.__cause__ is None


def test_the_second_of_two_is_named(alice: KeyPair) -> None:
    """Positions count from 0, as paths in a TOML file do."""
    with pytest.raises(ConfigError, match=re.escape("recipients[1] of age, 'age1bad', ")):
        Age(recipients=[alice.public, "age1bad"])


def test_no_recipients_cannot_encrypt() -> None:
    """Nothing is written in the clear because nobody was named."""
    with pytest.raises(ConfigError, match="age has no recipients, so nothing can be encrypted"):
        encode(Age())


def test_a_recipients_file_that_cannot_be_used(tmp_path: Path) -> None:
    """Missing, not text, or with a bad line, which is named."""
    file = tmp_path / "keys.txt"
    with pytest.raises(ConfigError, match=r"keys\.txt, cannot be read: No such file"):
        encode(Age(recipients_file=str(file)))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"keys\.txt, cannot be read: it is not text"):
        encode(Age(recipients_file=str(file)))
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="age has no recipients"):
        encode(Age(recipients_file=str(file)))
    file.write_text("age1bad\n")
    with pytest.raises(ConfigError, match=r"recipients_file\[0\] of age, 'age1bad', is not a public key"):
        encode(Age(recipients_file=str(file)))


def test_preflight(alice: KeyPair, bob: KeyPair) -> None:
    """One key only is worth a word; none, or a missing file, would fail."""
    run = Run("shop")
    assert ["ok"] == [f.level for f in Age(recipients=[alice.public, bob.public]).preflight(run)]
    (one,) = Age(recipients=[alice.public]).preflight(run)
    assert "info" == one.level
    assert alice.public in one.text
    for broken in (Age(), Age(recipients_file="/does/not/exist")):
        (finding,) = broken.preflight(run)
        assert "error" == finding.level
        assert finding.remedy


# --- keys ------------------------------------------------------------------------------------------------------------------


@pytest.mark.uses_programs
def test_keygen_writes_what_age_keygen_writes(tmp_path: Path) -> None:
    """Mode 0600, the public key in a comment, the private one on the last line; the age-keygen program agrees."""
    file = tmp_path / "key.txt"
    public = Age.keygen(file)
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    created, comment, key = file.read_text().splitlines()
    assert re.fullmatch(r"# created: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", created)
    assert f"# public key: {public}" == comment
    assert key.startswith("AGE-SECRET-KEY-1")
    told = subprocess.run(["age-keygen", "-y", str(file)], capture_output=True, check=True, text=True).stdout
    assert public == told.strip()


def test_keygen_never_writes_over_a_file(tmp_path: Path) -> None:
    """The only copy of a key must not be lost to a second keygen."""
    file = tmp_path / "key.txt"
    file.write_text("precious")
    with pytest.raises(ConfigError, match=r"key\.txt exists already; a key is never written over a file"):
        Age.keygen(file)
    assert "precious" == file.read_text()
    with pytest.raises(ConfigError, match=r"cannot be written to .*: No such file or directory"):
        Age.keygen(tmp_path / "missing" / "key.txt")


@pytest.mark.uses_programs
def test_a_key_of_age_keygen_is_read(tmp_path: Path) -> None:
    """The other way round."""
    file = tmp_path / "key.txt"
    subprocess.run(["age-keygen", "-o", str(file)], capture_output=True, check=True)
    public = subprocess.run(["age-keygen", "-y", str(file)], capture_output=True, check=True, text=True).stdout.strip()
    encoded, facts = encode(Age(recipients=[public]))
    assert PLAIN == decode(Age(identity_file=str(file)), encoded, facts)


# --- the age program -------------------------------------------------------------------------------------------------------


@pytest.mark.uses_programs
@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3 * CHUNK])
def test_another_implementation_agrees(alice: KeyPair, size: int) -> None:
    """Both ways, with an X25519 key: the program, or a stand-in where that is missing."""
    encoded, _ = encode(Age(recipients=[alice.public]), text(size))
    assert text(size) == age("-d", "-i", str(alice.file), data=encoded)
    assert text(size) == decode(Age(identity_file=str(alice.file)), age("-r", alice.public, data=text(size)))


@pytest.mark.needs_age
@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3 * CHUNK])
def test_age_reads_what_we_write(alice: KeyPair, ssh: KeyPair, size: int) -> None:
    """For both kinds of key, around the size of age's own pieces."""
    encoded, _ = encode(Age(recipients=[alice.public, ssh.public]), text(size))
    for pair in (alice, ssh):
        assert text(size) == age("-d", "-i", str(pair.file), data=encoded)


@pytest.mark.needs_age
@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3 * CHUNK])
def test_we_read_what_age_writes(alice: KeyPair, ssh: KeyPair, size: int) -> None:
    """The other way round."""
    encoded = age("-r", alice.public, "-r", ssh.public, data=text(size))
    for pair in (alice, ssh):
        assert text(size) == decode(Age(identity_file=str(pair.file)), encoded)


def test_the_plain_text_is_not_in_the_output(alice: KeyPair) -> None:
    """It does encrypt."""
    encoded, _ = encode(Age(recipients=[alice.public]), b"the-canary-in-the-mine" * 1000)
    assert b"canary" not in encoded
    assert encoded.startswith(b"age-encryption.org/v1\n")


def test_nothing_heavy_is_imported_by_the_module() -> None:
    """pyrage is loaded when keys are looked at, not when plugins are listed."""
    script = "import sys, pgsnap_age; sys.exit('pyrage' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", script], env=dict(os.environ), check=False).returncode


def test_repr_and_pickle_hold_no_private_key(alice: KeyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The component knows a path only."""
    key = alice.file.read_text().splitlines()[-1]
    monkeypatch.setenv("PGSNAP_AGE_IDENTITY", key)
    component: Any = Age(recipients=[alice.public], identity_file=str(alice.file))
    assert key not in repr(component)
    assert key.encode() not in pickle.dumps(component)


def test_recover_lines_name_the_key(alice: KeyPair) -> None:
    """Who follows RECOVER.txt learns which key to fetch and how to name it."""
    _, facts = encode(Age(recipients=[alice.public]))
    assert 'age -d -i "$AGE_IDENTITY"' == Age().command(facts)
    needs = Age().needs(facts)
    assert alice.public in needs
    assert "export AGE_IDENTITY=" in needs
    assert "\n" not in needs

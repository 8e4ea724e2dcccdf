"""age encryption for pgsnap: to one or several public keys, so that the machine that backs up cannot read its backups.

The format is that of age (https://age-encryption.org/v1); ``age -d`` reads it. It is authenticated in pieces of 64 KiB: what is
cut short, altered, reordered or followed by anything is refused. It proves who can read, not who wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, ClassVar

import attrs

from pgsnap import ConfigError, Facts, Finding, IntegrityError, Run, StageError, Transform, hookimpl
from pgsnap.streams import Chunks, Stream, through_thread
from pgsnap_age import keys

__all__ = ["Age", "pgsnap_transforms"]


def _recipients(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ConfigError('recipients of age is one text; give a list: recipients = ["age1…"].')
    return tuple(value)


def _check_recipients(instance: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    if value:
        keys.parse_recipients(value, "recipients")


@attrs.frozen(kw_only=True)
class Age(Transform):
    """Encrypts to public keys; a private key of any one of them decrypts.

    Args:
        recipients: Public keys: ``age1…``, or lines of SSH keys (``ssh-ed25519 …``, ``ssh-rsa …``).
        recipients_file: A file with more of them, one a line; ``#`` begins a comment. It is read when a backup is made.
        identity_file: A file with private keys (age's or an OpenSSH key without a passphrase), read only when a backup is
            read. The keys of PGSNAP_AGE_IDENTITY, a path or the key itself, are tried as well.
    """

    name: ClassVar[str] = "age"
    suffix: ClassVar[str] = ".age"
    encrypts: ClassVar[bool] = True

    recipients: tuple[str, ...] = attrs.field(default=(), converter=_recipients, validator=_check_recipients)
    recipients_file: str | None = None
    identity_file: str | None = None

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        """Yield an age file; ``facts["recipients"]`` gets the public keys, without the comments of SSH keys.

        Raises:
            ConfigError: there is no public key, or one is wrong.
        """
        import pyrage

        recipients = self._all_recipients()

        def work(reader: IO[bytes], writer: IO[bytes]) -> None:
            try:
                pyrage.encrypt_io(reader, writer, list(recipients.values()))
            except (pyrage.EncryptError, OSError) as error:
                raise StageError(f"age could not encrypt: {error}.") from error

        yield from through_thread(chunks, work)
        facts["recipients"] = list(recipients)

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        """Yield the plain bytes in pieces of about 1 MiB, each authenticated before it is given out.

        Raises:
            StageError: there is no private key, or none that opens this backup; the message names the public keys that it
                was encrypted to.
            IntegrityError: the data is cut short, altered, or followed by anything.
        """
        import pyrage

        wanted = [str(key) for key in facts.get("recipients", ())]
        needs = f"it was encrypted for {', '.join(map(keys.shorten, wanted))}: " if wanted else ""
        try:
            identities = keys.load_identities(self.identity_file)
        except StageError as error:
            raise StageError(f"{error} (The backup is encrypted; {needs.rstrip(': ')}.)" if needs else str(error)) from error
        if not identities.keys:
            raise StageError(f"the backup is encrypted and no private key was given; {needs}{keys.WHERE}.")

        def work(reader: IO[bytes], writer: IO[bytes]) -> None:
            try:
                pyrage.decrypt_io(reader, writer, identities.keys)
            except pyrage.DecryptError as error:
                if "No matching keys" not in str(error):
                    raise IntegrityError(f"the beginning of the age data is cut short or damaged: {error}.") from error
                if identities.public & set(wanted):
                    raise IntegrityError(
                        "the beginning of the age data is damaged: the right private key was given, but does not open it."
                    ) from error
                raise StageError(
                    f"none of the private keys in {identities.source} opens this backup; {needs}{keys.WHERE}."
                ) from error
            except OSError as error:
                raise IntegrityError(f"the age data is cut short, damaged or followed by other data: {error}.") from error

        yield from through_thread(chunks, work)

    def command(self, facts: Facts) -> str | None:
        """``age -d`` with the file that the variable AGE_IDENTITY names."""
        return 'age -d -i "$AGE_IDENTITY"'

    def needs(self, facts: Facts) -> str:
        """age, and the file of a private key."""
        wanted = ", or of ".join(keys.shorten(str(key)) for key in facts.get("recipients", ()))
        whose = f", of {wanted}" if wanted else ""
        return f'age, and the file of a private key{whose}; first run: export AGE_IDENTITY="/path/to/that/file"'

    def preflight(self, run: Run) -> Sequence[Finding]:
        """Check the public keys, and say when there is only one."""
        try:
            recipients = self._all_recipients()
        except ConfigError as error:
            return [Finding("error", "age", str(error), "correct the recipients; 'pgsnap keygen' makes a key pair.")]
        if len(recipients) == 1:
            only = keys.shorten(next(iter(recipients)))
            text = f"backups are encrypted to one key only, {only}: without it none can be read."
            return [Finding("info", "age", text, "add the public key of a second one that is kept somewhere else.")]
        return [Finding("ok", "age", f"backups are encrypted to {len(recipients)} keys.")]

    @classmethod
    def keygen(cls, path: Path) -> str:
        """Write a new private key to ``path`` as ``age-keygen`` does, mode 0600, never over a file; return the public key."""
        return keys.generate(path)

    def _all_recipients(self) -> dict[str, object]:
        found = keys.parse_recipients(self.recipients, "recipients")
        if self.recipients_file is not None:
            found |= keys.parse_recipients(keys.read_recipients_file(self.recipients_file), "recipients_file")
        if not found:
            raise ConfigError(
                "age has no recipients, so nothing can be encrypted; run 'pgsnap keygen' and put the public key into recipients."
            )
        return found


@hookimpl
def pgsnap_transforms() -> Sequence[type[Transform]]:
    """Return the age transform."""
    return [Age]

"""What the tests need of the ``age`` and ``age-keygen`` programs, for X25519 keys, written from the specification (C2SP age.md).

    age -d -i KEYS          age -r RECIPIENT          age-keygen -o FILE          age-keygen -y FILE

It shares no code with what pgsnap uses. Data go from standard input to standard output, through memory, and nothing is printed
unless all of it is good.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
PIECE = 64 << 10
TAG = 16


def polymod(values: list[int]) -> int:
    """The checksum of Bech32 (BIP 173)."""
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, factor in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= factor if top >> bit & 1 else 0
    return check


def bech32(prefix: str, data: bytes) -> str:
    number = int.from_bytes(data, "big") << 4  # 256 bits become 52 groups of five
    values = [number >> 5 * at & 31 for at in range(51, -1, -1)]
    expanded = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    check = polymod([*expanded, *values, 0, 0, 0, 0, 0, 0]) ^ 1
    return prefix + "1" + "".join(LETTERS[v] for v in [*values, *(check >> 5 * at & 31 for at in range(5, -1, -1))])


def unbech32(text: str) -> bytes:
    prefix, _, letters = text.lower().rpartition("1")
    number = 0
    for letter in letters[:-6]:
        number = number << 5 | LETTERS.index(letter)
    data = (number >> 4).to_bytes(32, "big")
    if bech32(prefix, data) != text.lower():
        raise ValueError(f"{prefix}1… is misspelt")
    return data


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(key)


def encode64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def decode64(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def identities(file: str) -> list[X25519PrivateKey]:
    lines = [line.strip() for line in Path(file).read_text().splitlines()]
    return [X25519PrivateKey.from_private_bytes(unbech32(line)) for line in lines if line and not line.startswith("#")]


def file_key(stanzas: list[bytes], keys: list[X25519PrivateKey]) -> bytes:
    """Unwrap the file key by whichever stanza one of the keys opens."""
    for at, line in enumerate(stanzas):
        kind, *words = line.removeprefix(b"-> ").split(b" ")
        if not line.startswith(b"-> ") or kind != b"X25519":
            continue
        share = decode64(words[0])
        for key in keys:
            mine = key.public_key().public_bytes_raw()
            wrap = hkdf(key.exchange(X25519PublicKey.from_public_bytes(share)), share + mine, b"age-encryption.org/v1/X25519")
            try:
                return ChaCha20Poly1305(wrap).decrypt(bytes(12), decode64(stanzas[at + 1]), None)
            except Exception:
                continue
    raise ValueError("no identity matched any of the recipients")


def mac_of(key: bytes, header: bytes) -> bytes:
    return hmac.new(hkdf(key, b"", b"header"), header, hashlib.sha256).digest()


def pieces(size: int, piece: int) -> Iterator[tuple[slice, bytes]]:
    """Yield each piece's place and nonce: a counter, and a last byte that says which is the last one."""
    count = max(1, -(-size // piece))
    for at in range(count):
        yield slice(at * piece, (at + 1) * piece), at.to_bytes(11, "big") + bytes([at == count - 1])


def decrypt(data: bytes, keys: list[X25519PrivateKey]) -> bytes:
    end = data.index(b"\n", data.index(b"\n--- ") + 1) + 1
    body, _, mac = data[: end - 1].rpartition(b" ")
    version, *stanzas, _ = body.split(b"\n")
    if version != b"age-encryption.org/v1":
        raise ValueError("this is no age file")
    key = file_key(stanzas, keys)
    if not hmac.compare_digest(mac_of(key, body), decode64(mac)):
        raise ValueError("the header was altered")
    nonce, payload = data[end : end + 16], data[end + 16 :]
    stream = ChaCha20Poly1305(hkdf(key, nonce, b"payload"))
    return b"".join(stream.decrypt(nonce, payload[part], None) for part, nonce in pieces(len(payload), PIECE + TAG))


def encrypt(plain: bytes, recipient: str) -> bytes:
    key, nonce, theirs = os.urandom(16), os.urandom(16), unbech32(recipient)
    ephemeral = X25519PrivateKey.generate()
    share = ephemeral.public_key().public_bytes_raw()
    wrap = hkdf(ephemeral.exchange(X25519PublicKey.from_public_bytes(theirs)), share + theirs, b"age-encryption.org/v1/X25519")
    wrapped = encode64(ChaCha20Poly1305(wrap).encrypt(bytes(12), key, None))
    body = b"\n".join([b"age-encryption.org/v1", b"-> X25519 " + encode64(share), wrapped, b"---"])
    stream = ChaCha20Poly1305(hkdf(key, nonce, b"payload"))
    payload = b"".join(stream.encrypt(nonce, plain[part], None) for part, nonce in pieces(len(plain), PIECE))
    return body + b" " + encode64(mac_of(key, body)) + b"\n" + nonce + payload


def main() -> None:
    name, *words = sys.argv[1:]
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("-d", action="store_true")
    for option in ("-i", "-r", "-o", "-y"):
        parser.add_argument(option)
    given = parser.parse_args(words)
    if name == "age-keygen" and given.y:
        print(*(bech32("age", key.public_key().public_bytes_raw()) for key in identities(given.y)), sep="\n")
    elif name == "age-keygen":
        Path(given.o).write_text(bech32("age-secret-key-", X25519PrivateKey.generate().private_bytes_raw()).upper() + "\n")
    else:
        data = sys.stdin.buffer.read()
        sys.stdout.buffer.write(decrypt(data, identities(given.i)) if given.d else encrypt(data, given.r))


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.exit(f"age: error: {error or type(error).__name__}")

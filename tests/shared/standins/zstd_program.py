"""What the tests need of the ``zstd`` program: ``zstd -dc`` and ``zstd -c``, from standard input to standard output."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def main() -> None:
    data = sys.stdin.buffer.read()
    words = "".join(word.lstrip("-") for word in sys.argv[2:])
    sys.stdout.buffer.write(zstd.decompress(data) if "d" in words else zstd.compress(data, level=3))


if __name__ == "__main__":
    try:
        main()
    except zstd.ZstdError as error:
        sys.exit(f"zstd: error: {error}")

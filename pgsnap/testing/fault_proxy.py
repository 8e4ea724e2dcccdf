"""A proxy that spoils requests on purpose: what stands between a store and its server in tests of what the store survives.

It runs as a process of its own, so that a stall in it is none of the test's, and speaks HTTP/1.1 (or passes raw bytes on).
Faults are rules; the first that fits a request is applied, as many times as it says::

    with FaultProxy(("127.0.0.1", port)) as proxy:
        proxy.rules({"method": "PUT", "contains": "partNumber=2", "do": "cut", "after": 100_000})
        store = S3(url="s3://bucket", endpoint=proxy.url, …)

A rule fits by ``method`` and by ``contains`` (text in the request's target), skips its first ``skip`` requests and is used up
after ``times`` (0: never). What it does:

    answer      read the request, answer ``status`` with an S3 error of ``code``; the server never sees it
    cut         reset the connection after ``after`` bytes of the request's body
    stall       take no more after ``after`` bytes of the request's body, and say nothing; the server sees a reset
    mute        pass the request on whole, then reset the connection instead of answering: did it happen or not?
    truncate    close the connection after ``after`` bytes of the answer's body
    hang        give ``after`` bytes of the answer's body and then nothing more
    etag        replace each ETag of the answer by another of the same length
    short       shorten the answer's body by ``after`` bytes and say so in its Content-Length

Every request is delayed by ``delay`` seconds, as by the way to a distant server. ``requests()`` tells what was asked.

This file needs nothing but the standard library, since it also runs as a program.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

__all__ = ["FaultProxy"]

PIECE = 256 << 10


class FaultProxy:
    """Starts the proxy as a process; ``url`` and ``port`` say where it listens. Use it as a context manager.

    Args:
        server: Host and port to pass requests on to.
        delay: Seconds by which every request is delayed.
        raw: Pass bytes on without looking at them. Then ``cut`` and ``stall`` count the bytes of a connection towards the server.
    """

    def __init__(self, server: tuple[str, int], *, delay: float = 0.0, raw: bool = False) -> None:
        self._argv = [sys.executable, "-P", os.path.abspath(__file__), server[0], str(server[1]), str(delay), str(int(raw))]
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens, as an HTTP URL."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultProxy:
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port = self._ask()["port"]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if command:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def rules(self, *rules: dict[str, Any], delay: float | None = None) -> None:
        """Set the rules in place of those before, close what is stalled, and forget the requests so far."""
        self._ask(rules=rules, delay=delay)

    def requests(self) -> list[str]:
        """Return what was asked since the last ``rules``: method, target, range and status; a fault's name in place of that."""
        asked: list[str] = self._ask(log=True)
        return asked


# --- the process -----------------------------------------------------------------------------------------------------


class _Reset(Exception):
    """Both connections are to be reset."""


class _Proxy:
    def __init__(self, host: str, port: int, delay: float, raw: bool) -> None:
        self.server = (host, port)
        self.delay = delay
        self.raw = raw
        self.rules: list[dict[str, Any]] = []
        self.log: list[str] = []
        self.freed = asyncio.Event()

    def command(self, command: dict[str, Any]) -> Any:
        if "log" in command:
            return self.log
        self.rules = [{"times": 1, "skip": 0, "after": 0, **rule} for rule in command["rules"]]
        self.log = []
        if command.get("delay") is not None:
            self.delay = command["delay"]
        self.freed.set()
        self.freed = asyncio.Event()
        return True

    def fault(self, method: str, target: str) -> dict[str, Any]:
        for rule in self.rules:
            if rule.get("method", method) != method or rule.get("contains", "") not in target:
                continue
            if rule["skip"]:
                rule["skip"] -= 1
                continue
            if rule["times"] == 1:
                self.rules.remove(rule)
            elif rule["times"]:
                rule["times"] -= 1
            return rule
        return {"do": "", "after": 0}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            up = await asyncio.open_connection(*self.server, limit=1 << 20)
            if self.raw:
                await self.pass_on(reader, writer, *up)
                return
            while await self.exchange(reader, writer, *up):
                pass
        except _Reset:
            writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            for each in (writer, up and up[1]):
                if each:
                    each.close()

    async def pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        fault = self.fault("", "")

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, limit: int | None) -> None:
            done = 0
            while data := await source.read(PIECE):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if limit is not None and done + len(data) > limit:
                    target.write(data[: limit - done])
                    await target.drain()
                    self.log.append(fault["do"])
                    if fault["do"] == "stall":
                        await self.freed.wait()
                    raise _Reset
                done += len(data)
                target.write(data)
                await target.drain()
            target.close()

        limit = fault["after"] if fault["do"] else None
        pumps = [asyncio.ensure_future(pump(reader, up_writer, limit)), asyncio.ensure_future(pump(up_reader, writer, None))]
        try:
            await asyncio.gather(*pumps)
        finally:
            for task in pumps:
                task.cancel()

    async def exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        fault = self.fault(method, target)
        asked = re.search(rb"(?i)\r\nrange: *([^\r]*)", head)
        request = f"{method} {target}" + (f" {asked[1].decode()}" if asked else "")
        if self.delay:
            await asyncio.sleep(self.delay)
        if re.search(rb"\r\nexpect:", head, re.IGNORECASE):
            head = re.sub(rb"\r\nexpect:[^\r]*", b"", head, flags=re.IGNORECASE)
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault["do"] == "answer":
            async for _ in _body(reader, head):
                pass
            self.log.append(f"{request} {fault['status']}")
            code = fault.get("code", "InternalError")
            text = b"" if method == "HEAD" else f"<Error><Code>{code}</Code><Message>spoiled</Message></Error>".encode()
            start = f"HTTP/1.1 {fault['status']} Spoiled\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n"
            writer.write(start.encode() + text)
            await writer.drain()
            return True
        up_writer.write(head)
        done = 0
        async for data in _body(reader, head):
            if fault["do"] in ("cut", "stall") and done + len(data) > fault["after"]:
                up_writer.write(data[: max(0, fault["after"] - done)])
                up_writer.transport.abort()
                await self.spoil(request, fault["do"])
            done += len(data)
            up_writer.write(data)
            await up_writer.drain()
        if fault["do"] in ("cut", "stall"):  # there was less of a body
            await self.spoil(request, fault["do"])
        return await self.answer(request, fault, up_reader, writer)

    async def spoil(self, request: str, what: str) -> None:
        self.log.append(f"{request} {what}")
        if what in ("stall", "hang"):
            await self.freed.wait()
        raise _Reset

    async def answer(
        self, request: str, fault: dict[str, Any], up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head = await up_reader.readuntil(b"\r\n\r\n")
        while head.split(b" ", 2)[1].startswith(b"1"):
            head = await up_reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1].decode()
        empty = request.startswith("HEAD ") or status in ("204", "304")
        if fault["do"] == "etag":
            head = re.sub(rb'(?i)(\r\netag: *"?)([0-9a-f]+)', lambda m: m[1] + _other(m[2]), head)
        if fault["do"] == "short":
            length = _length(head) or 0
            head = re.sub(rb"(?i)\r\ncontent-length: *\d+", f"\r\nContent-Length: {length - fault['after']}".encode(), head)
        if fault["do"] == "mute":
            async for _ in _body(up_reader, head, empty, True):
                pass
            await self.spoil(request, "mute")
        writer.write(head)
        done = 0
        left = length - fault["after"] if fault["do"] == "short" else 0
        async for data in _body(up_reader, head, empty, True, more=fault["after"] if fault["do"] == "short" else 0):
            if fault["do"] == "etag":
                data = re.sub(rb'(<ETag>(?:&quot;|&#34;|")?)([0-9a-f]+)', lambda m: m[1] + _other(m[2]), data)
            if fault["do"] == "short":
                data, left = data[:left], left - len(data[:left])
            if fault["do"] in ("truncate", "hang") and done + len(data) > fault["after"]:
                writer.write(data[: fault["after"] - done])
                await writer.drain()
                if fault["do"] == "hang":
                    await self.spoil(request, "hang")
                self.log.append(f"{request} truncate")
                return False
            done += len(data)
            writer.write(data)
            await writer.drain()
        self.log.append(f"{request} {fault['do'] or status}")
        return True


def _other(digits: bytes) -> bytes:
    return bytes(b"0123456789abcdef"[(int(chr(c), 16) + 1) % 16] for c in digits)


def _length(head: bytes) -> int | None:
    match = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(match[1]) if match else None


async def _body(
    reader: asyncio.StreamReader, head: bytes, empty: bool = False, answer: bool = False, more: int = 0
) -> AsyncIterator[bytes]:
    """Yield the body that belongs to a head, as it stands on the wire; of an answer without a length until its end."""
    if empty:
        return
    if re.search(rb"(?i)\r\ntransfer-encoding:[^\r]*chunked", head):
        while True:
            line = await reader.readline()
            size = int(line.split(b";")[0], 16)
            yield line + await reader.readexactly(size + 2)
            if not size:
                return
    length = _length(head)
    left = (None if answer else 0) if length is None else length + more
    while left is None or left > 0:
        data = await reader.read(PIECE if left is None else min(left, PIECE))
        if not data:
            if left is None:
                return
            raise asyncio.IncompleteReadError(b"", left)
        left = None if left is None else left - len(data)
        yield data


async def _main(host: str, port: str, delay: str, raw: str) -> None:
    proxy = _Proxy(host, int(port), float(delay), raw == "1")
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 20, backlog=200)
    for sock in server.sockets:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    commands = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        print(json.dumps(proxy.command(json.loads(line))), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(*sys.argv[1:]))

"""An SSH server on loopback with nothing but SFTP: ``sftp_server.py FOLDER HOST_KEY AUTHORIZED_KEYS``; it prints its port."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import asyncssh


class Server(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return password == "canary-of-the-password"


async def main(folder: str, host_key: str, authorized: str) -> None:
    def sftp(channel: Any) -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(channel, chroot=folder.encode())

    server = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[host_key], authorized_client_keys=authorized, sftp_factory=sftp, server_factory=Server
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.wait_closed()


asyncio.run(main(*sys.argv[1:]))

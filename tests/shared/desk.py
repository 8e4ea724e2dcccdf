"""The real command: a folder with a configuration, where ``pgsnap`` runs in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import attrs

PROGRAM = str(Path(sys.executable).with_name("pgsnap"))


@attrs.define
class Desk:
    """A folder with a configuration, and the command."""

    folder: Path
    env: dict[str, str]

    def configure(
        self, *, transforms: str = "", stores: tuple[str, ...] = ("one", "two"), dump: str = "", more: str = ""
    ) -> None:
        """Write ./pgsnap.toml: pg_dump of DATABASE_URL through ``transforms`` into ``stores``."""
        text = f'[pipeline.shop]\n{more}\n[pipeline.shop.dump]\nuse = "pg_dump"\nurl = {{ env = "DATABASE_URL" }}\n'
        text += f"{dump}\n{transforms}\n"
        for store in stores:
            text += f'[[pipeline.shop.store]]\nurl = "{store if store.startswith("/") else self.folder / store}"\n'
        (self.folder / "pgsnap.toml").write_text(text)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def files(self, store: str = "one") -> list[Path]:
        """Return the files in a store."""
        return sorted(path for path in (self.folder / store).rglob("*") if path.is_file())

    def committed(self, store: str = "one") -> list[Path]:
        """Return the folders of the backups that exist in a store."""
        return sorted(path.parent for path in (self.folder / store).rglob("manifest.json"))


def clean_environment() -> dict[str, str]:
    """The environment of this process without anything that could configure pgsnap or libpq."""
    ours = ("PG", "AWS_", "SMTP_", "GCS_", "GOOGLE_", "STORAGE_EMULATOR_", "DATABASE_URL")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours) or name == "PGSNAP_PG_BIN"}

"""Writes RECOVER.txt: how to restore this very backup with nothing of ours, by somebody who has never heard of us.

The file is a shell script in which everything else is a comment, so it can be read, pasted line by line, or run. It holds no
host, no user, no URL and no name of a source database: names that are not ours could be code to the shell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from pgsnap.components.contracts import Dumper
from pgsnap.components.values import format_size
from pgsnap.repository.manifest import ArtifactRecord, FileRecord, Manifest
from pgsnap.repository.stages import Finder

__all__ = ["recover_text"]


def recover_text(manifest: Manifest, dumper: Dumper, find: Finder) -> str:
    """Return the text for a backup whose artifacts and sidecars are recorded in ``manifest``."""
    commands = {record.name: _plain_bytes(record, find) for record in manifest.artifacts}
    recipe = dumper.recipe([record.name for record in manifest.artifacts], manifest.facts)
    recipe = re.sub(r"@\{([^}]*)\}", lambda match: commands[match[1]], recipe)
    needs = _needs(manifest.artifacts, find)
    lines = [
        f"# Backup {manifest.id} of {manifest.pipeline}: how to restore it without pgsnap.",
        "#",
        "# Copy all files of this folder to a machine with PostgreSQL's client programs, go to the copy, and run the",
        "# lines below one after the other, or all at once:  sh RECOVER.txt",
        *(["#", "# You also need:"] if needs else []),
        *(f"#   - {need}" for need in needs),
        "",
        "set -eu  # leave this line out if you paste: it would close your terminal at the first error",
        "",
        "# 1. Are the files whole? Every line must say OK.",
        "sha256sum -c <<'SUMS'",
        *(f"{item.sha256}  {item.key}" for item in _stored(manifest)),
        "SUMS",
        "",
        "# 2. What the files are",
        *(
            f"#   {record.name}: {format_size(record.size)}, sha256 {record.sha256}\n#     {commands[record.name]}"
            for record in manifest.artifacts
        ),
        "",
        "# 3. Restore",
        recipe.strip(),
    ]
    return "\n".join(lines) + "\n"


def _stored(manifest: Manifest) -> Sequence[FileRecord]:
    return [item for record in manifest.artifacts for item in record.objects]


def _plain_bytes(record: ArtifactRecord, find: Finder) -> str:
    """Return the shell command that prints the plain bytes of an artifact."""
    files = " ".join(shlex.quote(item.key) for item in record.objects)
    filters = [find(stage).command(dict(stage.facts)) for stage in reversed(record.stages)]
    return " | ".join([f"cat {files}", *(command for command in filters if command is not None)])


def _needs(artifacts: Sequence[ArtifactRecord], find: Finder) -> list[str]:
    found = [find(stage).needs(dict(stage.facts)) for record in artifacts for stage in record.stages]
    return list(dict.fromkeys(need for need in found if need))

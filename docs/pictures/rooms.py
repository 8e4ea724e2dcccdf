"""Draw the rooms of the core from its code: python docs/pictures/rooms.py writes rooms.svg beside itself, and a test compares.

A box is a folder (or a file) of ``pgsnap/``: its name, the first words of its docstring, its files, and the rooms that it imports
from, those in functions and for type checkers counted. Boxes are sorted so that every import goes down.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path

CORE = Path(__file__).parent.parent.parent / "pgsnap"
WIDTH, MARGIN, LINE = 940, 14, 19
STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1b1f24 } .name { font-weight: 700 }
  .files { font: 13px ui-monospace, monospace }
  .dim { fill: #59636e; font-size: 13px } rect { fill: #f6f8fa; stroke: #8c959f }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .dim { fill: #9198a1 } rect { fill: #161b22; stroke: #4c5560 }
  }
"""


def room_of(path: Path) -> str:
    """The first part of a file's path below the core."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def imported_by(path: Path) -> set[str]:
    """Return the rooms of the core that a file imports from, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        found |= {name.split(".")[1] for name in names if name.startswith("pgsnap.")}
    return found - {room_of(path)}


def rooms() -> dict[str, list[Path]]:
    """Return the files of each room; the front door, which only names things, is none."""
    found: dict[str, list[Path]] = {}
    for path in sorted(CORE.rglob("*.py")):
        if path != CORE / "__init__.py":
            found.setdefault(room_of(path), []).append(path)
    return found


def sentence(files: list[Path]) -> str:
    """The first sentence of a room's docstring."""
    first = next((path for path in files if path.name == "__init__.py"), files[0])
    text = " ".join((ast.get_docstring(ast.parse(first.read_text())) or "").split("\n\n")[0].split())
    return text.replace("``", "")


def draw() -> str:
    """Return the picture as SVG."""
    found = rooms()
    below = {room: set().union(*map(imported_by, files)) for room, files in found.items()}
    depth: dict[str, int] = {}
    for room in TopologicalSorter(below).static_order():  # raises if there is a circle
        depth[room] = max((depth[other] + 1 for other in below[room]), default=0)
    order = sorted(found, key=lambda room: (-depth[room], room))
    shapes, y = [], MARGIN
    for room in order:
        files = [path.stem for path in found[room] if path.name not in ("__init__.py", "__main__.py")]
        lines = [("dim", line) for line in textwrap.wrap(sentence(found[room]), 124)]
        if files != [room]:
            lines += [("files", line) for line in textwrap.wrap(" · ".join(files), 106)]
        uses = ", ".join(other for other in order if other in below[room])
        height = MARGIN * 2 + LINE * len(lines) + LINE
        shapes.append(f'<rect x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" height="{height}" rx="6"/>')
        top = y + MARGIN + 10
        shapes.append(f'<text class="name" x="{2 * MARGIN}" y="{top}">{escape(room)}</text>')
        if uses:
            shapes.append(f'<text class="dim" x="{WIDTH - 2 * MARGIN}" y="{top}" text-anchor="end">imports {escape(uses)}</text>')
        for number, (kind, line) in enumerate(lines, 1):
            shapes.append(f'<text class="{kind}" x="{2 * MARGIN}" y="{top + 3 + number * LINE}">{escape(line)}</text>')
        y += height + MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" aria-label="The rooms of the core">'
    return "\n".join([head, f"<style>{STYLE}</style>", *shapes, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw())
    sys.exit(0)

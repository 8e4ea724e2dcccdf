"""How things look on standard output: tables and paragraphs that fit a terminal, and are whole lines everywhere else."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["paragraph", "table"]


def paragraph(console: Console, text: str, *, indent: int = 0, hang: int = 0, style: str = "") -> None:
    """Print a text, indented; on a terminal its further lines are indented by ``hang`` more, and no word is torn."""
    if console.is_terminal:
        first = " " * indent
        text = textwrap.fill(
            text,
            max(40, console.width),
            initial_indent=first,
            subsequent_indent=first + " " * hang,
            break_long_words=False,
            break_on_hyphens=False,
        )
    else:
        text = " " * indent + text
    console.print(text, style=style or None, markup=False, soft_wrap=True)


def table(console: Console, head: Sequence[str], rows: Sequence[Sequence[str | tuple[str, str]]]) -> None:
    """Print rows under their headings, two blanks apart; a cell may be ``(text, style)``. A heading that begins with ``>`` is of
    a column that is aligned on the right."""
    from rich.text import Text

    plain = [[cell if isinstance(cell, str) else cell[0] for cell in row] for row in rows]
    right = [name.startswith(">") for name in head]
    names = [name.removeprefix(">") for name in head]
    widths = [max(len(row[n]) for row in [names, *plain]) for n in range(len(head))]
    for row in ([(name, "dim") for name in names], *rows):
        line = Text(" ")
        for cell, width, to_right in zip(row, widths, right, strict=True):
            text, style = (cell, "") if isinstance(cell, str) else cell
            gap = " " * (width - len(text))
            line.append(" " + gap if to_right else " ").append(text, style).append(" " if to_right else gap + " ")
        line.rstrip()
        console.print(line, soft_wrap=True)

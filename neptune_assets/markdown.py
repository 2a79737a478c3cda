"""Markdown tables whose cells show text as it is, whatever names runs and attributes have. Knows nothing of Dagster."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Final

Cell = Callable[[str, int], str]
"""Makes a text safe for where it is shown, cut at a number of characters."""

ROWS_SHOWN: Final = 50
_CELL: Final = 200


def escape(text: str, limit: int = 60) -> str:
    """Return text that Markdown and HTML show as it is, on one line, cut at ``limit`` characters.

    ASCII punctuation becomes character references, which can never be markup, table borders or links; control
    and formatting characters, which could turn a line around, become the replacement character.
    """
    text = shorten(text, limit)
    return "".join(
        f"&#{ord(char)};" if char.isascii() and not (char.isalnum() or char in " -/") else char for char in text
    )


def shorten(text: str, limit: int) -> str:
    """Return one line of at most ``limit`` characters that show: the beginning and the end of longer text."""
    if len(text) > limit:
        half = (limit - 1) // 2
        text = f"{text[: limit - 1 - half]}…{text[len(text) - half :]}"
    return "".join(
        "\ufffd" if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} else char for char in text
    )


def plain(text: str, limit: int = 60) -> str:
    """Return one line for a terminal, cut at ``limit`` characters; nothing in it ends a table's cell."""
    return shorten(text, limit).replace("|", "\\|")


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    cell: Callable[[str, int], str] = escape,
    more: str = "",
    width: int = _CELL,
) -> str:
    """Return a Markdown table of at most 50 rows; cells are escaped so that no name can break or script it.

    ``more`` names where the rows are that are not shown. Cells are cut at ``width`` characters.
    """
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cell(str(item), width) for item in row) + " |" for row in rows[:ROWS_SHOWN]]
    if len(rows) > ROWS_SHOWN:
        lines.append(f"\n{len(rows) - ROWS_SHOWN:,} more{more and ' ' + more}.")
    return "\n".join(lines)


def size_text(size: int) -> str:
    """Return a number of bytes for people."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:,.0f} {unit}" if unit == "bytes" else f"{amount:,.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} TiB"


def duration_text(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 1:
        return "less than a second"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

"""Series that are no metrics: texts as W&B tables, histograms within W&B's 512 bins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa

from neptune_assets.targets.wandb.columns import NO_TIME, microsteps, milliseconds, plain, present
from neptune_assets.targets.wandb.records import json_text
from neptune_assets.targets.wandb.texts import seconds_text, step_text

MAX_BINS: Final = 512
TABLE_ROWS: Final = 10_000
"""Rows of one table: W&B shows no more. A longer series is several tables, one after the other, under one key."""
TABLE_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Text:
    """One entry of a string series; ``step`` in micro-steps, ``time`` in milliseconds."""

    path: str
    step: int | None
    time: int | None
    value: str | None


def texts(rows: pa.RecordBatch) -> Iterator[Text]:
    """Yield the entries of string series that a batch of their rows holds."""
    for path, step, has_step, time, value in zip(
        plain(rows.column("attribute_path")).to_pylist(),
        microsteps(rows.column("step")).tolist(),
        present(rows.column("step")).tolist(),
        milliseconds(rows.column("timestamp")).tolist(),
        plain(rows.column("string_value")).to_pylist(),
        strict=True,
    ):
        yield Text(path, step if has_step else None, None if time == NO_TIME else time, value)


def text_row(text: Text) -> str:
    """Return the JSON of an entry as a row of a table: step, time in seconds, value."""
    step = "null" if text.step is None else step_text(text.step)
    time = "null" if text.time is None else seconds_text(text.time)
    return f"[{step},{time},{json.dumps(text.value, ensure_ascii=False)}]"


class TableFile:
    """One W&B table of one attribute being written, row by row."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self.name = path, name
        self._file: IO[str] = path.open("x", encoding="utf-8", newline="")
        self._file.write('{"columns":["step","timestamp","value"],"data":[')
        self.rows = 0
        self.bytes = 0
        self.last: Text | None = None

    def add(self, text: Text) -> None:
        """Write one row."""
        row = text_row(text)
        self._file.write(f",{row}" if self.rows else row)
        self.rows += 1
        self.bytes += len(row)
        self.last = text

    @property
    def full(self) -> bool:
        """True if the next row belongs into another table."""
        return self.rows >= TABLE_ROWS or self.bytes >= TABLE_BYTES

    def close(self) -> tuple[int, str]:
        """Finish the file; return size and sha256."""
        self._file.write("]}")
        self._file.close()
        with self._path.open("rb") as file:
            return self._path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram as W&B holds it. ``exact`` is False if it had to be changed, and ``reason`` says how."""

    json: str
    exact: bool
    reason: str = ""


def histogram(value: Mapping[str, Any] | None) -> Histogram | None:
    """Return a Neptune histogram for the history; None if it is none (no value, or edges that do not fit)."""
    if value is None or value["edges"] is None or value["values"] is None:
        return None
    edges, counts, kind = list(value["edges"]), list(value["values"]), value["type"]
    if len(edges) != len(counts) + 1 or not counts or None in edges or None in counts:
        return None
    reason = ""
    if len(counts) > MAX_BINS:
        edges, counts = rebinned(edges, counts, density=kind == "DENSITY")
        reason = f"had more than {MAX_BINS} bins and were joined into that many"
    elif kind == "DENSITY":
        reason = "are densities, which W&B shows as counts"
    text = json_text({"_type": "histogram", "values": counts, "bins": edges})
    return Histogram(text, exact=not reason, reason=reason)


def rebinned(edges: list[float], values: list[float], *, density: bool) -> tuple[list[float], list[float]]:
    """Join neighbouring bins until there are 512; counts are summed, densities averaged by width."""
    cuts = [round(number * len(values) / MAX_BINS) for number in range(MAX_BINS + 1)]
    joined = []
    for begin, end in pairwise(cuts):
        if density:
            widths = [edges[i + 1] - edges[i] for i in range(begin, end)]
            total = sum(widths)
            mass = sum(width * value for width, value in zip(widths, values[begin:end], strict=True))
            joined.append(mass / total if total else max(values[begin:end]))
        else:
            joined.append(sum(values[begin:end]))
    return [edges[cut] for cut in cuts], joined

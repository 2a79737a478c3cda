"""One run of the store as rows of the lake's schema: system values, single values, then points in key order."""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa

from neptune_assets.schema import FILE_TYPES, SERIES_TYPES, AttributeType
from neptune_assets.server.store.runs import Run
from neptune_assets.server.store.system import system_attributes
from neptune_assets.server.store.values import decode
from neptune_assets.sources.protocol import Issue, RunEnd
from neptune_assets.sources.rows import RowBuilder

FILE: Final = "file"
"""What a reference to one file begins with, before a colon and its key."""
MEMBERS: Final = "members"
"""What a reference to a file set or an artifact begins with, before a colon and the attribute's path."""

_FETCH: Final = 16_384
_ATTRIBUTES: Final = (
    "SELECT id, path, type FROM attributes AS attribute WHERE run = ? AND"
    # The value of a series is how it is to be drawn: nothing to keep without points.
    " ((value IS NOT NULL AND type NOT LIKE '%series')"
    " OR EXISTS (SELECT 1 FROM points WHERE points.attribute = attribute.id)"
    " OR EXISTS (SELECT 1 FROM objects WHERE objects.attribute = attribute.id)) ORDER BY path"
)
"""Attributes that hold anything: of a series that has previews only, nothing is final yet."""


class RunReading:
    """Reads one run; :meth:`end` tells what there was, once :meth:`batches` is through.

    What is promised is counted by the database before the first row is read.
    """

    def __init__(
        self, connection: sqlite3.Connection, project_id: str, run: Run, keep: Callable[[str, str], bool]
    ) -> None:
        self._connection = connection
        self._run = run
        self._keep = keep
        self._rows = RowBuilder(project_id, run.run_id, keep)
        self._errors: list[Issue] = []
        self._promised: dict[str, int] = {}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows, in bounded memory."""
        kept = [
            item
            for item in self._connection.execute(_ATTRIBUTES, (self._run.id,))
            if self._keep(item["path"], item["type"])
        ]
        written = {item["path"] for item in kept}
        uuid = str(self._connection.execute("SELECT uuid FROM project").fetchone()[0])
        system = [
            (path, kind, value)
            for path, (kind, value) in system_attributes(self._run, uuid).items()
            if path not in written and self._keep(path, kind)
        ]
        for kind in [*(item["type"] for item in kept), *(str(kind) for _, kind, _ in system)]:
            self._promised[kind] = self._promised.get(kind, 0) + 1
        for path, kind, value in system:
            self._value(path, kind, value)
        for item in kept:
            path, kind = item["path"], AttributeType(item["type"])
            if kind is AttributeType.FLOAT_SERIES:
                yield from self._floats(item["id"], path)
            elif kind in SERIES_TYPES:
                yield from self._objects(item["id"], path, kind)
            else:
                (value,) = self._connection.execute(
                    "SELECT value FROM attributes WHERE id = ?", (item["id"],)
                ).fetchone()
                self._value(path, kind, _reference(path, kind, value) if kind in FILE_TYPES else decode(kind, value))
            yield from self._rows.drain()
        yield from self._rows.flush()

    def end(self) -> RunEnd:
        """The mark that ends the run."""
        return RunEnd(self._run.run_id, promised=self._promised, errors=self._errors)

    def _value(self, path: str, kind: AttributeType, value: object) -> None:
        try:
            self._rows.value(kind, path, value)
        except (ValueError, OverflowError, TypeError) as error:
            self._errors.append(Issue(f"The value of {path!r} cannot be kept: {error}.", path, str(kind)))

    def _floats(self, identifier: int, path: str) -> Iterator[pa.RecordBatch]:
        cursor = self._connection.execute(
            "SELECT step, time, bits FROM points WHERE attribute = ? ORDER BY step", (identifier,)
        )
        while rows := cursor.fetchmany(_FETCH):
            steps, times, bits = zip(*rows, strict=True)
            self._rows.float_series(path, array("q", steps), array("q", times), array("q", bits))
            yield from self._rows.drain()

    def _objects(self, identifier: int, path: str, kind: AttributeType) -> Iterator[pa.RecordBatch]:
        cursor = self._connection.execute(
            "SELECT step, time, value FROM objects WHERE attribute = ? ORDER BY step", (identifier,)
        )
        for step, time, value in cursor:
            self._rows.point(kind, path, step, time, _object(kind, value))
            yield from self._rows.drain()


def members_of(connection: sqlite3.Connection, run: Run, path: str) -> list[tuple[str, str]] | None:
    """Return (path inside the set, sha256) of each file of a file set; None if the run has no such set."""
    row = connection.execute(
        "SELECT id FROM attributes WHERE run = ? AND path = ? AND type = 'file_set'", (run.id, path)
    ).fetchone()
    if row is None:
        return None
    members = connection.execute(
        "SELECT path, sha256 FROM file_set_files WHERE attribute = ? AND sha256 IS NOT NULL ORDER BY path", (row["id"],)
    )
    return [(item["path"], item["sha256"]) for item in members]


def artifact_files_of(connection: sqlite3.Connection, run: Run, path: str) -> str | None:
    """Return the list of an artifact's files as JSON; None if the run has no such artifact, or no list of it came."""
    row = connection.execute(
        "SELECT artifacts.files FROM attributes JOIN artifacts ON artifacts.hash = json_extract(value, '$.hash')"
        " WHERE run = ? AND path = ? AND type = 'artifact'",
        (run.id, path),
    ).fetchone()
    return None if row is None else row["files"]


def _reference(path: str, kind: AttributeType, value: str) -> str:
    return f"{FILE}:{json.loads(value)['path']}" if kind is AttributeType.FILE else f"{MEMBERS}:{path}"


def _object(kind: AttributeType, value: str) -> object:
    if kind is AttributeType.STRING_SERIES:
        return value
    content = json.loads(value)
    if kind is AttributeType.FILE_SERIES:
        return f"{FILE}:{content['path']}"
    return content["type"], content["edges"], content["values"]

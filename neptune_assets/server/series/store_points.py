"""Points of a run of the store, by primary key: only those asked for are read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

import numpy as np

from neptune_assets.schema import AttributeType
from neptune_assets.server.catalog.runs import Run
from neptune_assets.server.series.points import NO_POINTS, FloatPoints, ObjectPoint, Window
from neptune_assets.server.store.checksums import NOT_RECORDED, OBJECT, damaged_points, intact
from neptune_assets.server.store.database import RESTORE, DamagedError

_PIECE: Final = 65_536
_INTACT: Final = intact("objects", *OBJECT)


def attribute_of(connection: sqlite3.Connection, run: Run, path: str, kind: AttributeType) -> int | None:
    """Return the number of a run's attribute, None if it has none of that type."""
    row = connection.execute(
        "SELECT id FROM attributes WHERE run = ? AND path = ? AND type = ?", (run.store_id, path, kind.value)
    ).fetchone()
    return None if row is None else int(row[0])


def float_points(connection: sqlite3.Connection, attribute: int, window: Window) -> FloatPoints:
    """Return final points in a window."""
    rows = _rows(connection, f"step, time, bits, ifnull(checksum, {NOT_RECORDED})", "points", attribute, window)
    flat = np.fromiter(chain.from_iterable(rows), np.int64)
    if not len(flat):
        return NO_POINTS
    table = flat.reshape(-1, 4)
    if damaged_points(attribute, *table.T).any():
        raise DamagedError("Points of a series are damaged in the store.", hint=RESTORE)
    if window.last:
        table = table[::-1]
    steps, times, bits = (np.ascontiguousarray(table[:, column]) for column in range(3))
    return FloatPoints(steps, times, bits.view(np.float64))


def float_pieces(connection: sqlite3.Connection, attribute: int, window: Window) -> Iterator[FloatPoints]:
    """Yield final points in a window, some thousands at a time, those that the window wants first first."""
    while not window.empty:
        limit = _PIECE if window.limit is None else min(_PIECE, window.limit)
        piece = float_points(connection, attribute, Window(window.low, window.high, limit, window.last))
        if len(piece):
            yield piece
        if len(piece) < limit:
            return
        window = window.fewer(len(piece))
        if window.last:
            window = window.narrowed(None, int(piece.steps[0]) - 1)
        else:
            window = window.narrowed(int(piece.steps[-1]) + 1, None)


def with_previews(
    connection: sqlite3.Connection, attribute: int, window: Window, final: Iterable[FloatPoints]
) -> Iterator[FloatPoints]:
    """Add the points that are not final to pieces of a window; they come after all final ones."""
    rows = list(_rows(connection, "step, time, bits, completion", "previews", attribute, window))
    previews = []
    if rows:
        table = np.array(rows, np.int64)
        if window.last:
            table = table[::-1]
        steps, times, bits, completion = (np.ascontiguousarray(table[:, column]) for column in range(4))
        ratios = completion.view(np.float64).astype(np.float32)
        previews.append(FloatPoints(steps, times, bits.view(np.float64), ratios))
    for piece in chain(previews, final) if window.last else chain(final, previews):
        some = piece.within(window)
        if len(some):
            yield some
        window = window.fewer(len(some))


def object_points(
    connection: sqlite3.Connection, attribute: int, kind: AttributeType, window: Window
) -> list[ObjectPoint]:
    """Return points of a series of strings, histograms or files in a window, ascending."""
    found = _rows(connection, f"step, time, value, {_INTACT}", "objects", attribute, window)
    rows = []
    for step, time, value, is_intact in found:
        if not is_intact:
            raise DamagedError("Values of a series are damaged in the store.", hint=RESTORE)
        rows.append((step, time, value))
    if window.last:
        rows.reverse()
    plain = kind is AttributeType.STRING_SERIES
    return [ObjectPoint(step, time, value if plain else json.loads(value)) for step, time, value in rows]


def _rows(connection: sqlite3.Connection, columns: str, table: str, attribute: int, window: Window) -> sqlite3.Cursor:
    sql, values = f"SELECT {columns} FROM {table} WHERE attribute = ?", [attribute]  # noqa: S608
    if window.low is not None:
        sql += " AND step >= ?"
        values.append(window.low)
    if window.high is not None:
        sql += " AND step <= ?"
        values.append(window.high)
    sql += f" ORDER BY step {'DESC' if window.last else 'ASC'}"
    if window.limit is not None:
        sql += " LIMIT ?"
        values.append(window.limit)
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor.execute(sql, values)

"""Read from the points what the catalog does not have yet: how series end, their aggregates, variances."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.errors import LakeDamagedError
from neptune_assets.lake.moments import Moments
from neptune_assets.schema import AttributeType
from neptune_assets.server.catalog.pending import AGGREGATES, LAST
from neptune_assets.server.series.points import FloatPoints, Window
from neptune_assets.server.store.database import DamagedError

if TYPE_CHECKING:
    from neptune_assets.server.catalog.catalog import Catalog
    from neptune_assets.server.catalog.runs import Run
    from neptune_assets.server.series.reader import SeriesReader

_log = logging.getLogger(__name__)
_SCHEMA: Final = pa.schema(
    [
        ("run", pa.int32()),
        ("name", pa.int32()),
        ("number", pa.float64()),
        ("text", pa.string()),
        ("least", pa.float64()),
        ("greatest", pa.float64()),
        ("mean", pa.float64()),
        ("variance", pa.float64()),
        ("points", pa.int64()),
        ("last_step", pa.int64()),
        ("detail", pa.string()),
        ("previewed", pa.bool_()),
    ]
)
_BATCH: Final = 5_000
_ROOM: Final = 2.0**-64


def fill(
    catalog: Catalog,
    reader: SeriesReader,
    project: str,
    names: Collection[int] | None,
    runs: Collection[int] | None = None,
    what: int = AGGREGATES | LAST,
) -> None:
    """Complete these attributes of a project, all if None, of these runs, all if None; ``what`` are pending bits."""
    series = [row[:2] for row in _pending(catalog, project, names, runs, what)]
    for batch in (series[start : start + _BATCH] for start in range(0, len(series), _BATCH)):
        # What is read from the points later is saved later, or a figure would go back; who had to wait looks again.
        with catalog.claims.of(batch):
            version = catalog.version(project)
            found = _pending(catalog, project, {name for _, name in batch}, {number for number, _ in batch}, what)
            claimed = set(batch)
            rows: list[dict[str, Any]] = []
            for number, name, path, kind, scope in found:
                run = catalog.runs(project, scope).by_number(number)
                if run is None or (number, name) not in claimed:
                    continue
                try:
                    measured = _measured(reader, run, path, AttributeType(kind))
                except (DamagedError, LakeDamagedError) as error:
                    # No figures rather than wrong ones; tables of the other series go on.
                    _log.error("Series %r of run %r of %s has no figures: %s", path, run.run_id, project, error)
                    measured = {}
                rows.append({"run": number, "name": name, **measured})
            if rows:
                _save(catalog, project, version, rows)


class Claims:
    """Series whose points somebody reads to save their figures; each is claimed by one thread at a time."""

    def __init__(self) -> None:
        self._held: set[tuple[int, int]] = set()
        self._changed = threading.Condition()

    @contextmanager
    def of(self, series: Collection[tuple[int, int]]) -> Iterator[None]:
        """Hold these series, given by numbers of run and name, when nobody else holds any of them."""
        with self._changed:
            self._changed.wait_for(lambda: self._held.isdisjoint(series))
            self._held.update(series)
        try:
            yield
        finally:
            with self._changed:
                self._held.difference_update(series)
                self._changed.notify_all()


def _pending(
    catalog: Catalog, project: str, names: Collection[int] | None, runs: Collection[int] | None, what: int
) -> list[tuple[int, int, str, str, str]]:
    """Return run, name, path, type and scope of what is still to be read."""
    sql = (
        "SELECT a.run, a.name, n.path, n.type, r.scope FROM attributes a "
        "JOIN names n USING (name) JOIN runs r USING (run) WHERE r.project = ? AND (a.pending & ?) <> 0"
    )
    parameters: list[Any] = [project, what]
    for column, wanted in (("a.name", names), ("a.run", runs)):
        if wanted is not None:
            sql += f" AND {column} IN (SELECT unnest(?::INTEGER[]))"
            parameters.append(list(wanted))
    with catalog.reading() as con:
        return con.execute(f"{sql} ORDER BY a.run, n.path", parameters).fetchall()


def _measured(reader: SeriesReader, run: Run, path: str, kind: AttributeType) -> dict[str, Any]:
    if kind is AttributeType.FLOAT_SERIES:
        return aggregates(lambda: reader.float_pieces(run, path, previews=True))
    last = reader.objects(run, path, kind, Window(limit=1))
    if not last:
        return {}
    value = last[0].value
    if kind is AttributeType.STRING_SERIES:
        return {"last_step": last[0].step, "text": value}
    return {"last_step": last[0].step, "detail": json.dumps(value)}


def aggregates(pieces: Callable[[], Iterable[FloatPoints]]) -> dict[str, Any]:
    """Return a float series in short: least, greatest, mean and variance are of finite values.

    ``pieces`` gives the points in ascending order; it is called again for values whose squares have no room.
    """
    found: dict[str, Any] = {"points": 0, "previewed": False}
    bounds: tuple[float, float] | None = None
    moments = Moments()
    for piece in pieces():
        found["points"] += len(piece)
        found["number"], found["last_step"] = float(piece.values[-1]), int(piece.steps[-1])
        found["previewed"] |= piece.previews is not None
        finite = piece.values[np.isfinite(piece.values)]
        if len(finite):
            least, greatest = float(finite.min()), float(finite.max())
            bounds = (least, greatest) if bounds is None else (min(least, bounds[0]), max(greatest, bounds[1]))
            moments.add(finite, _mean(finite))
    if not found["points"]:
        return {"points": 0}
    if bounds is None:
        return found
    found["least"], found["greatest"] = bounds
    mean, variance = moments.mean, moments.variance(*bounds)
    if variance is None:
        mean, variance = _scaled(pieces(), *bounds)
    found["mean"], found["variance"] = min(bounds[1], max(bounds[0], mean)), variance
    return found


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Return the mean of finite values; the factor is exact and keeps the sum of the largest doubles finite."""
    return float((values * _ROOM).sum()) / len(values) / _ROOM


def _scaled(pieces: Iterable[FloatPoints], least: float, greatest: float) -> tuple[float, float]:
    """Return mean and variance by way of values that are not above 1: powers of two are exact."""
    exponent = int(np.frexp(max(abs(least), abs(greatest)))[1])
    moments = Moments()
    for piece in pieces:
        finite = np.ldexp(piece.values[np.isfinite(piece.values)], -exponent)
        if len(finite):
            moments.add(finite, float(finite.mean()))
    variance = moments.variance(float(np.ldexp(least, -exponent)), float(np.ldexp(greatest, -exponent))) or 0.0
    with np.errstate(over="ignore"):
        return float(np.ldexp(moments.mean, exponent)), float(np.ldexp(variance, 2 * exponent))


def _save(catalog: Catalog, project: str, version: int, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    columns = [name for name in _SCHEMA.names if name not in {"run", "name"}]
    with catalog.writing() as con:
        con.register("measured", table)
        # What was logged since the points were read is not in these figures: it stays pending.
        con.execute(
            f"UPDATE attributes SET {', '.join(f'{name} = m.{name}' for name in columns)}, "  # noqa: S608
            "pending = CASE WHEN ? THEN 0 ELSE pending END "
            "FROM measured m WHERE attributes.run = m.run AND attributes.name = m.name",
            [catalog.version(project) == version],
        )
        con.unregister("measured")

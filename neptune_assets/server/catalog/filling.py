"""Read from the points what the catalog does not have yet: how series end, their aggregates, variances."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from neptune_assets.schema import AttributeType
from neptune_assets.server.catalog.pending import AGGREGATES, LAST
from neptune_assets.server.series.points import FloatPoints, Window

if TYPE_CHECKING:
    from neptune_assets.server.catalog.catalog import Catalog
    from neptune_assets.server.catalog.runs import Run
    from neptune_assets.server.series.reader import SeriesReader

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


def fill(
    catalog: Catalog,
    reader: SeriesReader,
    project: str,
    names: Collection[int] | None,
    runs: Collection[int] | None = None,
    what: int = AGGREGATES | LAST,
) -> None:
    """Complete these attributes of a project, all if None, of these runs, all if None; ``what`` are pending bits."""
    sql = (
        "SELECT a.run, a.name, n.path, n.type, r.scope FROM attributes a "
        "JOIN names n USING (name) JOIN runs r USING (run) WHERE r.project = ? AND (a.pending & ?) <> 0"
    )
    parameters: list[Any] = [project, what]
    for column, wanted in (("a.name", names), ("a.run", runs)):
        if wanted is not None:
            sql += f" AND {column} IN (SELECT unnest(?::INTEGER[]))"
            parameters.append(list(wanted))
    version = catalog.version(project)
    with catalog.reading() as con:
        found = con.execute(f"{sql} ORDER BY a.run, n.path", parameters).fetchall()
    rows: list[dict[str, Any]] = []
    for number, name, path, kind, scope in found:
        run = catalog.runs(project, scope).by_number(number)
        if run is not None:
            rows.append({"run": number, "name": name, **_measured(reader, run, path, AttributeType(kind))})
        if len(rows) >= _BATCH:
            _save(catalog, project, version, rows)
            rows.clear()
    if rows:
        _save(catalog, project, version, rows)


def _measured(reader: SeriesReader, run: Run, path: str, kind: AttributeType) -> dict[str, Any]:
    if kind is AttributeType.FLOAT_SERIES:
        return aggregates(reader.floats(run, path, previews=True))
    last = reader.objects(run, path, kind, Window(limit=1))
    if not last:
        return {}
    value = last[0].value
    if kind is AttributeType.STRING_SERIES:
        return {"last_step": last[0].step, "text": value}
    return {"last_step": last[0].step, "detail": json.dumps(value)}


def aggregates(points: FloatPoints) -> dict[str, Any]:
    """Return a float series in short: least, greatest, mean and variance are of finite values."""
    if not len(points):
        return {"points": 0}
    finite = points.values[np.isfinite(points.values)]
    found: dict[str, Any] = {
        "number": float(points.values[-1]),
        "last_step": int(points.steps[-1]),
        "points": len(points),
        "previewed": points.previews is not None,
    }
    if len(finite):
        least, greatest = float(finite.min()), float(finite.max())
        # Powers of two are exact and leave room: sums of the largest doubles stay finite.
        exponent = int(np.frexp(max(abs(least), abs(greatest)))[1])
        scaled = np.ldexp(finite, -exponent)
        mean = float(scaled.mean())
        variance = float(np.mean(np.square(scaled - mean)))
        found["least"], found["greatest"] = least, greatest
        found["mean"] = min(greatest, max(least, float(np.ldexp(mean, exponent))))
        with np.errstate(over="ignore"):
            found["variance"] = float(np.ldexp(variance, 2 * exponent))
    return found


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

"""Series a page at a time, by offset, as 2.x clients read them; a page begins at the step where the last one ended."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from neptune_assets.schema import MICROSTEPS, SERIES_TYPES, AttributeType
from neptune_assets.server.catalog.search import NameFilter, Value, values
from neptune_assets.server.neptune2.responses import NotFoundError
from neptune_assets.server.series import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neptune_assets.server.catalog.tables import Run
    from neptune_assets.server.series import FloatPoints, ObjectPoint
    from neptune_assets.server.service import Service


def series_configs(service: Service, run: Run) -> dict[str, dict[str, Any]]:
    """Return minimum, maximum and unit by path, of those float series of a run that have any."""
    if run.origin != "store":
        return {}
    with service.catalog.store_of(run).read() as connection:
        rows = connection.execute(
            "SELECT path, value FROM attributes WHERE run = ? AND type = ? AND value IS NOT NULL",
            (run.store_id, AttributeType.FLOAT_SERIES.value),
        ).fetchall()
    return {path: json.loads(value) for path, value in rows}


MAX_PAGE: Final = 10_000
_KNOWN: Final = 4_096
_KNOWN_SERIES: Final = 65_536

_Key = tuple[int, Any, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """Which page: from an offset on, or after a step (in units, not millionths), so many points."""

    offset: int = 0
    limit: int = 1_000
    after_step: float | None = None


class SeriesPages:
    """Serves pages; keeps where the last ones ended, so that the next ones need not be counted from the beginning."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ends: OrderedDict[tuple[_Key, int], int] = OrderedDict()
        self._totals: OrderedDict[_Key, int] = OrderedDict()
        self._values: OrderedDict[tuple[_Key, AttributeType], Value] = OrderedDict()
        self._guard = threading.Lock()

    def floats(self, run: Run, path: str, asked: Asked) -> tuple[int, FloatPoints]:
        """Return the number of all points and those of the page. Raises NotFoundError if there is no such series."""
        total = self._value(run, path, AttributeType.FLOAT_SERIES).points or 0
        key = (run.number, run.version, path)
        low, skipped = self._start(key, asked)
        limit = min(asked.limit, MAX_PAGE)
        window = Window(low=low, limit=skipped + limit, last=False)
        points = self._service.series.floats(run, path, window, previews=True).slice(skipped, skipped + limit)
        if len(points) and asked.after_step is None:
            self._remember(key, asked.offset + len(points), int(points.steps[-1]))
        return total, points

    def objects(self, run: Run, path: str, kind: AttributeType, asked: Asked) -> tuple[int, Sequence[ObjectPoint]]:
        """Return the number of all strings (or files) and those of the page. Raises NotFoundError if there are none."""
        value = self._value(run, path, kind)
        key = (run.number, run.version, path)
        total = self._total(key, run, value)
        low, skipped = self._start(key, asked)
        limit = min(asked.limit, MAX_PAGE)
        window = Window(low=low, limit=skipped + limit, last=False)
        points = self._service.series.objects(run, path, kind, window)[skipped : skipped + limit]
        if points and asked.after_step is None:
            self._remember(key, asked.offset + len(points), points[-1].step)
        return total, points

    def expect(self, run: Run, found: Sequence[Value]) -> None:
        """Keep what is known of a run's series: whoever asks for all attributes mostly reads the series next."""
        with self._guard:
            for value in found:
                if value.type in SERIES_TYPES:
                    self._values[(run.number, run.version, value.path), value.type] = value
            while len(self._values) > _KNOWN_SERIES:
                self._values.popitem(last=False)

    def _value(self, run: Run, path: str, kind: AttributeType) -> Value:
        with self._guard:
            known = self._values.get(((run.number, run.version, path), kind))
        if known is not None:
            return known
        found, _ = values(self._service.catalog, self._service.series, [run], NameFilter(paths=[path], types=[kind]))
        if not found:
            raise NotFoundError(f"There is no series of type {kind.value} at {path!r}.")
        return found[0]

    def _total(self, key: _Key, run: Run, value: Value) -> int:
        if value.points is not None:
            return value.points
        with self._guard:
            known = self._totals.get(key)
        if known is None:
            known = self._count(run, value)
            with self._guard:
                self._totals[key] = known
                while len(self._totals) > _KNOWN:
                    self._totals.popitem(last=False)
        return known

    def _count(self, run: Run, value: Value) -> int:
        if run.origin == "store" and run.parent is None:
            with self._service.catalog.store_of(run).read() as connection:
                row = connection.execute(
                    "SELECT count(*) FROM objects JOIN attributes ON attributes.id = objects.attribute"
                    " WHERE run = ? AND path = ?",
                    (run.store_id, value.path),
                ).fetchone()
            return int(row[0])
        return len(self._service.series.objects(run, value.path, value.type))

    def _start(self, key: _Key, asked: Asked) -> tuple[int | None, int]:
        """Return the step to read from, and how many points to pass over after it."""
        if asked.after_step is not None:
            return round(asked.after_step * MICROSTEPS) + 1, 0
        if asked.offset == 0:
            return None, 0
        with self._guard:
            end = self._ends.get((key, asked.offset))
        return (None, asked.offset) if end is None else (end + 1, 0)

    def _remember(self, key: _Key, offset: int, step: int) -> None:
        with self._guard:
            self._ends[(key, offset)] = step
            while len(self._ends) > _KNOWN:
                self._ends.popitem(last=False)

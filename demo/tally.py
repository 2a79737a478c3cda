"""What the recording scripts logged, counted while they logged it: the demo's expected content.

This is written beside the calls to Neptune's clients and never looks at what they stored, so a test can hold the
recordings, and the lake made from them, against it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Json = dict[str, Any]


@dataclass
class _Series:
    points: list[tuple[float | None, Any]] = field(default_factory=list)


@dataclass
class Tally:
    """Everything one run logged. Attribute types are spelled as in the lake's ``attribute_type`` column."""

    name: str
    tags: list[str] = field(default_factory=list)
    group_tags: list[str] = field(default_factory=list)
    parent: str | None = None
    fork_step: float | None = None
    failed: bool = False
    values: dict[str, tuple[str, Any]] = field(default_factory=dict)
    series: dict[str, tuple[str, _Series]] = field(default_factory=dict)

    def value(self, path: str, kind: str, value: Any) -> None:
        """Note a single value; a later one replaces it, as in Neptune."""
        self.values[path] = (kind, value)

    def point(self, path: str, kind: str, step: float | None, value: Any) -> None:
        """Note one point of a series; ``step`` is None where the client was left to number the points."""
        self.series.setdefault(path, (kind, _Series()))[1].points.append((step, value))

    def forget(self, path: str) -> None:
        """Note that an attribute was deleted."""
        self.values.pop(path, None)
        self.series.pop(path, None)

    def to_json(self) -> Json:
        """Return the run as JSON: counts by attribute type, values, metrics in numbers, files by size and sha256."""
        attributes: dict[str, int] = {}
        rows: dict[str, int] = {}
        for kind, _ in self.values.values():
            attributes[kind] = attributes.get(kind, 0) + 1
            rows[kind] = rows.get(kind, 0) + 1
        for kind, series in self.series.values():
            attributes[kind] = attributes.get(kind, 0) + 1
            rows[kind] = rows.get(kind, 0) + len(series.points)
        return {
            "name": self.name,
            "tags": sorted(self.tags),
            "group_tags": sorted(self.group_tags),
            "parent": self.parent,
            "fork_step": self.fork_step,
            "failed": self.failed,
            "attributes": dict(sorted(attributes.items())),
            "rows": dict(sorted(rows.items())),
            "parameters": {path: _plain(value) for path, (kind, value) in sorted(self.values.items()) if _single(kind)},
            "files": {
                path: _files(kind, value) for path, (kind, value) in sorted(self.values.items()) if not _single(kind)
            },
            "metrics": {path: _metric(s.points) for path, (kind, s) in self._of("float_series")},
            "texts": {path: [[step, text] for step, text in s.points] for path, (kind, s) in self._of("string_series")},
            "histograms": {path: len(s.points) for path, (kind, s) in self._of("histogram_series")},
            "pictures": {
                path: [{"step": step, **fingerprint(data)} for step, data in s.points]
                for path, (kind, s) in self._of("file_series")
            },
        }

    def _of(self, wanted: str) -> list[tuple[str, tuple[str, _Series]]]:
        return [item for item in sorted(self.series.items()) if item[1][0] == wanted]


def fingerprint(data: bytes) -> Json:
    """Return size and sha256 of some bytes."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _single(kind: str) -> bool:
    return kind not in {"file", "file_set", "artifact"}


def _files(kind: str, value: Any) -> Any:
    if kind == "file":
        return fingerprint(value)
    return {name: fingerprint(data) for name, data in sorted(value.items())}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not isinstance(value, bool):
        return number(value)
    if isinstance(value, list | set | tuple):
        return sorted(value)
    return value


def number(value: float) -> float | str:
    """Return a number as JSON can hold it: itself, or NaN, Infinity, -Infinity as text."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _metric(points: list[tuple[float | None, float]]) -> Json:
    values = [value for _, value in points]
    finite = [value for value in values if math.isfinite(value)]
    return {
        "count": len(values),
        "nan": sum(map(math.isnan, values)),
        "positive_infinity": values.count(math.inf),
        "negative_infinity": values.count(-math.inf),
        "first": number(values[0]),
        "last": number(values[-1]),
        "smallest_finite": min(finite, default=None),
        "largest_finite": max(finite, default=None),
        "sum_of_finite": math.fsum(finite),
        "first_step": points[0][0],
        "last_step": points[-1][0],
    }

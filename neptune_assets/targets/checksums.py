"""Checksums of many series at a time: what is compared between the lake and what was read back from a target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from neptune_assets.targets.columns import Ints

Floats = npt.NDArray[np.float64]
_COMPARED: Final = (
    ("points", "count"),
    ("first micro-step", "first"),
    ("last micro-step", "last"),
    ("minimum", "low"),
    ("maximum", "high"),
    ("checksum", "checksum"),
)


class SeriesChecksums:
    """Counts, ends, extremes and a checksum for each of many series; memory grows with series, not with points.

    The checksum is over (step, bits of the value) and does not depend on the order of points.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.count: Ints = np.zeros(0, dtype=np.int64)
        self.first: Ints = np.zeros(0, dtype=np.int64)
        self.last: Ints = np.zeros(0, dtype=np.int64)
        self.low: Floats = np.zeros(0)
        self.high: Floats = np.zeros(0)
        self.checksum: npt.NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)

    @property
    def names(self) -> list[str]:
        """The series, in the order of their first points."""
        return list(self._numbers)

    def add(self, codes: Ints, names: Sequence[str], steps: Ints, values: Floats) -> None:
        """Take points in: ``names[codes[n]]`` has ``values[n]`` at micro-step ``steps[n]``; no name twice."""
        if len(codes) == 0:
            return
        mixed = _mixed(steps, values)
        if not (codes[1:] >= codes[:-1]).all():
            small = codes.astype(np.uint16) if len(names) < 1 << 16 else codes  # sixteen bits are sorted by counting
            order = np.argsort(small, kind="stable")
            codes, steps, values, mixed = codes[order], steps[order], values[order], mixed[order]
        starts = np.concatenate(([0], np.flatnonzero(np.diff(codes)) + 1))
        at = self._places([names[code] for code in codes[starts].tolist()])
        self.count[at] += np.diff(np.append(starts, len(codes)))
        self.first[at] = np.minimum(self.first[at], np.minimum.reduceat(steps, starts))
        self.last[at] = np.maximum(self.last[at], np.maximum.reduceat(steps, starts))
        self.low[at] = np.fmin(self.low[at], np.fmin.reduceat(values, starts))
        self.high[at] = np.fmax(self.high[at], np.fmax.reduceat(values, starts))
        self.checksum[at] += np.add.reduceat(mixed, starts)

    def differences(self, other: SeriesChecksums) -> Iterator[tuple[str, str]]:
        """Yield (series, what is different) for all series of this or the other, ours being what the lake has."""
        for name in sorted({*self._numbers} - {*other._numbers}):
            yield name, f"points: {self.count[self._numbers[name]]} in the lake, 0 in the run"
        for name in sorted({*other._numbers} - {*self._numbers}):
            yield name, f"points: 0 in the lake, {other.count[other._numbers[name]]} in the run"
        both = sorted({*self._numbers} & {*other._numbers})
        mine = np.array([self._numbers[name] for name in both], dtype=np.int64)
        theirs = np.array([other._numbers[name] for name in both], dtype=np.int64)
        found: dict[int, str] = {}
        for name, column in _COMPARED:
            a, b = getattr(self, column)[mine], getattr(other, column)[theirs]
            for place in np.flatnonzero((a != b) & ~((a != a) & (b != b))).tolist():
                found.setdefault(place, f"{name}: {a[place]} in the lake, {b[place]} in the run")
        yield from ((both[place], found[place]) for place in sorted(found))

    def _places(self, names: Sequence[str]) -> Ints:
        """Return the place of each series, new ones appended."""
        at = np.array([self._numbers.setdefault(name, len(self._numbers)) for name in names], dtype=np.int64)
        new = len(self._numbers) - len(self.count)
        if new:
            limits = np.iinfo(np.int64)
            self.count = np.append(self.count, np.zeros(new, dtype=np.int64))
            self.first = np.append(self.first, np.full(new, limits.max, dtype=np.int64))
            self.last = np.append(self.last, np.full(new, limits.min, dtype=np.int64))
            self.low, self.high = np.append(self.low, np.full(new, np.nan)), np.append(self.high, np.full(new, np.nan))
            self.checksum = np.append(self.checksum, np.zeros(new, dtype=np.uint64))
        return at


def _mixed(steps: Ints, values: Floats) -> npt.NDArray[np.uint64]:
    """Return a well-mixed 64-bit number for each (step, value); every NaN counts as the same."""
    bits = np.where(np.isnan(values), np.nan, values).view(np.uint64)
    with np.errstate(over="ignore"):
        mixed = steps.astype(np.int64).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ bits
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: npt.NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return result

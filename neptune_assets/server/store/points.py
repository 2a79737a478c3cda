"""Points of float series on their way into the database: gathered over a transaction, written once, in key order.

Points come late when a client kept them for a while (`neptune sync` after an outage) and another one went on meanwhile.
Any step that has no point yet takes one; a point is never replaced.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import islice
from operator import lt

import numpy as np

from neptune_assets.schema import AttributeType
from neptune_assets.server.store.checksums import point_checksums
from neptune_assets.server.store.values import float_bits


class Problem(StrEnum):
    """Why something was refused."""

    TYPE_CONFLICT = "the path holds values of another type"
    DUPLICATE_POINT = "the very same point is there already"
    STEP_TAKEN = "the step holds another point"
    PREVIEW_NOT_AFTER_LAST = "a preview comes only after the last point of the series"


Problems = Counter[Problem]


class Attribute:
    """What is known of an attribute while writing; ``last_step`` is the highest in micro-steps, None without points."""

    __slots__ = ("id", "kind", "last_step")

    def __init__(self, identifier: int, kind: AttributeType, last_step: int | None) -> None:
        self.id = identifier
        self.kind = kind
        self.last_step = last_step


class Points:
    """Columns of points that are not written yet, and late points, which cannot be simply appended.

    The columns are open to a caller in a hurry: whoever appends to all four, before calling anything here, sets
    ``attribute.last_step`` as well, and only for a step after it. Everything else goes to :meth:`late`.
    """

    def __init__(self, connection: sqlite3.Connection, revision: int, previewed: set[int]) -> None:
        self._connection = connection
        self._revision = revision
        self._previewed = previewed
        self.attributes: list[int] = []
        self.steps: list[int] = []
        self.times: list[int] = []
        self.values: list[float] = []
        self._late: list[tuple[int, int, int, int]] = []

    def append(
        self, attribute: Attribute, steps: Sequence[int], times: Sequence[int], values: Iterable[float]
    ) -> Problems:
        """Take points of one series: steps in micro-steps, times in epoch ms. Says at once what was refused."""
        if not steps:
            return Problems()
        last = attribute.last_step
        if (last is None or steps[0] > last) and all(map(lt, steps, islice(steps, 1, None))):
            self.attributes.extend([attribute.id] * len(steps))
            self.steps.extend(steps)
            self.times.extend(times)
            self.values.extend(values)
            attribute.last_step = steps[-1]
            return Problems()
        late = []
        for step, time, value in zip(steps, times, values, strict=True):
            last = attribute.last_step
            if last is None or step > last:
                self.attributes.append(attribute.id)
                self.steps.append(step)
                self.times.append(time)
                self.values.append(value)
                attribute.last_step = step
            else:
                late.append((attribute.id, step, time, float_bits(value)))
        return self._fit_in(late)

    def late(self, attribute: Attribute, step: int, time: int, value: float) -> None:
        """Take a point whose step is not after the last one; :meth:`settle` finds out what it is."""
        self._late.append((attribute.id, step, time, float_bits(value)))

    def settle(self) -> tuple[int, Problems]:
        """Put late points where they belong: how many were new, and why the others were refused."""
        late, self._late = self._late, []
        problems = self._fit_in(late)
        return len(late) - problems.total(), problems

    def _fit_in(self, late: Sequence[tuple[int, int, int, int]]) -> Problems:
        problems = Problems()
        if not late:
            return problems
        self.flush()
        grown: Counter[int] = Counter()
        checksums = point_checksums(*np.array(late, np.int64).T)
        for (identifier, step, time, bits), checksum in zip(late, checksums.tolist(), strict=True):
            row = self._connection.execute(
                "SELECT bits FROM points WHERE attribute = ? AND step = ?", (identifier, step)
            ).fetchone()
            if row is not None:
                problems[Problem.DUPLICATE_POINT if row[0] == bits else Problem.STEP_TAKEN] += 1
                continue
            self._connection.execute(
                "INSERT INTO points (attribute, step, time, bits, checksum) VALUES (?, ?, ?, ?, ?)",
                (identifier, step, time, bits, checksum),
            )
            grown[identifier] += 1
        self._connection.executemany(
            "UPDATE attributes SET revision = ?, points = points + ? WHERE id = ?",
            [(self._revision, count, identifier) for identifier, count in grown.items()],
        )
        return problems

    def flush(self) -> None:
        """Write what was gathered, in the order of the table's key, and what follows from it for the attributes."""
        if not self.attributes:
            return
        attributes = np.array(self.attributes, np.int64)
        # The steps of a series come in order, so a stable sort by series alone is the order of the key.
        order = np.argsort(attributes, kind="stable")
        attributes = attributes[order]
        steps = np.array(self.steps, np.int64)[order]
        bits = np.frombuffer(array("d", self.values), np.int64)[order]
        times = np.array(self.times, np.int64)[order]
        self._connection.executemany(
            "INSERT INTO points (attribute, step, time, bits, checksum) VALUES (?, ?, ?, ?, ?)",
            zip(
                attributes.tolist(),
                steps.tolist(),
                times.tolist(),
                bits.tolist(),
                point_checksums(attributes, steps, times, bits).tolist(),
                strict=True,
            ),
        )
        ends = np.append(np.flatnonzero(np.diff(attributes)), len(attributes) - 1)
        last_steps = dict(zip(attributes[ends].tolist(), steps[ends].tolist(), strict=True))
        counts = np.diff(ends, prepend=-1).tolist()
        self._connection.executemany(
            "UPDATE attributes SET last_step = ?, revision = ?, points = points + ? WHERE id = ?",
            [
                (step, self._revision, count, identifier)
                for (identifier, step), count in zip(last_steps.items(), counts, strict=True)
            ],
        )
        for identifier in self._previewed & last_steps.keys():
            self._drop_previews(identifier, last_steps[identifier])
        self.attributes.clear()
        self.steps.clear()
        self.times.clear()
        self.values.clear()

    def preview(self, attribute: Attribute, step: int, time: int, bits: int, completion: int) -> Problems:
        """Set a point that is not final yet; it vanishes once a point at its step or a later one is appended."""
        if attribute.last_step is not None and step <= attribute.last_step:
            return Problems({Problem.PREVIEW_NOT_AFTER_LAST: 1})
        self._connection.execute(
            "INSERT OR REPLACE INTO previews (attribute, step, time, bits, completion) VALUES (?, ?, ?, ?, ?)",
            (attribute.id, step, time, bits, completion),
        )
        self._connection.execute("UPDATE attributes SET revision = ? WHERE id = ?", (self._revision, attribute.id))
        self._previewed.add(attribute.id)
        return Problems()

    def _drop_previews(self, identifier: int, last_step: int) -> None:
        self._connection.execute("DELETE FROM previews WHERE attribute = ? AND step <= ?", (identifier, last_step))
        left = self._connection.execute("SELECT 1 FROM previews WHERE attribute = ? LIMIT 1", (identifier,))
        if left.fetchone() is None:
            self._previewed.discard(identifier)

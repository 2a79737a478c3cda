"""Typed operations on the attributes of one run: assign, append, change a set, clear, delete.

Belongs here: the rules that hold for all clients (one type for a path, steps that grow, previews that points replace).
Does not belong here: how a client says it. Operations return what was refused, by kind; nothing refused, nothing lost.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import islice, pairwise, repeat
from operator import lt
from typing import TYPE_CHECKING, Final

from neptune_assets.schema import AttributeType
from neptune_assets.server.store.runs import Run
from neptune_assets.server.store.values import SqlValue, floats_bits, to_json

if TYPE_CHECKING:
    from neptune_assets.server.store.writing import Writing

PointRow = tuple[int, int, int, int]
"""Attribute, step, time, bits."""

_ANY_ORDER: Final = frozenset({AttributeType.FILE_SERIES, AttributeType.HISTOGRAM_SERIES})


class Problem(StrEnum):
    """Why something was refused."""

    TYPE_CONFLICT = "the path holds values of another type"
    DUPLICATE_POINT = "the very same point is there already"
    STEP_NOT_INCREASING = "the step is not after the last one of the series"
    PREVIEW_NOT_AFTER_LAST = "a preview comes only after the last point of the series"


Problems = Counter[Problem]


class Attribute:
    """What is known of one attribute while writing; ``last_step`` in micro-steps, None without points."""

    __slots__ = ("id", "kind", "last_step", "previews")

    def __init__(self, identifier: int, kind: AttributeType, last_step: int | None) -> None:
        self.id = identifier
        self.kind = kind
        self.last_step = last_step
        self.previews = False


class Operations:
    """Operations on one run, inside one transaction. Values are given as the tables hold them (see values.py)."""

    def __init__(self, writing: Writing, run: Run, attributes: dict[str, Attribute]) -> None:
        self._writing = writing
        self._connection = writing.connection
        self._attributes = attributes
        self.run = run

    def attribute(self, path: str, kind: AttributeType) -> Attribute | None:
        """The attribute at this path, made if there is none; None if it has another type, or inherits another."""
        found = self._attributes.get(path)
        if found is not None:
            return found if found.kind is kind else None
        if self.run.parent_run_id is not None:
            inherited = self._writing.inherited_series(self.run, path)
            if inherited is not None and inherited is not kind:
                return None
        cursor = self._connection.execute(
            "INSERT INTO attributes (run, path, type, revision) VALUES (?, ?, ?, ?)",
            (self.run.id, path, kind.value, self._writing.revision),
        )
        made = Attribute(int(cursor.lastrowid or 0), kind, None)
        self._attributes[path] = made
        self._writing.touch(self.run)
        return made

    def assign(self, path: str, kind: AttributeType, value: SqlValue) -> Problems:
        """Set a single value; an earlier one is replaced."""
        attribute = self.attribute(path, kind)
        if attribute is None:
            return Problems({Problem.TYPE_CONFLICT: 1})
        self._connection.execute(
            "UPDATE attributes SET value = ?, revision = ? WHERE id = ?",
            (value, self._writing.revision, attribute.id),
        )
        self._writing.touch(self.run)
        return Problems()

    def change_set(self, path: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Problems:
        """Add members to a set of strings and remove others."""
        attribute = self.attribute(path, AttributeType.STRING_SET)
        if attribute is None:
            return Problems({Problem.TYPE_CONFLICT: 1})
        row = self._connection.execute("SELECT value FROM attributes WHERE id = ?", (attribute.id,)).fetchone()
        members = set(json.loads(row[0])) if row[0] is not None else set()
        return self.assign(path, AttributeType.STRING_SET, to_json(sorted((members | set(add)) - set(remove))))

    def append_floats(
        self, attribute: Attribute, steps: Sequence[int], times: Sequence[int], values: Iterable[float]
    ) -> Problems:
        """Append points to a float series: steps in micro-steps, times in epoch ms."""
        if not steps:
            return Problems()
        bits = floats_bits(values)
        last = attribute.last_step
        problems = Problems()
        if (last is not None and steps[0] <= last) or not all(map(lt, steps, islice(steps, 1, None))):
            self._writing.flush()
            kept = self._sieve(attribute, steps, bits, "SELECT bits FROM points", problems)
            steps, times, bits = ([column[i] for i in kept] for column in (steps, times, bits))
        if steps:
            attribute.last_step = steps[-1]
            self._writing.add_points(attribute, zip(repeat(attribute.id), steps, times, bits))
            self._writing.touch(self.run)
            if attribute.previews:
                self._drop_previews(attribute)
        return problems

    def append_objects(
        self, attribute: Attribute, steps: Sequence[int], times: Sequence[int], values: Sequence[str]
    ) -> Problems:
        """Append points to a series of strings, histograms or files; the last two take any order of steps."""
        problems = Problems()
        kept = self._sieve(attribute, steps, values, "SELECT value FROM objects", problems)
        if kept:
            self._connection.executemany(
                "INSERT INTO objects (attribute, step, time, value) VALUES (?, ?, ?, ?)",
                [(attribute.id, steps[i], times[i], values[i]) for i in kept],
            )
            attribute.last_step = max(
                [steps[i] for i in kept] + ([] if attribute.last_step is None else [attribute.last_step])
            )
            self._writing.moved(attribute)
            self._writing.touch(self.run)
        return problems

    def preview(self, attribute: Attribute, step: int, time: int, bits: int, completion: int) -> Problems:
        """Set a point that is not final yet; it vanishes once a point at its step or a later one is appended."""
        if attribute.last_step is not None and step <= attribute.last_step:
            return Problems({Problem.PREVIEW_NOT_AFTER_LAST: 1})
        self._connection.execute(
            "INSERT OR REPLACE INTO previews (attribute, step, time, bits, completion) VALUES (?, ?, ?, ?, ?)",
            (attribute.id, step, time, bits, completion),
        )
        attribute.previews = True
        self._writing.moved(attribute)
        self._writing.touch(self.run)
        return Problems()

    def clear(self, path: str) -> None:
        """Remove all points of a series, or all members of a set; the attribute stays."""
        attribute = self._attributes.get(path)
        if attribute is None:
            return
        self._remove_points(attribute)
        if attribute.kind is AttributeType.STRING_SET:
            self.assign(path, attribute.kind, "[]")
        self._writing.moved(attribute)
        self._writing.touch(self.run)

    def delete(self, path: str) -> bool:
        """Remove an attribute and all it holds; False if there is none."""
        attribute = self._attributes.get(path)
        if attribute is None:
            return False
        self._remove_points(attribute)
        self._connection.execute("DELETE FROM attributes WHERE id = ?", (attribute.id,))
        del self._attributes[path]
        self._writing.touch(self.run)
        return True

    def kind(self, path: str) -> AttributeType | None:
        """The type of the attribute at this path; None if there is none."""
        found = self._attributes.get(path)
        return None if found is None else found.kind

    def last_step(self, path: str) -> int | None:
        """The last step of a series in micro-steps; None without points."""
        found = self._attributes.get(path)
        return None if found is None else found.last_step

    def _sieve(
        self, attribute: Attribute, steps: Sequence[int], values: Sequence[int | str], select: str, problems: Problems
    ) -> list[int]:
        """Indexes of the points that may be appended; the others are counted in ``problems``."""
        last = attribute.last_step
        if steps and (last is None or steps[0] > last) and all(first < second for first, second in pairwise(steps)):
            return list(range(len(steps)))
        any_order = attribute.kind in _ANY_ORDER
        new: dict[int, int | str] = {}
        kept: list[int] = []
        for index, (step, value) in enumerate(zip(steps, values, strict=True)):
            if last is not None and step <= last:
                there = new.get(step)
                if there is None:
                    there = self._value(f"{select} WHERE attribute = ? AND step = ?", attribute.id, step)
                if there is not None or not any_order:
                    problems[Problem.DUPLICATE_POINT if there == value else Problem.STEP_NOT_INCREASING] += 1
                    continue
            else:
                last = step
            new[step] = value
            kept.append(index)
        return kept

    def _value(self, query: str, *values: int) -> int | str | None:
        row: sqlite3.Row | None = self._connection.execute(query, values).fetchone()
        return None if row is None else row[0]

    def _drop_previews(self, attribute: Attribute) -> None:
        self._connection.execute(
            "DELETE FROM previews WHERE attribute = ? AND step <= ?", (attribute.id, attribute.last_step)
        )
        attribute.previews = self._value("SELECT 1 FROM previews WHERE attribute = ? LIMIT 1", attribute.id) is not None

    def _remove_points(self, attribute: Attribute) -> None:
        self._writing.flush()
        for table in ("points", "previews", "objects"):
            self._connection.execute(f"DELETE FROM {table} WHERE attribute = ?", (attribute.id,))  # noqa: S608
        attribute.last_step = None
        attribute.previews = False

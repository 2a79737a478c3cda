"""Typed operations on the attributes of one run: assign, append, change a set, clear, delete.

Belongs here: the rules that hold for all clients (a path has one type, a step one point, points replace previews).
Does not belong here: how a client says it. Operations return what was refused, by kind; nothing refused, nothing lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from neptune_assets.schema import AttributeType
from neptune_assets.server.store.checksums import row_of
from neptune_assets.server.store.points import Attribute, Problem, Problems
from neptune_assets.server.store.runs import Run
from neptune_assets.server.store.values import SqlValue, to_json

if TYPE_CHECKING:
    from neptune_assets.server.store.writing import Writing


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
            "INSERT INTO attributes (run, path, type, value, checksum, points, revision) VALUES (?, ?, ?, ?, ?, 0, ?)",
            (*row_of(self.run.id, path, kind.value, None), self._writing.revision),
        )
        self._writing.count_attributes(self.run.id, 1)
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
            "UPDATE attributes SET value = ?1, revision = ?2, checksum = checksum(run, path, type, ?1) WHERE id = ?3",
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
        """Append points to a float series, in any order of steps: steps in micro-steps, times in epoch ms."""
        refused = self._writing.points.append(attribute, steps, times, values)
        if refused.total() < len(steps):
            self._writing.touch(self.run)
        return refused

    def append_objects(
        self, attribute: Attribute, steps: Sequence[int], times: Sequence[int], values: Sequence[str]
    ) -> Problems:
        """Append points to a series of strings, histograms or files, in any order of steps."""
        problems = Problems()
        kept = self._sieve(attribute, steps, values, problems)
        if kept:
            self._connection.executemany(
                "INSERT INTO objects (attribute, step, time, value, checksum) VALUES (?, ?, ?, ?, ?)",
                [row_of(attribute.id, steps[i], times[i], values[i]) for i in kept],
            )
            attribute.last_step = max(
                [steps[i] for i in kept] + ([] if attribute.last_step is None else [attribute.last_step])
            )
            self._writing.moved(attribute, len(kept))
            self._writing.touch(self.run)
        return problems

    def preview(self, attribute: Attribute, step: int, time: int, bits: int, completion: int) -> Problems:
        """Set a point that is not final yet; it vanishes once a point at its step or a later one is appended."""
        self._writing.touch(self.run)
        return self._writing.points.preview(attribute, step, time, bits, completion)

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
        self._writing.count_attributes(self.run.id, -1)
        del self._attributes[path]
        self._writing.touch(self.run)
        return True

    def kind(self, path: str) -> AttributeType | None:
        """The type of the attribute at this path; None if there is none."""
        found = self._attributes.get(path)
        return None if found is None else found.kind

    def last_step(self, path: str) -> int | None:
        """The highest step of a series in micro-steps; None without points."""
        found = self._attributes.get(path)
        return None if found is None else found.last_step

    def _sieve(
        self, attribute: Attribute, steps: Sequence[int], values: Sequence[str], problems: Problems
    ) -> list[int]:
        """Indexes of the objects that may be appended; the others are counted in ``problems``."""
        last = attribute.last_step
        new: dict[int, str] = {}
        kept: list[int] = []
        for index, (step, value) in enumerate(zip(steps, values, strict=True)):
            if last is not None and step <= last:
                there = new.get(step)
                if there is None:
                    row = self._connection.execute(
                        "SELECT value FROM objects WHERE attribute = ? AND step = ?", (attribute.id, step)
                    ).fetchone()
                    there = None if row is None else str(row[0])
                if there is not None:
                    problems[Problem.DUPLICATE_POINT if there == value else Problem.STEP_TAKEN] += 1
                    continue
            else:
                last = step
            new[step] = value
            kept.append(index)
        return kept

    def _remove_points(self, attribute: Attribute) -> None:
        self._writing.flush()
        self._connection.execute("DELETE FROM points WHERE attribute = ?", (attribute.id,))
        self._connection.execute("DELETE FROM previews WHERE attribute = ?", (attribute.id,))
        self._connection.execute("DELETE FROM objects WHERE attribute = ?", (attribute.id,))
        self._connection.execute("UPDATE attributes SET points = 0 WHERE id = ?", (attribute.id,))
        self._writing.forget_points(attribute)
        attribute.last_step = None

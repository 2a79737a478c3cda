"""One write transaction of a project: make and change runs, apply operations and points to their attributes."""

from __future__ import annotations

import json
import sqlite3
import uuid
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import islice
from operator import lt
from typing import Final

import numpy as np

from neptune_assets.schema import AttributeType
from neptune_assets.server.store.database import ATTRIBUTE, RESTORE, DamagedError, intact, point_checksums, row_of
from neptune_assets.server.store.runs import (
    SEAL_RUN,
    NewRun,
    Run,
    SqlValue,
    find_run,
    find_run_by_sys_id,
    find_run_by_uuid,
    float_bits,
    to_json,
)


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


_CACHED_ATTRIBUTES: Final = 200_000
_INHERITED_SYS: Final = frozenset({"sys/tags", "sys/group_tags", "sys/description"})
_SERIES: Final = ("float_series", "string_series", "histogram_series", "file_series")

Atom = tuple[str, str, SqlValue]
"""Path, type, and value as the table holds it."""


class Cache:
    """What the writer knows of the attributes of the runs it wrote to last. Emptied whenever a transaction fails."""

    def __init__(self) -> None:
        self._runs: dict[int, dict[str, Attribute]] = {}
        self.previewed: set[int] = set()
        """Attributes that have previews, of the runs known and maybe of others."""

    def attributes(self, connection: sqlite3.Connection, run: int) -> dict[str, Attribute]:
        """The attributes of a run by path; the caller keeps them true while it writes."""
        found = self._runs.pop(run, None)
        if found is None:
            found = _load(connection, run)
            self.previewed.update(_previewed(connection, run))
            total = len(found) + sum(map(len, self._runs.values()))
            while self._runs and total > _CACHED_ATTRIBUTES:
                total -= len(self._runs.pop(next(iter(self._runs))))
        self._runs[run] = found
        return found

    def forget(self, run: int) -> None:
        """Read this run's attributes again next time."""
        self._runs.pop(run, None)

    def clear(self) -> None:
        """Forget everything."""
        self._runs.clear()
        self.previewed.clear()


class Writing:
    """Handed out by ``ProjectStore.write()``. ``connection`` may be used for SQL of one's own.

    Points are buffered: call :meth:`flush` before reading them, and :meth:`forget` after changing ``attributes`` by
    one's own SQL. ``revision`` is the number of this commit, ``now`` its time in epoch ms. Set ``changed`` after a
    change by one's own SQL.
    """

    def __init__(self, key: str, connection: sqlite3.Connection, cache: Cache, revision: int, now: int) -> None:
        self.connection = connection
        self.revision = revision
        self.now = now
        self.changed = False
        self._key = key
        self._cache = cache
        self.points = Points(connection, revision, cache.previewed)
        self._moved: Counter[Attribute] = Counter()
        self._attributes: Counter[int] = Counter()
        self._touched: set[int] = set()
        self._pinged: set[int] = set()

    def run(self, run_id: str, scope: str = "runs") -> Run | None:
        """The run of this id, if there is one."""
        return find_run(self.connection, run_id, scope)

    def run_by_sys_id(self, sys_id: str, scope: str = "runs") -> Run | None:
        """The run of this sys/id, if there is one."""
        return find_run_by_sys_id(self.connection, sys_id, scope)

    def run_by_uuid(self, uuid_text: str) -> Run | None:
        """The run (or model, or version, or project) of this uuid, if there is one."""
        return find_run_by_uuid(self.connection, uuid_text)

    def create_run(self, new: NewRun) -> Run:
        """Make a run. Raises sqlite3.IntegrityError if one of its ids is taken."""
        sys_id = new.sys_id or f"{self._key}-{self.next_number()}"
        created = self.now if new.created_at is None else new.created_at
        cursor = self.connection.execute(
            "INSERT INTO runs (scope, run_id, sys_id, uuid, experiment, parent_project, parent_run_id, fork_step,"
            " requested_parent, inherit_configs, generation, created_at, modified_at, trashed, archived, adopted,"
            " revision, attributes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (
                new.scope,
                sys_id if new.run_id is None else new.run_id,
                sys_id,
                new.uuid or str(uuid.uuid4()),
                new.experiment,
                new.parent_project,
                new.parent_run_id,
                new.fork_step,
                new.requested_parent,
                int(new.inherit_configs),
                new.generation,
                created,
                self.now if new.modified_at is None else new.modified_at,
                int(new.trashed),
                int(new.archived),
                new.adopted,
                self.revision,
            ),
        )
        self.changed = True
        self.connection.execute(SEAL_RUN, (cursor.lastrowid,))
        self.connection.execute("UPDATE project SET runs = runs + 1")
        made = find_run(self.connection, sys_id if new.run_id is None else new.run_id, new.scope)
        if made is None or made.id != cursor.lastrowid:
            raise sqlite3.IntegrityError(f"run {new.run_id!r} was not made")
        if new.owner is not None:
            self.operations(made).assign("sys/owner", AttributeType.STRING, new.owner)
        return made

    def next_number(self) -> int:
        """The next number of the project's sys ids, given out once."""
        row = self.connection.execute("UPDATE project SET last_number = last_number + 1 RETURNING last_number")
        self.changed = True
        return int(row.fetchone()[0])

    def update_run(self, run: Run, **columns: int | str | None) -> Run:
        """Change columns of a run's row and return the row as it is then; the run counts as modified."""
        changed = replace(run, **columns)  # type: ignore[arg-type]
        assignments = ", ".join(f"{name} = ?" for name in columns)
        self.connection.execute(
            f"UPDATE runs SET {assignments} WHERE id = ?",  # noqa: S608  (names checked by replace())
            (*columns.values(), run.id),
        )
        self.connection.execute(SEAL_RUN, (run.id,))
        self.touch(run)
        return changed

    def delete_run(self, run: Run) -> None:
        """Remove a run and all it has; file bytes stay, as other runs may name the same."""
        self.flush()
        self.connection.execute("DELETE FROM runs WHERE id = ?", (run.id,))
        self.connection.execute("UPDATE project SET runs = runs - 1")
        self.forget(run)
        self._touched.discard(run.id)
        self._attributes.pop(run.id, None)
        self.changed = True

    def touch(self, run: Run) -> None:
        """Let the run count as modified (and alive) now."""
        self._touched.add(run.id)
        self.changed = True

    def ping(self, run: Run) -> None:
        """Let the run count as alive now; that does not change it."""
        self._pinged.add(run.id)
        self.changed = True

    def count_attributes(self, run: int, more: int) -> None:
        """Note that a run has more attributes, or fewer."""
        self._attributes[run] += more

    def operations(self, run: Run) -> Operations:
        """Typed operations on the attributes of a run; it counts as modified once one of them changes something."""
        return Operations(self, run, self._cache.attributes(self.connection, run.id))

    def take_over(self, run: Run, atoms: Iterable[Atom]) -> None:
        """Give a new run the single values of another."""
        rows = [(*row_of(run.id, path, kind, value), self.revision) for path, kind, value in atoms]
        self.connection.executemany(
            "INSERT INTO attributes (run, path, type, value, checksum, points, revision) VALUES (?, ?, ?, ?, ?, 0, ?)",
            rows,
        )
        self.count_attributes(run.id, len(rows))
        self.forget(run)
        self.touch(run)

    def inherited_series(self, run: Run, path: str) -> AttributeType | None:
        """The type of the series that a fork continues from its ancestors in this project, if there is one."""
        seen = {run.id}
        while run.parent_run_id is not None:
            parent = find_run(self.connection, run.parent_run_id)
            if parent is None or parent.id in seen:
                return None
            seen.add(parent.id)
            found = self._cache.attributes(self.connection, parent.id).get(path)
            if found is not None:
                return found.kind if found.kind in _SERIES else None
            run = parent
        return None

    def put_file(self, key: str, sha256: str, size: int, mime_type: str | None) -> None:
        """Let ``key`` name these bytes, which the project's objects hold already; the last one wins."""
        self.connection.execute(
            "INSERT INTO files (key, sha256, size, mime_type, checksum, uploaded_at) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET sha256 = excluded.sha256, size = excluded.size,"
            " mime_type = excluded.mime_type, uploaded_at = excluded.uploaded_at, checksum = excluded.checksum",
            (*row_of(key, sha256, size, mime_type), self.now),
        )
        self.changed = True

    def moved(self, attribute: Attribute, more: int = 0) -> None:
        """Write the attribute's last step at the end, and that it has so many points more."""
        self._moved[attribute] += more

    def forget_points(self, attribute: Attribute) -> None:
        """Take back what :meth:`moved` was told of an attribute, whose points are all gone."""
        self._moved.pop(attribute, None)

    def flush(self) -> None:
        """Write buffered points."""
        self.points.flush()

    def forget(self, run: Run) -> None:
        """Read the run's attributes again, after SQL of one's own changed them."""
        self._cache.forget(run.id)

    def finish(self) -> None:
        """Write what is buffered, and the new revision. Called by ``ProjectStore.write()``."""
        self.flush()
        self.connection.executemany(
            "UPDATE attributes SET last_step = ?, revision = ?, points = points + ? WHERE id = ?",
            [(attribute.last_step, self.revision, more, attribute.id) for attribute, more in self._moved.items()],
        )
        self.connection.executemany(
            "UPDATE runs SET attributes = attributes + ? WHERE id = ?",
            [(more, run) for run, more in self._attributes.items() if more],
        )
        self.connection.executemany(
            "UPDATE runs SET ping_at = ?, revision = ? WHERE id = ?",
            [(self.now, self.revision, run) for run in self._pinged],
        )
        self.connection.executemany(
            "UPDATE runs SET modified_at = ?, ping_at = ?, revision = ? WHERE id = ?",
            [(self.now, self.now, self.revision, run) for run in self._touched],
        )
        self.connection.executemany(SEAL_RUN, [(run,) for run in self._touched | self._pinged])
        if self.changed:
            self.connection.execute("UPDATE project SET revision = ?", (self.revision,))


def inheritable(path: str) -> bool:
    """True for single values that a fork takes over: those of users, and of ``sys/`` the tags and the description."""
    return not path.startswith("sys/") or path in _INHERITED_SYS


def atoms_of(connection: sqlite3.Connection, run: Run) -> list[Atom]:
    """Single values and files of a run that a fork of it takes over."""
    rows = connection.execute(
        f"SELECT path, type, value, {intact('attributes', *ATTRIBUTE)} AS intact FROM attributes"  # noqa: S608
        " WHERE run = ? AND value IS NOT NULL",
        (run.id,),
    )
    found = [row for row in rows if inheritable(row["path"])]
    for row in found:
        if not row["intact"]:
            raise DamagedError(
                f"Attribute {row['path']!r} of run {run.run_id!r} is damaged in the store.", hint=RESTORE
            )
    return [(row["path"], row["type"], row["value"]) for row in found]


def _load(connection: sqlite3.Connection, run: int) -> dict[str, Attribute]:
    return {
        path: Attribute(identifier, AttributeType(kind), last_step)
        for identifier, path, kind, last_step in connection.execute(
            "SELECT id, path, type, last_step FROM attributes WHERE run = ?", (run,)
        )
    }


def _previewed(connection: sqlite3.Connection, run: int) -> list[int]:
    rows = connection.execute(
        "SELECT id FROM attributes WHERE run = ? AND type = 'float_series'"
        " AND EXISTS (SELECT 1 FROM previews WHERE attribute = attributes.id)",
        (run,),
    )
    return [int(row[0]) for row in rows]


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

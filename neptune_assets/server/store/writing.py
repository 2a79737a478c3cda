"""One write transaction of a project: make runs, change them, and get at operations on their attributes."""

from __future__ import annotations

import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from neptune_assets.schema import AttributeType
from neptune_assets.server.store.checksums import ATTRIBUTE, intact, row_of
from neptune_assets.server.store.database import RESTORE, DamagedError
from neptune_assets.server.store.operations import Operations
from neptune_assets.server.store.points import Attribute, Points
from neptune_assets.server.store.runs import SEAL_RUN, NewRun, Run, find_run, find_run_by_sys_id, find_run_by_uuid
from neptune_assets.server.store.values import SqlValue

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

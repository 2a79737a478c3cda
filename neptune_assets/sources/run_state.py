"""What a run holds while its operations are replayed: attributes that can still change, and what went wrong.

Points of series are handed on as they arrive and never kept. Attributes that later operations may overwrite or delete
are kept until :meth:`RunState.finish`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import pyarrow as pa

from neptune_assets.schema import AttributeType
from neptune_assets.sources.protocol import Issue, RunEnd
from neptune_assets.sources.rows import RowBuilder

MAX_ISSUES: Final = 1_000
"""Errors (and notes) of one run that are told one by one; the rest are counted."""


class RunState:
    """One run being replayed.

    ``rows`` takes points of series at once (``state.rows.point(...)``); single values go through :meth:`assign`,
    :meth:`change_set` and :meth:`delete`, keyed by path and type, so that a path recorded with two types loses neither.
    ``whole`` becomes False when a recording is known to lack data: then nothing is promised. ``created`` is True once a
    recording held the beginning of the run, False if one was read that began later, None if recordings cannot tell.
    """

    def __init__(self, project_id: str, run_id: str, keep: Callable[[str, str], bool]) -> None:
        self.project_id = project_id
        self.run_id = run_id
        self.rows = RowBuilder(project_id, run_id, keep, escape=True)
        self.whole = True
        self.created: bool | None = None
        self._values: dict[str, dict[AttributeType, Any]] = {}
        self._errors = Issues()
        self._notes = Issues()
        self._repairs: dict[str, int] = {}

    def assign(self, path: str, attribute_type: AttributeType, value: Any) -> None:
        """Set a value, overwriting one of the same type; values as in :meth:`RowBuilder.value`."""
        if attribute_type is AttributeType.STRING_SET:
            value = dict.fromkeys(value)
        self._values.setdefault(path, {})[attribute_type] = value

    def assigned(self, path: str, attribute_type: AttributeType) -> Any:
        """The value as it is now, or None (string sets: any iterable of strings)."""
        return self._values.get(path, {}).get(attribute_type)

    def change_set(self, path: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Add strings to a string set and remove others from it; the set is made if there is none."""
        values = self._values.setdefault(path, {}).setdefault(AttributeType.STRING_SET, {})
        for item in remove:
            values.pop(item, None)
        for item in add:
            values[item] = None

    def delete(self, path: str, attribute_type: AttributeType | None = None) -> None:
        """Delete what was assigned to a path (of one type, or of all). Points handed on are not called back."""
        if attribute_type is None:
            self._values.pop(path, None)
        else:
            self._values.get(path, {}).pop(attribute_type, None)

    def snapshot(self) -> Mapping[str, Mapping[AttributeType, Any]]:
        """What is assigned now, by path and type."""
        return self._values

    def error(self, message: str, path: str | None = None, attribute_type: AttributeType | None = None) -> None:
        """Report something that makes the run partial."""
        self._errors.add(message, path, attribute_type)

    def note(self, message: str, path: str | None = None, attribute_type: AttributeType | None = None) -> None:
        """Report something that does not make the run partial."""
        self._notes.add(message, path, attribute_type)

    def repair(self, name: str, count: int = 1) -> None:
        """Count values repaired or left out, by the name of the repair."""
        self._repairs[name] = self._repairs.get(name, 0) + count

    def finish(self) -> list[pa.RecordBatch]:
        """Turn what is assigned into rows and take every batch that is left. String sets are sorted."""
        batches: list[pa.RecordBatch] = []
        for path, kinds in self._values.items():
            for kind, value in kinds.items():
                try:
                    self.rows.value(kind, path, sorted(value) if kind is AttributeType.STRING_SET else value)
                except (ValueError, OverflowError, TypeError) as error:
                    self.error(f"The value of {path!r} cannot be kept: {error}. It is left out.", path, kind)
            if self.rows.ready:
                batches.extend(self.rows.drain())
        batches.extend(self.rows.flush())
        for path, names in self.rows.conflicts().items():
            self.note(f"{path!r} holds values of several types: {', '.join(names)}. All of them are kept.", path)
        if self.rows.escaped:
            self.repair("text_escaped", self.rows.escaped)
            self.note(
                f"{self.rows.escaped} names or values hold bytes that are not UTF-8, or halves of characters; they are "
                "kept with escapes like \\xe9, and with backslashes doubled."
            )
        return batches

    def end(self) -> RunEnd:
        """The mark that ends the run; call after :meth:`finish`."""
        return RunEnd(
            run_id=self.run_id,
            promised=self.rows.attributes() if self.whole else None,
            errors=self._errors.told(),
            notes=self._notes.told(),
            repairs=dict(self._repairs),
        )


class Issues:
    """Issues of one run up to a limit, and how many there were beyond it."""

    def __init__(self) -> None:
        self._items: list[Issue] = []
        self._more = 0

    def add(self, message: str, path: str | None = None, attribute_type: str | None = None) -> None:
        """Take one more."""
        if len(self._items) >= MAX_ISSUES:
            self._more += 1
            return
        self._items.append(Issue(message, path, None if attribute_type is None else str(attribute_type)))

    def told(self) -> tuple[Issue, ...]:
        """Those up to the limit, and one that counts the rest."""
        if not self._more:
            return tuple(self._items)
        return (*self._items, Issue(f"{self._more} more of this kind are not listed."))

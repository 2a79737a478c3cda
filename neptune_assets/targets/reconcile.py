"""Compare a target with the lake at any later time, reading only: what is gone, changed, doubled, or nobody knows.

The lake is compared with its own hashes first: a target that differs from a damaged lake is not to blame.

Every run that the target should hold is read back in full over a fresh connection, with the receipt of its load where
the ledger has one; nothing is written, neither into the target nor into the ledger.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pyarrow as pa

from neptune_assets.errors import LakeDamagedError, NeptuneAssetsError, TargetUnavailableError
from neptune_assets.lake.manifest import RunRecord
from neptune_assets.lake.reader import LakeProject
from neptune_assets.targets.ledger import Entry, Ledger
from neptune_assets.targets.protocol import Receipt, Target, TargetRun
from neptune_assets.targets.rules import RenamedProject, Rules

Word = Literal[
    "equal",
    "withheld",
    "lake_damaged",
    "missing",
    "not_loaded",
    "unfinished",
    "outdated",
    "doubled",
    "differs",
    "unknown",
]

WORDS: Final[dict[Word, str]] = {
    "equal": "the target holds what the lake holds",
    "withheld": "partial in the lake, and not in the target",
    "lake_damaged": "the lake's own copy is damaged: repair the lake, and leave the target as it is",
    "missing": "was loaded, and is gone from the target",
    "not_loaded": "was never loaded",
    "unfinished": "a load of it did not finish",
    "outdated": "the lake or the rules for names changed since it was loaded",
    "doubled": "the target holds it more than once",
    "differs": "something in it was changed or deleted after it was loaded",
    "unknown": "the target holds it, the lake does not",
}
_FINE: Final = frozenset({"equal", "withheld"})

COMPARED: Final = pa.schema(
    [
        ("project_id", pa.string()),
        ("run_id", pa.string()),
        ("target_id", pa.string()),
        ("verdict", pa.string()),
        ("difference", pa.string()),
    ]
)
"""One row a run and difference; a run without differences has one row."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One run, compared."""

    run_id: str
    word: Word
    target_id: str | None = None
    differences: tuple[str, ...] = ()

    @property
    def fine(self) -> bool:
        """True if nothing has to be done about it."""
        return self.word in _FINE


@dataclass
class Comparison:
    """A target beside the lake, for one project."""

    target: str
    project_id: str
    runs: list[Compared] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def wrong(self) -> list[Compared]:
        """Runs that are not as they should be."""
        return [item for item in self.runs if not item.fine]

    @property
    def counts(self) -> dict[str, int]:
        """How many runs got each verdict."""
        return dict(sorted(Counter(item.word for item in self.runs).items()))

    def reader(self) -> pa.RecordBatchReader:
        """Return the comparison as a table in :data:`COMPARED`."""
        rows: list[dict[str, Any]] = [
            {
                "project_id": self.project_id,
                "run_id": item.run_id,
                "target_id": item.target_id,
                "verdict": item.word,
                "difference": difference,
            }
            for item in self.runs
            for difference in (item.differences or (None,))
        ]
        return pa.Table.from_pylist(rows, schema=COMPARED).to_reader()


def reconcile(
    project: LakeProject,
    open_target: Callable[[], Target],
    ledger: Ledger,
    *,
    partial_runs: Literal["withhold", "load"] = "withhold",
    rules: Rules | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Comparison:
    """Compare every run of the project with what the target holds now. Reads only.

    ``progress`` gets (runs done, runs in all, rows compared). Raises TargetError if the target cannot be asked.
    """
    started = time.monotonic()
    ruled = RenamedProject(project, rules)
    target = open_target()
    try:
        comparison = Comparison(target.name, project.project_id)
        held: dict[str, list[TargetRun]] = {}
        new = target.is_new()
        if not new:
            target.check()
            for item in target.runs(project.project_id):
                held.setdefault(item.run_id, []).append(item)
        comparing = _Comparing(
            ruled, open_target, ledger.entries() or {}, held, partial_runs == "withhold", None if new else target
        )
        records = ruled.records()
        rows = 0
        for done, (run_id, record) in enumerate(records.items()):
            if progress is not None:
                progress(done, len(records), rows)
            comparison.runs.append(comparing.one(run_id, record))
            rows += record.total_rows
        comparison.runs.extend(
            Compared(run_id, "unknown", runs[0].target_id)
            for run_id, runs in sorted(held.items())
            if run_id not in records
        )
    finally:
        target.close()
    comparison.seconds = time.monotonic() - started
    return comparison


@dataclass
class _Comparing:
    project: RenamedProject
    open_target: Callable[[], Target]
    entries: dict[str, Entry]
    held: dict[str, list[TargetRun]]
    withholds: bool
    target: Target | None
    """None if there is no such place yet."""

    def one(self, run_id: str, record: RunRecord) -> Compared:
        """Compare one run of the lake."""
        found = self.held.get(run_id, [])
        if not found and (there := self._found(run_id)) is not None:
            found = [there]
        try:
            self.project.run(run_id).check()
        except LakeDamagedError as error:
            return Compared(run_id, "lake_damaged", found[0].target_id if found else None, (str(error),))
        if not found:
            if not record.complete and self.withholds:
                return Compared(run_id, "withheld")
            entry = self.entries.get(run_id)
            return Compared(run_id, "not_loaded") if entry is None else Compared(run_id, "missing", entry.target_id)
        if len(found) > 1:
            return Compared(run_id, "doubled", found[0].target_id, tuple(item.target_id for item in found))
        held = found[0]
        if held.digest is None:
            # It was whole when it was read back; what is wrong now was done to it later.
            entry = self.entries.get(run_id)
            lost = entry is not None and entry.verified is True and entry.target_id == held.target_id
            differences = tuple(self._differences(run_id, held)) if lost else ()
            return Compared(run_id, "differs" if differences else "unfinished", held.target_id, differences)
        if held.digest != self.project.digest(record):
            return Compared(run_id, "outdated", held.target_id)
        differences = tuple(self._differences(run_id, held))
        return Compared(run_id, "differs" if differences else "equal", held.target_id, differences)

    def _found(self, run_id: str) -> TargetRun | None:
        """Ask for a run by its key: a target may list runs by a text that is not quite their id (NUL, length)."""
        return None if self.target is None else self.target.find(self.project.project_id, run_id)

    def _differences(self, run_id: str, held: TargetRun) -> Iterator[str]:
        entry = self.entries.get(run_id)
        receipt = entry.receipt if entry is not None else None
        known = receipt is not None and receipt.target_id == held.target_id
        if receipt is None or not known or held.digest not in {None, receipt.digest}:
            # The ledger was lost: the rows are compared all the same, only what a receipt alone knows is not.
            receipt = Receipt(self.project.project_id, run_id, held.target_id, held.digest or "", {}, {}, {})
        fresh = self.open_target()
        try:
            yield from fresh.verify(self.project.run(run_id), receipt).differences
        except TargetUnavailableError:
            raise
        except NeptuneAssetsError as error:
            yield str(error)
        finally:
            fresh.close()

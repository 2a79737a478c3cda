"""Load one project from the lake into any target: order, withhold, skip, replace, verify, and say what happened.

Nothing here knows a particular target, and nothing here knows Dagster. The target's own digest decides whether a run is
loaded again; the ledger only remembers receipts and verdicts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import pyarrow as pa

from neptune_assets.errors import NeptuneAssetsError, TargetError, TargetUnavailableError
from neptune_assets.lake.lock import ProjectLock
from neptune_assets.lake.reader import LakeProject, LakeRun
from neptune_assets.lake.records import RunRecord
from neptune_assets.targets.ledger import Entry, Ledger
from neptune_assets.targets.protocol import Receipt, Target, TargetRun

RETRY_SECONDS: Final = (1.0, 4.0, 16.0)
"""Pauses before a run is tried again when the target does not answer."""

RECEIPTS: Final = pa.schema(
    [
        ("project_id", pa.string()),
        ("run_id", pa.string()),
        ("outcome", pa.string()),
        ("target_id", pa.string()),
        ("digest", pa.string()),
        ("rows_in", pa.int64()),
        ("rows_written", pa.int64()),
        ("rows_mapped", pa.int64()),
        ("rows_dropped", pa.int64()),
        ("bytes_written", pa.int64()),
        ("dropped", pa.string()),
        ("notes", pa.string()),
        ("message", pa.string()),
    ]
)
"""One row a run: what a load did with it. ``dropped`` and ``notes`` are JSON."""


@dataclass
class LoadReport:
    """What one load did. ``receipts`` has those of the runs loaded now; ``known`` has earlier ones of skipped runs."""

    target: str
    project_id: str
    total: int = 0
    loaded: list[str] = field(default_factory=list)
    """Run ids replaced and verified, in the order they were loaded."""
    skipped: list[str] = field(default_factory=list)
    withheld: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Run id -> what went wrong, for runs that were not loaded or did not read back as loaded."""
    receipts: list[Receipt] = field(default_factory=list)
    known: dict[str, Entry] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    transient: bool = False
    """True if every failure is of the kind that trying again can heal."""

    @property
    def ok(self) -> bool:
        """True if no run failed."""
        return not self.failed

    @property
    def rows_in(self) -> dict[str, int]:
        """Rows of the loaded runs by attribute type."""
        return _total(receipt.rows_in for receipt in self.receipts)

    @property
    def written(self) -> dict[str, int]:
        """Rows that stand in the target as what they are, by attribute type."""
        return _total(receipt.written for receipt in self.receipts)

    @property
    def mapped(self) -> dict[str, int]:
        """Rows that stand in the target in another form, by attribute type."""
        return _total(receipt.mapped for receipt in self.receipts)

    @property
    def dropped(self) -> dict[tuple[str, str], int]:
        """Rows that the target cannot hold, by (attribute type, reason)."""
        result: dict[tuple[str, str], int] = {}
        for receipt in self.receipts:
            for item in receipt.dropped:
                key = (item.attribute_type, item.reason)
                result[key] = result.get(key, 0) + item.rows
        return result

    @property
    def points(self) -> int:
        """Metric points of the loaded runs."""
        return self.rows_in.get("float_series", 0)

    @property
    def points_per_second(self) -> float:
        """Metric points over the whole time, verification included."""
        return self.points / self.seconds if self.seconds else 0.0


def load_project(
    project: LakeProject,
    open_target: Callable[[], Target],
    ledger: Ledger,
    *,
    partial_runs: Literal["withhold", "load"] = "withhold",
    full_refresh: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> LoadReport:
    """Make the target hold every complete run of the project exactly once, and read back what was written.

    ``progress`` gets (runs done, runs in all, rows loaded so far). Raises TargetError if the target cannot be used at
    all and LakeBusyError if the same load is running; what goes wrong with one run is in the report, the others go on.
    """
    started = time.monotonic()
    with ledger.lock() as lock:
        target = open_target()
        try:
            target.check()
            report = LoadReport(target.name, project.project_id)
            _Loading(project, open_target, target, ledger, report, lock, full_refresh, sleep).run(
                partial_runs, progress
            )
        finally:
            target.close()
    report.seconds = time.monotonic() - started
    return report


def parents_first(records: Mapping[str, RunRecord]) -> list[str]:
    """Order run ids so that a fork's parent comes before it; otherwise by run id.

    Parents that are not among the records do not matter; in a circle of parents the smallest run id comes first.
    """
    order: dict[str, None] = {}
    for run_id in sorted(records):
        chain: dict[str, None] = {}
        current: str | None = run_id
        while current is not None and current in records and current not in order and current not in chain:
            chain[current] = None
            current = records[current].parent
        order.update(dict.fromkeys(reversed(chain)))
    return list(order)


def receipts_reader(report: LoadReport) -> pa.RecordBatchReader:
    """Return the report as a table of one row a run, in :data:`RECEIPTS`."""
    rows = []
    receipts = {run_id: entry.receipt for run_id, entry in report.known.items()}
    receipts.update({receipt.run_id: receipt for receipt in report.receipts})
    outcomes = [
        *((run_id, "failed", message) for run_id, message in report.failed.items()),
        *((run_id, "loaded", None) for run_id in report.loaded),
        *((run_id, "skipped", None) for run_id in report.skipped),
        *((run_id, "withheld", reason) for run_id, reason in report.withheld.items()),
    ]
    for run_id, outcome, message in sorted(outcomes):
        receipt = receipts.get(run_id)
        entry = report.known.get(run_id)
        rows.append(
            {
                "project_id": report.project_id,
                "run_id": run_id,
                "outcome": outcome,
                "target_id": receipt.target_id if receipt else entry.target_id if entry else None,
                "digest": receipt.digest if receipt else entry.digest if entry else None,
                "rows_in": sum(receipt.rows_in.values()) if receipt else None,
                "rows_written": sum(receipt.written.values()) if receipt else None,
                "rows_mapped": sum(receipt.mapped.values()) if receipt else None,
                "rows_dropped": sum(item.rows for item in receipt.dropped) if receipt else None,
                "bytes_written": receipt.bytes_written if receipt else None,
                "dropped": json.dumps([[d.attribute_type, d.reason, d.rows] for d in receipt.dropped])
                if receipt
                else None,
                "notes": json.dumps(list(receipt.notes), ensure_ascii=False) if receipt else None,
                "message": message,
            }
        )
    return pa.Table.from_pylist(rows, schema=RECEIPTS).to_reader()


@dataclass
class _Loading:
    """The state of one load."""

    project: LakeProject
    open_target: Callable[[], Target]
    target: Target
    ledger: Ledger
    report: LoadReport
    lock: ProjectLock
    full_refresh: bool
    sleep: Callable[[float], None]

    def run(self, partial_runs: str, progress: Callable[[int, int, int], None] | None) -> None:
        """Load all runs of the project."""
        records = self.project.records()
        report = self.report
        report.total = len(records)
        if self.ledger.entries() is None:
            self.ledger.rebuild(self.target.runs(self.project.project_id))
        permanent = False
        gone: TargetUnavailableError | None = None
        rows = 0
        for done, run_id in enumerate(parents_first(records)):
            record = records[run_id]
            self.lock.check()
            if progress is not None:
                progress(done, len(records), rows)
            if not record.complete and partial_runs == "withhold":
                report.withheld[run_id] = _why_partial(record)
                continue
            if gone is not None:
                report.failed[run_id] = f"not tried: {gone}"
                continue
            try:
                receipt = self._with_retries(run_id, record)
            except TargetUnavailableError as error:
                report.failed[run_id] = str(error)
                gone = self._still_gone()
            except NeptuneAssetsError as error:
                permanent = permanent or not error.transient
                report.failed[run_id] = str(error)
            except Exception as error:  # noqa: BLE001 - reported by name below; the other runs go on
                permanent = True
                report.failed[run_id] = f"{type(error).__name__}: {error}"
            else:
                if receipt is None:
                    report.skipped.append(run_id)
                else:
                    rows += sum(receipt.rows_in.values())
                    report.loaded.append(run_id)
        report.transient = bool(report.failed) and not permanent
        entries = self.ledger.entries() or {}
        report.known = {run_id: entry for run_id, entry in entries.items() if run_id in records}
        self.ledger.save()
        if progress is not None:
            progress(len(records), len(records), rows)

    def _with_retries(self, run_id: str, record: RunRecord) -> Receipt | None:
        for pause in RETRY_SECONDS:
            try:
                return self._load_one(run_id, record)
            except TargetUnavailableError:
                self.sleep(pause)
        return self._load_one(run_id, record)

    def _still_gone(self) -> TargetUnavailableError | None:
        """Ask once more whether the target answers at all, so that a dead one does not cost every run its pauses."""
        try:
            self.target.check()
        except TargetUnavailableError as error:
            return error
        return None

    def _load_one(self, run_id: str, record: RunRecord) -> Receipt | None:
        """Return the receipt of the run if it was loaded, None if the target held it already."""
        found = self.target.find(self.project.project_id, run_id)
        if (
            found is not None
            and found.digest == record.digest
            and not self.full_refresh
            and self._settled(found, record)
        ):
            return None
        run = self.project.run(run_id)
        plan = self.target.plan(run)
        receipt = self.target.replace(run, plan)
        self.report.receipts = [item for item in self.report.receipts if item.run_id != run_id]
        self.ledger.record(Entry(run_id, receipt.target_id, receipt.digest, receipt))
        self._check(receipt, record)
        self._verify(run, receipt)
        self.report.receipts.append(receipt)
        self.report.notes += [f"{run_id}: {note}" for note in receipt.notes]
        return receipt

    def _settled(self, found: TargetRun, record: RunRecord) -> bool:
        """True if nothing speaks against the digest that the target holds.

        A load that died before reading back is read back now; one that did not read back as loaded is loaded again.
        """
        entry = (self.ledger.entries() or {}).get(record.run_id)
        if entry is None or entry.digest != found.digest or entry.target_id != found.target_id:
            self.ledger.record(Entry(record.run_id, found.target_id, record.digest))
            return True
        if entry.receipt is None or entry.verified:
            return True
        if entry.verified is None:
            try:
                self._verify(self.project.run(record.run_id), entry.receipt)
            except TargetUnavailableError:
                raise
            except TargetError:
                return False
            return True
        return False

    def _check(self, receipt: Receipt, record: RunRecord) -> None:
        """Raise TargetError if rows are not accounted for."""
        wrong = [
            f"{counted} of {rows} {kind} rows are accounted for"
            for kind, (rows, counted) in receipt.unbalanced().items()
        ]
        known = {kind: rows for kind, rows in record.rows.items() if rows}
        if {kind: rows for kind, rows in receipt.rows_in.items() if rows} != known:
            wrong.append(f"the lake holds {known}, the load read {dict(receipt.rows_in)}")
        if receipt.digest != record.digest:
            wrong.append(f"the lake's digest is {record.digest}, the load wrote {receipt.digest}")
        if wrong:
            self._fail(receipt, wrong)

    def _verify(self, run: LakeRun, receipt: Receipt) -> None:
        """Read back over a fresh connection and keep the verdict. Raises TargetError if anything differs."""
        fresh = self.open_target()
        try:
            verdict = fresh.verify(run, receipt)
        finally:
            fresh.close()
        if not verdict.ok:
            self._fail(receipt, verdict.differences)
        self.ledger.record(Entry(receipt.run_id, receipt.target_id, receipt.digest, receipt, verified=True))

    def _fail(self, receipt: Receipt, differences: Iterable[str]) -> None:
        found = tuple(differences)
        self.ledger.record(
            Entry(receipt.run_id, receipt.target_id, receipt.digest, receipt, verified=False, differences=found[:50])
        )
        more = f" (and {len(found) - 5:,} more)" if len(found) > 5 else ""
        raise TargetError(
            f"Run {receipt.run_id!r} does not read back from {self.target.name} as it was loaded: "
            f"{'; '.join(found[:5])}{more}.",
            hint="Load again: the run will be replaced. If this stays, look at the target's log.",
        )


def _why_partial(record: RunRecord) -> str:
    reasons = [issue.message for issue in record.errors[:3]]
    return "partial in the lake" + (f": {'; '.join(reasons)}" if reasons else "")


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    result: dict[str, int] = {}
    for item in counts:
        for kind, rows in item.items():
            result[kind] = result.get(kind, 0) + rows
    return result

"""Load one project from the lake into any target: order, withhold, skip, replace, verify, and say what happened.

Nothing here knows a particular target, and nothing here knows Dagster. The target's own digest decides whether a run is
loaded again; the ledger only remembers receipts and verdicts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from neptune_assets.errors import NeptuneAssetsError, TargetError, TargetUnavailableError
from neptune_assets.lake.lock import ProjectLock
from neptune_assets.lake.manifest import RunRecord
from neptune_assets.lake.reader import LakeProject
from neptune_assets.lake.storage import disk_message
from neptune_assets.retries import RetryPolicy
from neptune_assets.settings import PARALLEL_RUNS
from neptune_assets.targets.concurrency import ReadyQueue, parents_first, run_concurrently, why_partial
from neptune_assets.targets.ledger import Entry, Ledger
from neptune_assets.targets.protocol import Plan, Receipt, Sweeps, Target, TargetRun, runs_at_once
from neptune_assets.targets.report import LoadReport
from neptune_assets.targets.rules import RenamedProject, RenamedRun, Rules

RETRIES: Final = RetryPolicy((1.0, 4.0, 16.0))
"""When a run is tried again because the target does not answer, unless the target itself tried for long enough."""


def load_project(
    project: LakeProject,
    open_target: Callable[[], Target],
    ledger: Ledger,
    *,
    partial_runs: Literal["withhold", "load"] = "withhold",
    parallel_runs: int = PARALLEL_RUNS,
    rules: Rules | None = None,
    full_refresh: bool = False,
    derived: Mapping[str, tuple[str, dict[object, Any]]] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> LoadReport:
    """Make the target hold every complete run of the project exactly once, and read back what was written.

    Up to ``parallel_runs`` runs are loaded at once where the target takes several, a fork never beside its parent.
    ``derived`` is what a plan of this load worked out of runs. ``progress`` gets (runs done, runs in all, rows so far).
    Raises TargetError if the target cannot be used at all and LakeBusyError if the same load is running; what goes
    wrong with one run is in the report, the others go on.
    """
    started = time.monotonic()
    ruled = RenamedProject(project, rules)
    with ledger.lock() as lock:
        target = open_target()
        try:
            target.check()
            report = LoadReport(target.name, project.project_id)
            at_once = min(parallel_runs, runs_at_once(target))
            known = dict(derived or {})
            loading = _Loading(ruled, open_target, target, ledger, report, lock, full_refresh, sleep, at_once, known)
            loading.run(partial_runs, progress)
        finally:
            target.close()
    report.seconds = time.monotonic() - started
    return report


def refusals(plan: Plan, rules: Rules) -> list[str]:
    """Return why a run of this plan must not be loaded; empty if it may be."""
    found = list(plan.problems)
    if rules.refuses_collisions:
        found += [
            f"attributes {', '.join(repr(path) for path in paths[:5])} would all be called {name[:200]!r}"
            for name, paths in sorted(plan.collisions.items())
        ]
    return found


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one run: a receipt, a message, or neither if the target held it already."""

    receipt: Receipt | None = None
    message: str | None = None
    permanent: bool = False


@dataclass
class _Loading:
    """The state of one load of concurrent runs; only the thread that began the load touches the report."""

    project: RenamedProject
    open_target: Callable[[], Target]
    target: Target
    ledger: Ledger
    report: LoadReport
    lock: ProjectLock
    full_refresh: bool
    sleep: Callable[[float], None]
    at_once: int
    """Runs loaded at the same time."""
    derived: dict[str, tuple[str, dict[object, Any]]]
    """Of runs not begun yet."""
    gone: TargetUnavailableError | None = None
    over: bool = False
    ledger_lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, partial_runs: str, progress: Callable[[int, int, int], None] | None) -> None:
        """Load all runs of the project."""
        records = self.project.records()
        report = self.report
        report.total = len(records)
        report.rows = {run_id: record.rows for run_id, record in records.items()}
        if self.ledger.entries() is None:
            self.ledger.rebuild(self.target.runs(self.project.project_id))
        if isinstance(self.target, Sweeps):
            self.target.sweep(self.project.project_id)
        order = []
        for run_id in parents_first(records):
            record = records[run_id]
            if not record.complete and partial_runs == "withhold":
                report.withheld[run_id] = why_partial(record)
            else:
                order.append(run_id)
        self.at_once = min(self.at_once, max(1, len(order)))
        queue = ReadyQueue(order, {run_id: records[run_id].parent for run_id in order})
        permanent = False
        done, rows = len(report.withheld), 0
        self.lock.check()
        if progress is not None and order:
            progress(done, len(records), rows)
        with closing(
            run_concurrently(queue, self.at_once, lambda run_id: self._outcome(run_id, records[run_id]))
        ) as results:
            try:
                for run_id, outcome in results:
                    if outcome.message is not None:
                        report.failed[run_id] = outcome.message
                        permanent = permanent or outcome.permanent
                    elif outcome.receipt is None:
                        report.skipped.append(run_id)
                    else:
                        rows += sum(outcome.receipt.rows_in.values())
                        report.loaded.append(run_id)
                        report.receipts.append(outcome.receipt)
                    done += 1
                    self.lock.check()
                    if progress is not None and done < len(records):
                        progress(done, len(records), rows)
            finally:
                self.over = True
        # The report does not depend on which run was faster.
        place = {run_id: number for number, run_id in enumerate(order)}
        report.loaded.sort(key=place.__getitem__)
        report.skipped.sort(key=place.__getitem__)
        report.receipts.sort(key=lambda receipt: place[receipt.run_id])
        report.failed = dict(sorted(report.failed.items(), key=lambda item: place[item[0]]))
        report.notes = [f"{receipt.run_id}: {note}" for receipt in report.receipts for note in receipt.notes]
        report.transient = bool(report.failed) and not permanent
        entries = self.ledger.entries() or {}
        report.known = {run_id: entry for run_id, entry in entries.items() if run_id in records}
        self.ledger.save()
        if progress is not None:
            progress(len(records), len(records), rows)

    def _outcome(self, run_id: str, record: RunRecord) -> _Outcome:
        """Load one run; whatever goes wrong with it is the outcome, and the other runs go on."""
        if self.gone is not None:
            return _Outcome(message=f"not tried: {self.gone}")
        try:
            return _Outcome(self._with_retries(run_id, record))
        except TargetUnavailableError as error:
            self.gone = self._still_gone()
            return _Outcome(message=str(error))
        except NeptuneAssetsError as error:
            return _Outcome(message=str(error), permanent=not error.transient)
        except OSError as error:
            return _Outcome(message=disk_message(error), permanent=True)
        except Exception as error:  # noqa: BLE001 - reported by name; the other runs go on
            return _Outcome(message=f"{type(error).__name__}: {error}", permanent=True)

    def _with_retries(self, run_id: str, record: RunRecord) -> Receipt | None:
        failures = 0
        while True:
            try:
                return self._load_one(run_id, record)
            except TargetUnavailableError as error:
                failures += 1
                pause = None if self.over or error.retried else RETRIES.pause(failures)
                if pause is None:
                    raise
                self.sleep(pause)

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
            and found.digest == self.project.digest(record)
            and not self.full_refresh
            and self._settled(found, record)
        ):
            return None
        started = time.monotonic()
        run = self.project.run(run_id)
        digest, derived = self.derived.pop(run_id, ("", {}))
        if digest == run.record.digest:
            run.derived.update(derived)
        # Before anything is written, so that what the target holds stays: a damaged run must not replace a good one.
        run.check()
        plan = self.target.plan(run)
        if refused := refusals(plan, self.project.rules):
            raise TargetError(
                f"Run {run_id!r} is not loaded: {'; '.join(refused[:5])}.",
                hint="Change the rules for names, or leave targets.names.collisions at disambiguate.",
            )
        receipt = run.whole(self.target.replace(run, plan))
        self._keep(Entry(run_id, receipt.target_id, receipt.digest, receipt))
        self._check(receipt, run)
        self._verify(run, receipt, started)
        return receipt

    def _settled(self, found: TargetRun, record: RunRecord) -> bool:
        """True if nothing speaks against the digest that the target holds.

        A load that died before reading back is read back now; one that did not read back as loaded is loaded again, and
        so is one of which no receipt was kept: it died, or its answer was lost, before it could be read back.
        """
        with self.ledger_lock:
            entry = (self.ledger.entries() or {}).get(record.run_id)
        if entry is None or entry.digest != found.digest or entry.target_id != found.target_id:
            return False
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

    def _check(self, receipt: Receipt, run: RenamedRun) -> None:
        """Raise TargetError if rows are not accounted for."""
        wrong = [
            f"{counted} of {rows} {kind} rows are accounted for"
            for kind, (rows, counted) in receipt.unbalanced().items()
        ]
        known = {kind: rows for kind, rows in run.original.rows.items() if rows}
        if {kind: rows for kind, rows in receipt.rows_in.items() if rows} != known:
            wrong.append(f"the lake holds {known}, the load read {dict(receipt.rows_in)}")
        if receipt.digest != run.record.digest:
            wrong.append(f"the digest to write is {run.record.digest}, the load wrote {receipt.digest}")
        if wrong:
            self._fail(receipt, wrong)

    def _verify(self, run: RenamedRun, receipt: Receipt, started: float | None = None) -> None:
        """Read back over a fresh connection and keep the verdict. Raises TargetError if anything differs."""
        fresh = self.open_target()
        try:
            verdict = fresh.verify(run, receipt)
        finally:
            fresh.close()
        if not verdict.ok:
            self._fail(receipt, verdict.differences)
        # Concurrent runs share one time: each takes its share, so that the sum is what the load took.
        seconds = None if started is None else round((time.monotonic() - started) / self.at_once, 6)
        self._keep(Entry(receipt.run_id, receipt.target_id, receipt.digest, receipt, verified=True, seconds=seconds))

    def _keep(self, entry: Entry) -> None:
        with self.ledger_lock:
            self.ledger.record(entry)

    def _fail(self, receipt: Receipt, differences: Iterable[str]) -> None:
        found = tuple(differences)
        entry = Entry(receipt.run_id, receipt.target_id, receipt.digest, receipt)
        self._keep(replace(entry, verified=False, differences=found[:50]))
        more = f" (and {len(found) - 5:,} more)" if len(found) > 5 else ""
        raise TargetError(
            f"Run {receipt.run_id!r} does not read back from {self.target.name} as it was loaded: "
            f"{'; '.join(found[:5])}{more}.",
            hint="Load again: the run will be replaced. If this stays, look at the target's log.",
        )

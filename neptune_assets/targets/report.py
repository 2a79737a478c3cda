"""What a load did, run by run, and where every row of the lake went: tables whose totals come to nothing left over.

``rows in the lake = written + mapped + dropped + withheld + failed + unknown``, for each run and attribute type.
*withheld* and *failed* are rows of runs that were not loaded (now); *unknown* are rows of runs that the target holds
with the right digest, but whose receipt was lost with the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from neptune_assets.markdown import Cell, escape, table
from neptune_assets.targets.ledger import Entry
from neptune_assets.targets.protocol import Receipt

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

FATES: Final = pa.schema(
    [
        ("project_id", pa.string()),
        ("run_id", pa.string()),
        ("attribute_type", pa.string()),
        ("fate", pa.string()),
        ("reason", pa.string()),
        ("rows", pa.int64()),
    ]
)
"""One row a run, attribute type, fate and reason; the rows of a run add up to those it has in the lake."""

FATE_NAMES: Final = ("written", "mapped", "dropped", "withheld", "failed", "unknown")

LOST: Final = "the receipt was lost with the ledger; load with full_refresh to have it anew"

_BATCH_RUNS: Final = 1_000


@dataclass
class LoadReport:
    """What one load did. ``receipts`` has those of the runs loaded now; ``known`` has earlier ones of skipped runs."""

    target: str
    project_id: str
    total: int = 0
    loaded: list[str] = field(default_factory=list)
    """Run ids replaced and verified, parents before their forks."""
    skipped: list[str] = field(default_factory=list)
    withheld: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Run id -> what went wrong, for runs that were not loaded or did not read back as loaded."""
    receipts: list[Receipt] = field(default_factory=list)
    known: dict[str, Entry] = field(default_factory=dict)
    rows: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """Run id -> rows by attribute type in the lake, of every run of the project."""
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
        """Rows stored in the target as what they are, by attribute type."""
        return _total(receipt.written for receipt in self.receipts)

    @property
    def mapped(self) -> dict[str, int]:
        """Rows stored in the target in another form, by attribute type."""
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

    def outcomes(self) -> list[tuple[str, str, str | None]]:
        """Return (run id, outcome, message) of every run, sorted."""
        return sorted(
            [
                *((run_id, "failed", message) for run_id, message in self.failed.items()),
                *((run_id, "loaded", None) for run_id in self.loaded),
                *((run_id, "skipped", None) for run_id in self.skipped),
                *((run_id, "withheld", reason) for run_id, reason in self.withheld.items()),
            ]
        )

    def receipt_of(self) -> dict[str, Receipt]:
        """Return the latest receipt of every run that has one."""
        found = {run_id: entry.receipt for run_id, entry in self.known.items() if entry.receipt is not None}
        found.update({receipt.run_id: receipt for receipt in self.receipts})
        return found


@dataclass(frozen=True, slots=True)
class Fate:
    """Rows of one run and attribute type that went the same way."""

    run_id: str
    attribute_type: str
    fate: str
    reason: str | None
    rows: int


def fates(report: LoadReport) -> Iterator[Fate]:
    """Yield where the rows of every run went, run by run."""
    receipts = report.receipt_of()
    for run_id, outcome, message in report.outcomes():
        receipt = receipts.get(run_id)
        if outcome in {"failed", "withheld"} or receipt is None:
            fate, reason = (outcome, message) if outcome in {"failed", "withheld"} else ("unknown", LOST)
            for kind, rows in sorted(report.rows.get(run_id, {}).items()):
                if rows:
                    yield Fate(run_id, kind, fate, reason, rows)
            continue
        for fate, counts in (("written", receipt.written), ("mapped", receipt.mapped)):
            for kind, rows in sorted(counts.items()):
                if rows:
                    yield Fate(run_id, kind, fate, None, rows)
        for item in receipt.dropped:
            if item.rows:
                yield Fate(run_id, item.attribute_type, "dropped", item.reason, item.rows)


@dataclass
class RowAccounting:
    """Rows of a project by attribute type: in the lake, and by fate. ``wrong`` names runs that do not add up."""

    lake: dict[str, int] = field(default_factory=dict)
    fates: dict[str, dict[str, int]] = field(default_factory=dict)
    """attribute type -> fate -> rows."""
    reasons: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """(attribute type, fate, reason) -> rows."""
    wrong: list[tuple[str, str, int]] = field(default_factory=list)
    """(run id, attribute type, rows in the lake minus rows accounted for), where that is not zero."""

    def difference(self, attribute_type: str) -> int:
        """Rows of this type in the lake that nothing accounts for; below zero if too many are."""
        return self.lake.get(attribute_type, 0) - sum(self.fates.get(attribute_type, {}).values())

    @property
    def types(self) -> list[str]:
        """All attribute types, sorted."""
        return sorted({*self.lake, *self.fates})


def balance(report: LoadReport) -> RowAccounting:
    """Add up where all rows went and compare with the lake, run by run."""
    result = RowAccounting()
    open_rows = {(run_id, kind): rows for run_id, counts in report.rows.items() for kind, rows in counts.items()}
    for (_, kind), rows in open_rows.items():
        result.lake[kind] = result.lake.get(kind, 0) + rows
    for item in fates(report):
        of_type = result.fates.setdefault(item.attribute_type, {})
        of_type[item.fate] = of_type.get(item.fate, 0) + item.rows
        if item.reason is not None:
            reason = (item.attribute_type, item.fate, item.reason)
            result.reasons[reason] = result.reasons.get(reason, 0) + item.rows
        key = (item.run_id, item.attribute_type)
        open_rows[key] = open_rows.get(key, 0) - item.rows
    result.wrong = [(run_id, kind, rows) for (run_id, kind), rows in sorted(open_rows.items()) if rows]
    return result


def receipts_reader(report: LoadReport) -> pa.RecordBatchReader:
    """Return the report as a table of one row a run, in :data:`RECEIPTS`."""
    receipts = report.receipt_of()

    def row(run_id: str, outcome: str, message: str | None) -> dict[str, Any]:
        receipt, entry = receipts.get(run_id), report.known.get(run_id)
        known = receipt or entry
        values: dict[str, Any] = {"project_id": report.project_id, "run_id": run_id, "outcome": outcome}
        values |= {"message": message, "target_id": known and known.target_id, "digest": known and known.digest}
        if receipt is not None:
            values |= {
                "rows_in": sum(receipt.rows_in.values()),
                "rows_written": sum(receipt.written.values()),
                "rows_mapped": sum(receipt.mapped.values()),
                "rows_dropped": sum(item.rows for item in receipt.dropped),
                "bytes_written": receipt.bytes_written,
                "dropped": json.dumps([[d.attribute_type, d.reason, d.rows] for d in receipt.dropped]),
                "notes": json.dumps(list(receipt.notes), ensure_ascii=False),
            }
        return values

    return _reader((row(*item) for item in report.outcomes()), RECEIPTS)


def fates_reader(report: LoadReport) -> pa.RecordBatchReader:
    """Return where all rows went as a table in :data:`FATES`."""
    rows = (
        {
            "project_id": report.project_id,
            "run_id": item.run_id,
            "attribute_type": item.attribute_type,
            "fate": item.fate,
            "reason": item.reason,
            "rows": item.rows,
        }
        for item in fates(report)
    )
    return _reader(rows, FATES)


def _reader(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        held: list[dict[str, Any]] = []
        for row in rows:
            held.append(row)
            if len(held) == _BATCH_RUNS:
                yield pa.RecordBatch.from_pylist(held, schema=schema)
                held = []
        if held:
            yield pa.RecordBatch.from_pylist(held, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    result: dict[str, int] = {}
    for item in counts:
        for kind, rows in item.items():
            result[kind] = result.get(kind, 0) + rows
    return result


def balance_page(balance: RowAccounting, cell: Cell = escape) -> str:
    """Return where all rows of a project went, by attribute type, with what nothing accounts for in the last column."""
    rows = []
    for kind in [*balance.types, ""]:
        of = [balance.fates.get(kind, {}).get(fate, 0) for fate in FATE_NAMES]
        if not kind:
            of = [sum(fates.get(fate, 0) for fates in balance.fates.values()) for fate in FATE_NAMES]
        total = balance.lake.get(kind, 0) if kind else sum(balance.lake.values())
        rows.append((kind or "all", *(f"{n:,}" for n in (total, *of, total - sum(of)))))
    parts = [table(["attribute type", "in the lake", *FATE_NAMES, "not accounted for"], rows, cell=cell)]
    if balance.reasons:
        reasons = [(kind, fate, why, f"{n:,}") for (kind, fate, why), n in sorted(balance.reasons.items())]
        parts.append(table(["attribute type", "fate", "reason", "rows"], reasons, cell=cell, more="are in the table"))
    return "\n\n".join(parts)

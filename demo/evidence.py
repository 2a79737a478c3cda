"""What the lake, its summary and the targets' ledgers hold of each project, read and counted again from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from neptune_assets.errors import NeptuneAssetsError
from neptune_assets.lake.layout import Layout, safe_name
from neptune_assets.lake.manifest import RunRecord
from neptune_assets.lake.reader import Lake, LakeProject
from neptune_assets.settings import LakeSettings
from neptune_assets.summary.tables import TABLES
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.protocol import Dropped


@dataclass
class TargetEvidence:
    """What a target's ledger says of a project's runs: rows by fate, and how many runs read back as they are."""

    rows_in: int = 0
    written: int = 0
    mapped: int = 0
    dropped: list[Dropped] = field(default_factory=list)
    verified: int = 0

    @property
    def dropped_rows(self) -> int:
        """Rows that the target cannot hold."""
        return sum(item.rows for item in self.dropped)


@dataclass
class ProjectEvidence:
    """One project. ``rows`` by attribute type, counted in Parquet; ``summary`` holds rows by table."""

    project_id: str
    records: dict[str, RunRecord]
    listed: int = 0
    source_bytes: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    files: int = 0
    file_bytes: int = 0
    parquet_bytes: int = 0
    summary: dict[str, int] = field(default_factory=dict)
    targets: dict[str, TargetEvidence] = field(default_factory=dict)

    @property
    def complete(self) -> int:
        """Runs of which everything arrived."""
        return sum(record.complete for record in self.records.values())

    @property
    def total_rows(self) -> int:
        """Rows of all types."""
        return sum(self.rows.values())


def gather(root: Path, wanted: Sequence[str], targets: Sequence[str]) -> tuple[list[ProjectEvidence], list[str]]:
    """Read everything of the projects in the lake; returns them with everything that is wrong, in words.

    ``wanted`` projects that are not there are problems, and so is any run that one of ``targets`` lacks.
    """
    settings = LakeSettings(root=str(root.resolve()))
    lake, problems = Lake(settings), []
    present = lake.projects()
    problems += [f"{name} is not in the lake." for name in wanted if name not in present]
    if not present:
        problems.append(f"{root} holds no project: run `make demo` first.")
    found: list[ProjectEvidence] = []
    for name in present:
        try:
            project = lake.project(name)
            evidence = ProjectEvidence(name, dict(project.records()))
            _read_source(settings, evidence, problems)
            _read_lake(settings, project, evidence, problems)
            _read_summary(settings, evidence, problems)
            for target in targets:
                evidence.targets[target] = _read_target(settings, target, evidence, problems)
        except (NeptuneAssetsError, OSError, duckdb.Error) as error:
            problems.append(f"{name}: {error}")
        else:
            found.append(evidence)
    if not Path(Layout(settings.root).database()).is_file():
        problems.append(f"{root / 'neptune.duckdb'} is missing.")
    return found, problems


def _read_source(settings: LakeSettings, evidence: ProjectEvidence, problems: list[str]) -> None:
    path = Path(settings.root) / "source" / "inventory" / f"{safe_name(evidence.project_id)}.parquet"
    if not path.is_file():
        problems.append(f"{evidence.project_id}: the source's inventory is missing.")
        return
    rows = duckdb.execute("SELECT run_id, size FROM read_parquet($1)", [str(path)]).fetchall()
    evidence.listed = len(rows)
    evidence.source_bytes = sum(size for _, size in rows)
    for run_id in sorted({run_id for run_id, _ in rows} ^ set(evidence.records)):
        where = "not in the lake" if run_id not in evidence.records else "in the lake, but not listed by the source"
        problems.append(f"{evidence.project_id}: run {run_id} is {where}.")


def _read_lake(settings: LakeSettings, project: LakeProject, evidence: ProjectEvidence, problems: list[str]) -> None:
    parts = [part for paths in project.parts().values() for part in paths]
    counted: dict[str, dict[str, int]] = {}
    if parts:
        sql = "SELECT run_id, attribute_type, count(*) FROM read_parquet($1) GROUP BY ALL"
        for run_id, kind, rows in duckdb.execute(sql, [parts]).fetchall():
            counted.setdefault(run_id, {})[kind] = rows
            evidence.rows[kind] = evidence.rows.get(kind, 0) + rows
    folder = Path(Layout(settings.root).files(evidence.project_id))
    for run_id, record in evidence.records.items():
        what = f"{evidence.project_id}: run {run_id}"
        if not record.complete:
            problems.append(f"{what} is partial: {'; '.join(issue.message for issue in record.errors) or 'no reason'}")
        if {kind: rows for kind, rows in record.rows.items() if rows} != counted.get(run_id, {}):
            problems.append(f"{what} has other rows in Parquet than in the manifest.")
        evidence.parquet_bytes += sum(part.bytes for part in record.parts)
        evidence.files += len(record.files)
        evidence.file_bytes += sum(item.size for item in record.files)
        changed = [item for item in record.files if _sha256(folder / item.path) != item.sha256]
        problems += [f"{what}: the file of {item.attribute_path} is missing or has changed." for item in changed]


def _read_summary(settings: LakeSettings, evidence: ProjectEvidence, problems: list[str]) -> None:
    for name in TABLES:
        path = Path(Layout(settings.root).summary(name, evidence.project_id))
        if not path.is_file():
            problems.append(f"{evidence.project_id}: summary table {name} is missing.")
            continue
        evidence.summary[name] = _one("SELECT count(*) FROM read_parquet($1)", path)
    if "runs" in evidence.summary and evidence.summary["runs"] != len(evidence.records):
        problems.append(f"{evidence.project_id}: the summary has {evidence.summary['runs']} runs.")
    if "metrics" in evidence.summary:
        path = Path(Layout(settings.root).summary("metrics", evidence.project_id))
        points = _one('SELECT coalesce(sum("count"), 0)::BIGINT FROM read_parquet($1)', path)
        if points != evidence.rows.get("float_series", 0):
            problems.append(f"{evidence.project_id}: the summary counts {points} metric points.")


def _read_target(settings: LakeSettings, target: str, evidence: ProjectEvidence, problems: list[str]) -> TargetEvidence:
    entries = Ledger(settings, target, evidence.project_id).entries() or {}
    held = TargetEvidence()
    for run_id, record in evidence.records.items():
        what = f"{evidence.project_id}: run {run_id}"
        entry = entries.get(run_id)
        if entry is None or entry.receipt is None:
            problems.append(f"{what} is not loaded into {target}.")
            continue
        receipt = entry.receipt
        held.rows_in += sum(receipt.rows_in.values())
        held.written += sum(receipt.written.values())
        held.mapped += sum(receipt.mapped.values())
        held.dropped += receipt.dropped
        if entry.digest != record.digest:
            problems.append(f"{what} has changed in the lake since it was loaded into {target}.")
        elif receipt.unbalanced():
            problems.append(f"{what}: rows do not add up in {target}: {receipt.unbalanced()}.")
        elif not entry.verified:
            problems.append(f"{what} is not verified in {target}: {'; '.join(entry.differences) or 'not read back'}.")
        else:
            held.verified += 1
    return held


def _one(sql: str, path: Path) -> int:
    row = duckdb.execute(sql, [str(path)]).fetchone()
    return int(row[0]) if row is not None else 0


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

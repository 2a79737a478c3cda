"""Whether what was derived from the lake is as it was written: statistics, tables, receipts and neptune.duckdb.

All of it can be made again, so damage is named with what makes it again. ``verify`` asks here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb

from neptune_assets.lake.integrity import UNKNOWN, difference
from neptune_assets.lake.layout import Layout, safe_name
from neptune_assets.lake.storage import Storage
from neptune_assets.lake.verification import Damage, VerifyReport
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings, SummarySettings
from neptune_assets.summary.database import LAKE_VIEWS
from neptune_assets.summary.tables import TABLES
from neptune_assets.targets.ledger import Ledger


@dataclass(frozen=True, slots=True)
class DerivedDamage:
    """One derived file that is not as it was written."""

    kind: Literal["statistics", "table", "receipts", "database"]
    path: str
    message: str
    hint: str


def damaged_files(settings: LakeSettings, project_id: str) -> Iterator[DerivedDamage]:
    """Read every file derived from one project and yield those that are not as they were written.

    Files of before derived files were hashed are passed over. Raises OSError if one cannot be read.
    """
    storage = Storage(settings.root, settings.storage)
    layout, name = Layout(storage.root), safe_name(project_id)
    statistics = layout.statistics(project_id)
    for file in storage.names(statistics):
        if file.endswith(".parquet"):
            hint = "Materialize the project's summary: it makes them again."
            yield from _compared(storage, "statistics", f"{statistics}/{file}", hint)
    for stage in ("summary", "targets"):
        for table in storage.names(f"{layout.root}/{stage}"):
            directory = f"{layout.root}/{stage}/{table}"
            for file in storage.names(directory):
                path = f"{directory}/{file}"
                if file in {f"{name}.parquet", f"{name}.report.parquet"}:
                    yield from _compared(storage, "table", path, f"Materialize {stage}/{table} of {project_id} again.")
                elif file == f"{name}.jsonl" and Ledger(settings, table, project_id).damage():
                    yield DerivedDamage(
                        "receipts",
                        storage.url(path),
                        "A line is not as it was written.",
                        f"Load {project_id} into {table} again: receipts are made from what the target holds.",
                    )


def report_derived(
    report: VerifyReport, lake: LakeSettings, summary: SummarySettings | None, project_ids: Iterable[str]
) -> None:
    """Add what is damaged of all that was derived from these projects to a report; the database if it is known."""
    for project_id in project_ids:
        for item in damaged_files(lake, project_id):
            report.damaged.append(_damage(project_id, item))
    database = None if summary is None else damaged_database(lake, summary)
    if database is not None:
        report.damaged.append(_damage("all projects", database))


def _damage(project_id: str, item: DerivedDamage) -> Damage:
    return Damage(project_id, Scope.RUNS, None, item.kind, f"{item.path}: {item.message} {item.hint}")


def damaged_database(lake: LakeSettings, summary: SummarySettings) -> DerivedDamage | None:
    """Open neptune.duckdb, which has checksums of its own, and look for its views; None if it is fine or not there."""
    storage = Storage(lake.root, lake.storage)
    path = summary.database or (Layout(storage.root).database() if storage.local else None)
    if path is None or not Path(path).is_file():
        return None
    try:
        with duckdb.connect(str(path), read_only=True) as con:
            views = {
                row[0] for row in con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
            }
        missing = sorted({*TABLES, *LAKE_VIEWS} - views)
        message = f"The views {', '.join(missing)} are missing." if missing else None
    except duckdb.Error as error:
        message = f"DuckDB cannot open it: {error}"
    if message is None:
        return None
    return DerivedDamage("database", str(path), message, "Materialize summary/neptune_duckdb again.")


def _compared(storage: Storage, kind: Literal["statistics", "table"], path: str, hint: str) -> Iterator[DerivedDamage]:
    damage = difference(path, None if storage.local else storage.filesystem)
    if damage not in {None, UNKNOWN}:
        yield DerivedDamage(kind, storage.url(path), f"It is damaged: {damage}.", hint)

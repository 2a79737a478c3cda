"""Runs of a lake into the catalog: from the statistics that the lake's writer left, scanning only runs without any."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from neptune_assets.server.catalog.pending import LAST, VARIANCE
from neptune_assets.server.catalog.runs import Run, made_up_sys_id
from neptune_assets.summary.tables import Summary

if TYPE_CHECKING:
    import duckdb

    from neptune_assets.lake.reader import LakeProject

_MICRO: Final = "(CAST({0} AS DECIMAL(38, 6)) * 1000000)::BIGINT"
_RUNS: Final = f"""
    SELECT run_id, sys_id, name, epoch_ms(created_at) AS created, coalesce(trashed, false) AS trashed,
        coalesce(archived, false) AS archived, parent, {_MICRO.format("fork_step")} AS fork_step
    FROM run_facts
"""  # noqa: S608
_PARAMS: Final = """
    SELECT run_id, attribute_path AS path, attribute_type AS type, float_value AS number, int_value AS whole,
        string_value AS text, bool_value AS flag, milliseconds AS moment, string_set_value AS members,
        0 AS pending
    FROM params_facts
"""
# A plain file is described by the manifest alone; so is the last file of a series.
_SERIES: Final = f"""
    WITH stored AS (
        SELECT run_id, attribute_path, attribute_type,
            to_json({{
                'path': arg_max(path, coalesce(step, 0)), 'size': arg_max(size, coalesce(step, 0))
            }})::VARCHAR AS detail
        FROM manifest_files
        WHERE attribute_type IN ('file', 'file_series')
        GROUP BY ALL
        UNION ALL
        SELECT run_id, attribute_path, attribute_type,
            to_json({{'size': sum(size)::BIGINT, 'files': count(*)}})::VARCHAR
        FROM manifest_files
        WHERE attribute_type NOT IN ('file', 'file_series')
        GROUP BY ALL
    )
    SELECT run_id, attribute_path AS path, attribute_type AS type, last_value AS number, min_value AS least,
        max_value AS greatest, least(max_value, greatest(min_value, mean_value)) AS mean, variance_value AS variance,
        row_count AS points,
        {_MICRO.format("first_step")} AS first_step, {_MICRO.format("last_step")} AS last_step, stored.detail,
        CASE
            WHEN attribute_type = 'float_series'
                THEN CASE WHEN variance_value IS NULL AND min_value IS NOT NULL THEN {VARIANCE} ELSE 0 END
            WHEN attribute_type IN ('string_series', 'histogram_series') THEN {LAST}
            WHEN attribute_type = 'file_series' AND stored.detail IS NULL THEN {LAST}
            ELSE 0
        END AS pending
    FROM series_facts LEFT JOIN stored USING (run_id, attribute_path, attribute_type)
"""  # noqa: S608
_OWN: Final = {
    "sys/id": ("text", pa.string()),
    "sys/custom_run_id": ("text", pa.string()),
    "sys/trashed": ("flag", pa.bool_()),
    "sys/archived": ("flag", pa.bool_()),
}
"""Attributes that every run has, whether or not the lake holds them, with the column of their value."""


def runs_of(
    project: LakeProject, summary: Summary, numbers: Mapping[str, int], taken: Collection[str]
) -> Iterator[Run]:
    """Yield the runs that a summary covers, with these catalog numbers.

    One without a sys/id, or with one of those ``taken`` by other runs, gets one that is made up.
    """
    records = project.records()
    used = set(taken)
    for row in summary.stream(_RUNS).read_all().to_pylist():
        run_id, sys_id = row["run_id"], row["sys_id"]
        if not sys_id or sys_id in used:
            sys_id = made_up_sys_id(run_id, used)
        used.add(sys_id)
        yield Run(
            number=numbers[run_id],
            project=project.project_id,
            scope=project.scope.value,
            run_id=run_id,
            sys_id=sys_id,
            origin="lake",
            experiment=row["name"] or None,
            created=row["created"],
            trashed=row["trashed"],
            archived=row["archived"],
            parent=None if row["parent"] is None else (project.project_id, row["parent"]),
            fork_step=row["fork_step"],
            version=records[run_id].digest,
        )


def import_attributes(con: duckdb.DuckDBPyConnection, summary: Summary, runs: Collection[Run]) -> None:
    """Add the attributes of these runs, which a summary covers, to ``incoming``."""
    numbered = pa.table(
        {
            "run_id": pa.array([run.run_id for run in runs], pa.string()),
            "run": pa.array([run.number for run in runs], pa.int32()),
        }
    )
    con.register("numbered", numbered)
    for sql in (_PARAMS, _SERIES):
        con.register("facts", summary.stream(sql))
        con.execute(
            "INSERT INTO incoming BY NAME SELECT run, facts.* EXCLUDE (run_id) FROM facts JOIN numbered USING (run_id)"
        )
        con.unregister("facts")
    con.unregister("numbered")
    for path, (column, kind) in _OWN.items():
        own = pa.table(
            {
                "run": pa.array([run.number for run in runs], pa.int32()),
                "path": pa.repeat(pa.scalar(path), len(runs)),
                "type": pa.repeat(pa.scalar("bool" if column == "flag" else "string"), len(runs)),
                column: pa.array([_own(run, path) for run in runs], kind),
                "pending": pa.repeat(pa.scalar(0, pa.uint8()), len(runs)),
            }
        )
        con.register("own", own)
        con.execute("DELETE FROM incoming USING own WHERE incoming.run = own.run AND incoming.path = own.path")
        con.execute("INSERT INTO incoming BY NAME SELECT * FROM own")
        con.unregister("own")


def _own(run: Run, path: str) -> str | bool:
    if path == "sys/id":
        return run.sys_id
    if path == "sys/custom_run_id":
        return run.run_id
    return run.trashed if path == "sys/trashed" else run.archived

"""Tables of the summary: their columns, types and what each means, declared once.

Parquet files, DuckDB's views and comments, and Dagster's table schemas all come from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import pyarrow as pa

from neptune_assets.schema import STEP_TYPE, TIME_TYPE

TEXT: Final = pa.string()
COUNT: Final = pa.int64()
NUMBER: Final = pa.float64()
FLAG: Final = pa.bool_()
TEXTS: Final = pa.list_(pa.string())


@dataclass(frozen=True, slots=True)
class Column:
    """One column: name, Arrow type, and what it means in words."""

    name: str
    type: pa.DataType
    description: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table: what a row is, and its columns in order."""

    description: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema, each field with its description in the metadata."""
        return pa.schema([pa.field(c.name, c.type, metadata={"description": c.description}) for c in self.columns])


_PROJECT: Final = Column("project_id", TEXT, "Neptune project, workspace/project.")
_RUN: Final = Column("run_id", TEXT, "Run, by the id it has in the lake.")
_PATH: Final = Column("attribute_path", TEXT, "Path of the attribute, as logged.")
_TYPE: Final = Column("attribute_type", TEXT, "Type of the attribute.")

TABLES: Final[Mapping[str, Table]] = MappingProxyType(
    {
        "projects": Table(
            "One row per project.",
            (
                _PROJECT,
                Column("runs", COUNT, "Runs in the lake, vanished ones included."),
                Column("complete_runs", COUNT, "Runs of which everything that the source promised arrived."),
                Column("partial_runs", COUNT, "Runs of which something is missing."),
                Column("vanished_runs", COUNT, "Runs that the source no longer holds."),
                Column("forked_runs", COUNT, "Runs that name a parent."),
                Column("attributes", COUNT, "Distinct pairs of attribute path and type."),
                Column("metrics", COUNT, "Float series, counted once in each run."),
                Column("points", COUNT, "Points of all float series."),
                Column("rows", COUNT, "Rows of all types."),
                Column("files", COUNT, "Stored files."),
                Column("file_bytes", COUNT, "Bytes of the stored files."),
                Column("parquet_bytes", COUNT, "Bytes of the Parquet parts."),
                Column("errors", COUNT, "Errors that the source or the lake reported."),
                Column("first_created_at", TIME_TYPE, "When the oldest run was created."),
                Column("last_created_at", TIME_TYPE, "When the youngest run was created."),
                Column("last_committed_at", TIME_TYPE, "When the lake last took a run."),
                Column("digest", TEXT, "Content digest of the project: equal digests mean equal content."),
            ),
        ),
        "runs": Table(
            "One row per run.",
            (
                _PROJECT,
                _RUN,
                Column("sys_id", TEXT, "Neptune's short id, from sys/id."),
                Column("custom_run_id", TEXT, "Id that the user chose, from sys/custom_run_id."),
                Column("name", TEXT, "Name of the run or experiment, from sys/name."),
                Column("description", TEXT, "Description, from sys/description."),
                Column("created_at", TIME_TYPE, "Creation, from sys/creation_time or else from the source's listing."),
                Column("modified_at", TIME_TYPE, "Last change, from sys/modification_time."),
                Column(
                    "pinged_at", TIME_TYPE, "Last sign of life, from sys/ping_time: Neptune keeps no time of ending."
                ),
                Column("running_seconds", NUMBER, "Seconds the run was running, from sys/running_time."),
                Column("run_state", TEXT, "State in Neptune, from sys/state."),
                Column("owner", TEXT, "Owner, from sys/owner."),
                Column("failed", FLAG, "Whether the run failed, from sys/failed."),
                Column("trashed", FLAG, "Whether the run is in the trash, from sys/trashed."),
                Column("archived", FLAG, "Whether the run is archived, from sys/archived."),
                Column("tags", TEXTS, "Tags, from sys/tags."),
                Column("group_tags", TEXTS, "Group tags, from sys/group_tags."),
                Column("parent", TEXT, "Run it was forked from, as recorded."),
                Column("fork_step", STEP_TYPE, "Step of the parent at which it was forked."),
                Column("attributes", COUNT, "Attributes of all types."),
                Column("metrics", COUNT, "Float series."),
                Column("points", COUNT, "Points of all float series."),
                Column("rows", COUNT, "Rows of all types."),
                Column("files", COUNT, "Stored files."),
                Column("file_bytes", COUNT, "Bytes of the stored files."),
                Column("parquet_bytes", COUNT, "Bytes of the run's Parquet parts."),
                Column("lake_state", TEXT, "complete if everything that the source promised arrived, else partial."),
                Column("errors", COUNT, "Errors that the source or the lake reported for the run."),
                Column("first_error", TEXT, "The first of these errors."),
                Column("in_place", FLAG, "Whether the data stays where the export lies."),
                Column("committed_at", TIME_TYPE, "When the lake took the run."),
                Column("vanished_at", TIME_TYPE, "When the run was found gone from the source; null if it is there."),
                Column("source", TEXT, "Kind of source that the run came from."),
                Column("digest", TEXT, "Content digest of the run: equal digests mean equal content."),
            ),
        ),
        "attributes": Table(
            "One row per attribute path and type of a project.",
            (
                _PROJECT,
                _PATH,
                _TYPE,
                Column("runs", COUNT, "Runs that have the attribute."),
                Column("rows", COUNT, "Rows in all runs: points of series, one otherwise."),
                Column(
                    "first_seen", TIME_TYPE, "Earliest timestamp of a point; creation of the run where there is none."
                ),
                Column("last_seen", TIME_TYPE, "Latest timestamp of a point; creation of the run where there is none."),
            ),
        ),
        "metrics": Table(
            "One row per float series of a run.",
            (
                _PROJECT,
                _RUN,
                _PATH,
                Column("count", COUNT, "Points, whatever their value."),
                Column("nan_count", COUNT, "Points that are not a number."),
                Column("positive_infinity_count", COUNT, "Points that are +infinity."),
                Column("negative_infinity_count", COUNT, "Points that are -infinity."),
                Column("first_value", NUMBER, "Value at the lowest step, exact; may be NaN or infinite."),
                Column("last_value", NUMBER, "Value at the highest step, exact; may be NaN or infinite."),
                Column("min_value", NUMBER, "Smallest finite value, exact; null if none is finite."),
                Column("max_value", NUMBER, "Largest finite value, exact; null if none is finite."),
                Column(
                    "mean_value",
                    NUMBER,
                    "Mean of the finite values; its last digits may differ between computations, because they are "
                    "summed in no fixed order.",
                ),
                Column("first_step", STEP_TYPE, "Lowest step."),
                Column("last_step", STEP_TYPE, "Highest step."),
                Column("first_time", TIME_TYPE, "Earliest timestamp."),
                Column("last_time", TIME_TYPE, "Latest timestamp."),
            ),
        ),
        "params": Table(
            "One row per parameter of a run: every attribute that is neither series nor file.",
            (
                _PROJECT,
                _RUN,
                _PATH,
                _TYPE,
                Column("text", TEXT, "The value as text: integers and floats exact, times in ISO 8601, sets as JSON."),
                Column("int_value", pa.int64(), "Value of an int."),
                Column("float_value", NUMBER, "Value of a float; may be NaN or infinite."),
                Column("string_value", TEXT, "Value of a string."),
                Column("bool_value", FLAG, "Value of a bool."),
                Column("datetime_value", TIME_TYPE, "Value of a datetime."),
                Column("string_set_value", TEXTS, "Members of a string set."),
            ),
        ),
        "files": Table(
            "One row per stored file; members of a file set have one row each.",
            (
                _PROJECT,
                _RUN,
                _PATH,
                _TYPE,
                Column("step", STEP_TYPE, "Step of a file of a series; null otherwise."),
                Column("member", TEXT, "Path inside the file set; null for single files."),
                Column("path", TEXT, "Path in the project's files directory."),
                Column("size", COUNT, "Bytes."),
                Column("sha256", TEXT, "SHA-256 of the content, in hex."),
                Column("location", TEXT, "Absolute path or URL."),
            ),
        ),
        "lineage": Table(
            "One row per run: where it was forked from.",
            (
                _PROJECT,
                _RUN,
                Column("parent", TEXT, "Run it was forked from, as recorded; null if it is no fork."),
                Column("parent_run_id", TEXT, "That run's id in the lake; null if the lake does not hold it."),
                Column("fork_step", STEP_TYPE, "Step of the parent at which it was forked."),
                Column("depth", COUNT, "Forks between it and its root: 0 for a root; null in and below a cycle."),
                Column(
                    "root", TEXT, "The run at the start of its line that the lake holds; null in and below a cycle."
                ),
                Column("orphan", FLAG, "It names a parent that the lake does not hold."),
                Column("cyclic", FLAG, "Its line of parents runs in a circle."),
            ),
        ),
    }
)


def columns(table: str) -> list[tuple[str, str, str]]:
    """Return (name, Arrow type as text, description) of every column of a table, in order."""
    return [(column.name, str(column.type), column.description) for column in TABLES[table].columns]

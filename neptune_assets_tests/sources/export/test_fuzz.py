"""Exports whose Parquet was changed in any way: what is not read is named, and the other runs are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neptune_assets_tests.support.export_factory import EXPORTER_SCHEMA, ExportFactory, as_table, run_v2, run_v3
from neptune_assets_tests.support.export_reading import PROJECT, messages, read, source

COLUMNS = st.sampled_from(EXPORTER_SCHEMA.names)
KEYS = ("project_id", "run_id", "attribute_path", "attribute_type")
Change = Callable[[pa.Table], pa.Table]


def _put(table: pa.Table, name: str, column: Any) -> pa.Table:
    if table.column_names.count(name) != 1:
        return table
    return table.set_column(table.column_names.index(name), name, column)


def _with_type(name: str, kind: pa.DataType) -> Change:
    def change(table: pa.Table) -> pa.Table:
        if table.column_names.count(name) != 1:
            return table
        try:
            return _put(table, name, table[name].cast(kind, safe=False))
        except (pa.ArrowException, ValueError):
            return _put(table, name, pa.nulls(table.num_rows, kind))

    return change


def _with_values(name: str, column: Callable[[int], pa.Array], rows: set[int]) -> Change:
    def change(table: pa.Table) -> pa.Table:
        if table.column_names.count(name) != 1 or not table.num_rows:
            return table
        made = column(table.num_rows)
        if not table[name].type.equals(made.type):
            return table
        old = table[name].combine_chunks()
        picked = pa.array([row % table.num_rows in {each % table.num_rows for each in rows} for row in range(len(old))])
        indices = [row + len(old) if here else row for row, here in enumerate(picked.to_pylist())]
        return _put(table, name, pa.concat_arrays([old, made]).take(pa.array(indices)))

    return change


def _moments(milliseconds: int) -> Callable[[int], pa.Array]:
    return lambda count: pa.array([milliseconds] * count, pa.int64()).view(pa.timestamp("ms", tz="UTC"))


TYPES = st.sampled_from(
    [
        *(pa.null(), pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.bool_(), pa.binary(), pa.large_string()),
        *(pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("ns", tz="Europe/Warsaw"), pa.date32()),
        *(pa.decimal128(38, 12), pa.decimal128(4, 1), pa.list_(pa.string()), pa.list_(pa.list_(pa.int32()))),
        *(pa.struct([("path", pa.string())]), pa.struct([("path", pa.int64()), ("x", pa.string())])),
        pa.dictionary(pa.int32(), pa.string()),
    ]
)
ROWS = st.sets(st.integers(0, 40), min_size=1, max_size=4)
EXTREMES = st.one_of(
    st.sampled_from([-(2**63), 2**63 - 1, -1, 0, 2**62, 253_402_300_800_000]), st.integers(-(2**63), 2**63 - 1)
)
TEXTS = st.one_of(st.text(max_size=20), st.just("x" * 300_000), st.just("float_series"), st.just("sys/id\x00"))
CHANGES = st.one_of(
    st.builds(_with_type, COLUMNS, TYPES),
    st.builds(
        lambda name: lambda table: table.drop_columns([name]) if table.column_names.count(name) == 1 else table, COLUMNS
    ),
    st.builds(
        lambda name, rows: (
            lambda table: (
                _with_values(name, lambda count: pa.nulls(count, table.schema.field(name).type), rows)(table)
                if table.column_names.count(name) == 1
                else table
            )
        ),
        COLUMNS,
        ROWS,
    ),
    st.builds(
        lambda name, text, rows: _with_values(name, lambda count: pa.array([text] * count, pa.string()), rows),
        *(st.sampled_from(["string_value", *KEYS]), TEXTS, ROWS),
    ),
    st.builds(
        lambda name, value, rows: _with_values(name, _moments(value), rows),
        *(st.sampled_from(["timestamp", "datetime_value"]), EXTREMES, ROWS),
    ),
    st.builds(lambda name: lambda table: table.append_column(name, pa.nulls(table.num_rows, pa.string())), COLUMNS),
    st.builds(lambda count: lambda table: table.slice(0, count), st.integers(0, 5)),
)
BYTES = st.one_of(
    st.none(),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.floats(0, 0.9999)),
    st.tuples(st.just("suffix"), st.sampled_from([0.0, 1.0])),
)


def _damage(path: Path, how: tuple[str, float]) -> None:
    content = bytearray(path.read_bytes())
    place = int(how[1] * len(content))
    if how[0] == "cut":
        path.write_bytes(content[:place])
    elif how[0] == "flip":
        content[place] ^= 0x41
        path.write_bytes(content)
    else:
        path.rename(path.with_suffix(".PARQUET" if how[1] else ".parquet.gz"))


def _check(runs: Any, number: int, changes: list[Change], how: tuple[str, float] | None) -> None:
    with TemporaryDirectory() as directory:
        factory = ExportFactory(Path(directory))
        whole = [as_table([row for group in runs("healthy") for row in group], PROJECT, "healthy")]
        tables = [as_table(group, PROJECT, "changed") for group in runs("changed")]
        for change in changes:
            tables[number] = change(tables[number])
        factory.run(PROJECT, "healthy", *whole)
        factory.run(PROJECT, "changed", *tables)
        (path,) = [factory.part(PROJECT, "changed", number)]
        if how is not None:
            _damage(path, how)
        export = source(factory)
        assert export.projects() == [PROJECT]
        listed = [info.run_id for info in export.runs(PROJECT)]
        table, end = read(export, "healthy")
        assert table.num_rows == whole[0].num_rows
        assert not end.errors
        said = export.problems(PROJECT)
        rows = promised = 0
        for run_id in set(listed) - {"healthy"}:
            table, end = read(export, run_id)
            table.validate(full=True)
            rows += table.num_rows
            promised += sum(count for name, count in end.repairs.items() if "=" not in name and "shift" not in name)
            said = [*said, *end.errors]
        # A flip may leave as many rows as there were, or a part that is cut just before its footer.
        missing = sum(each.num_rows for each in tables) - rows - promised
        named = [issue for issue in said if not issue.notice]
        assert missing <= 0 or named, (missing, messages(said))


RUNS = st.sampled_from([run_v2, run_v3])
CASES = {
    "runs": RUNS,
    "number": st.integers(0, 2),
    "changes": st.lists(CHANGES, max_size=3),
    "how": BYTES,
}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(**CASES)
def test_what_is_not_read_of_a_changed_export_is_named(runs, number, changes, how):
    _check(runs, number, changes, how)


@pytest.mark.slow
@settings(max_examples=3_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(**CASES)
def test_what_is_not_read_of_many_changed_exports_is_named(runs, number, changes, how):
    _check(runs, number, changes, how)

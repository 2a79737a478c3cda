from __future__ import annotations

import math
import random
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neptune_assets.lake.digest import RunDigest, digest_of_project
from neptune_assets.lake.manifest import FileRecord, RunRecord
from neptune_assets.lake.sorting import RunSorter
from neptune_assets_tests.support.lake_factory import file, histograms, metric, param, params, texts
from neptune_assets_tests.support.table_source import as_table


def digest(rows: Sequence[dict[str, Any]], sizes: Sequence[int] = (10_000,), files: Any = None) -> str:
    table = as_table("ws/p", "r", rows)
    with RunSorter(1_000_000, 128) as sorter:
        start = 0
        place = 0
        while start < table.num_rows:
            size = sizes[place % len(sizes)]
            for batch in table.slice(start, size).combine_chunks().to_batches():
                sorter.add(batch)
            start, place = start + size, place + 1
        result = RunDigest(sorter.attributes.names, files)
        for rows_ in sorter.sorted_rows():
            cut = 0
            while cut < rows_.num_rows:
                size = sizes[place % len(sizes)]
                result.update(rows_.slice(cut, size))
                cut, place = cut + size, place + 1
        return result.hexdigest()


def h(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def framed(text: str) -> bytes:
    return struct.pack("<q", len(text.encode())) + text.encode()


def test_the_digest_is_what_its_description_says() -> None:
    # Computed here from the description alone: one metric of two points.
    rows = metric("loss", [1.5, float("nan")], steps=["0", "0.5"], start=datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    steps = struct.pack("<qq", 0, 500_000)
    times = struct.pack("<qq", 1000, 2000)
    values = struct.pack("<d", 1.5) + struct.pack("<Q", 0x7FF8000000000000)
    one = h(
        framed("loss")
        + framed("float_series")
        + struct.pack("<q", 2)
        + h(steps)
        + h(times)
        + h(b"\x01\x01")
        + h(values)
    )
    assert digest(rows) == blake2b(one, digest_size=16, person=b"neptune_assets-d").hexdigest()


def test_an_empty_run_has_a_digest() -> None:
    assert digest([]) == blake2b(b"", digest_size=16, person=b"neptune_assets-d").hexdigest()


FLOATS = st.one_of(
    st.floats(width=64), st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, 2.0**53 + 2])
)
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.sampled_from(["a", "A", "a/b", "ü", "a b", "z" * 1200, "a\0b"])


@st.composite
def runs(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in draw(st.lists(NAMES, unique=True, max_size=5)):
        kind = draw(st.sampled_from(["metric", "text", "histogram", "float", "int", "string", "bool", "set", "time"]))
        if kind in {"metric", "text", "histogram"}:
            micro = draw(st.lists(st.integers(-(10**18) + 1, 10**18 - 1), unique=True, min_size=1, max_size=12))
            steps = [Decimal(step) / 1_000_000 for step in micro]
            count = len(steps)
            if kind == "metric":
                values = draw(st.lists(st.one_of(st.none(), FLOATS), min_size=count, max_size=count))
                rows += metric(name, values, steps)
            elif kind == "text":
                rows += texts(name, draw(st.lists(TEXTS, min_size=count, max_size=count)), steps)
            else:
                edges = draw(st.lists(st.lists(FLOATS, max_size=4), min_size=count, max_size=count))
                rows += histograms(name, [(edge, edge[1:]) for edge in edges], steps)
        elif kind == "float":
            rows.append(param(name, draw(FLOATS)))
        elif kind == "int":
            rows.append(param(name, draw(st.integers(-(2**63), 2**63 - 1))))
        elif kind == "string":
            rows.append(param(name, draw(TEXTS)))
        elif kind == "bool":
            rows.append(param(name, draw(st.booleans())))
        elif kind == "set":
            rows.append(param(name, draw(st.lists(TEXTS, unique=True, max_size=4))))
        else:
            rows.append(param(name, datetime.fromtimestamp(draw(st.integers(0, 2**31)), UTC)))
    return rows


@settings(max_examples=60, deadline=None)
@given(runs(), st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(0, 2**32))
def test_batches_and_order_do_not_matter(rows: list[dict[str, Any]], sizes: list[int], seed: int) -> None:
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    assert digest(shuffled, sizes) == digest(rows)


@settings(max_examples=60, deadline=None)
@given(runs().filter(bool), st.data())
def test_any_row_left_out_matters(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    assert digest(rows[:place] + rows[place + 1 :]) != digest(rows)


BASE = [
    *params({"f": 0.0, "i": 2**53, "s": "ab", "b": True, "d": datetime(2025, 1, 1, tzinfo=UTC), "t": ["x", "y"]}),
    *metric("m", [1.0, 0.0, 2.0]),
    *texts("log", ["ab", "c", ""]),
    *histograms("h", [([0.0, 1.0, 2.0], [1.0, 2.0])]),
]


@pytest.mark.parametrize(
    ("path", "column", "value"),
    [
        ("f", "float_value", -0.0),
        ("f", "float_value", 5e-324),
        ("i", "int_value", 2**53 + 1),
        ("s", "string_value", "a\0b"),
        ("b", "bool_value", False),
        ("d", "datetime_value", datetime(2025, 1, 1, 0, 0, 0, 1000, tzinfo=UTC)),
        ("t", "string_set_value", ["x", "y", ""]),
        ("t", "string_set_value", ["xy"]),
        ("m", "float_value", math.nan),
        ("m", "float_value", None),
        ("m", "step", Decimal("-0.000001")),
        ("m", "timestamp", datetime(2025, 1, 1, 0, 0, 0, 1000, tzinfo=UTC)),
        ("m", "timestamp", None),
        ("log", "string_value", "abc"),
        ("log", "string_value", None),
        ("h", "histogram_value", {"type": "DENSITY", "edges": [0.0, 1.0, 2.0], "values": [1.0, 2.0]}),
        ("h", "histogram_value", {"type": "COUNTING", "edges": [0.0, 1.0], "values": [2.0, 1.0, 2.0]}),
        ("h", "histogram_value", {"type": "COUNTING", "edges": [0.0, 1.0, 2.0], "values": [1.0, 2.5]}),
        ("s", "attribute_path", "S"),
        ("h", "attribute_path", "h2"),
    ],
)
def test_any_change_matters(path: str, column: str, value: Any) -> None:
    changed = [dict(row) for row in BASE]
    row = next(row for row in changed if row["attribute_path"] == path)
    row[column] = value
    assert digest(changed) != digest(BASE)


def test_strings_that_join_to_the_same_text_differ() -> None:
    assert digest(texts("log", ["ab", "c"])) != digest(texts("log", ["a", "bc"]))
    assert digest(texts("log", ["", "a"])) != digest(texts("log", ["a", ""]))


def test_sets_count_sorted() -> None:
    assert digest([param("t", ["x", "y"])]) == digest([param("t", ["y", "x"])])


def test_all_nan_are_one() -> None:
    table = as_table("ws/p", "r", metric("m", [math.nan]))
    odd = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000123))[0]
    values = pa.Array.from_buffers(pa.float64(), 1, [None, pa.py_buffer(struct.pack("<d", odd))])
    other = table.set_column(table.schema.get_field_index("float_value"), "float_value", values)
    results = set()
    for each in (table, other):
        with RunSorter(10_000, 128) as sorter:
            sorter.add(each.to_batches()[0])
            result = RunDigest(sorter.attributes.names)
            for rows in sorter.sorted_rows():
                result.update(rows)
            results.add(result.hexdigest())
    assert len(results) == 1


def test_files_count_by_content_not_by_place() -> None:
    def records(path: str, sha: str, size: int, member: str | None = None) -> Any:
        return lambda *_: [FileRecord("f", "file", path, size, sha, member=member)]

    rows = [file("f", b"")]
    base = digest(rows, files=records("here", "aa" * 32, 1))
    assert digest(rows, files=records("there", "aa" * 32, 1)) == base
    assert digest(rows, files=records("here", "ab" * 32, 1)) != base
    assert digest(rows, files=records("here", "aa" * 32, 2)) != base
    assert digest(rows, files=records("here", "aa" * 32, 1, "m")) != base
    assert digest(rows, files=lambda *_: []) != base


def record(run_id: str, digest_: str, state: Any = "complete") -> RunRecord:
    return RunRecord(run_id, state, digest_, "f", "g", "t")


def test_project_digest_covers_ids_digests_and_states_only() -> None:
    one = digest_of_project([record("a", "1"), record("b", "2")])
    assert digest_of_project([record("b", "2"), record("a", "1")]) == one
    assert digest_of_project([record("a", "1")]) != one
    assert digest_of_project([record("a", "2"), record("b", "1")]) != one
    assert digest_of_project([record("a", "1"), record("b", "2", "partial")]) != one
    assert digest_of_project([RunRecord("a", "complete", "1", "x", "y", "z"), record("b", "2")]) == one

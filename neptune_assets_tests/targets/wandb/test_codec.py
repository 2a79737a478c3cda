"""The codec: what is written is read back by us, by a decoder that is not ours, and by wandb's protobuf classes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neptune_assets.errors import TargetError
from neptune_assets.targets.wandb.codec import BLOCK, LogWriter, read_log, windows
from neptune_assets_tests.support.wandb_files import payloads, pb

Row = tuple[list[tuple[str, str]], int]


def write(path: Path, records: Sequence[bytes]) -> None:
    path.unlink(missing_ok=True)
    with LogWriter(path) as log:
        for record in records:
            log.append(record)


def fast(path: Path, **limits: int) -> tuple[list[Row], list[tuple[int, Any]]]:
    rows: list[Row] = []
    others: list[tuple[int, Any]] = []
    for window in windows(path, **limits):
        items: list[list[tuple[str, str]]] = [[] for _ in range(window.history.row_count)]
        history = window.history
        for row, code, value in zip(history.rows.tolist(), history.codes.tolist(), history.values, strict=True):
            items[row].append((history.names[code], value.as_py()))
        assert np.all(np.diff(history.rows) >= 0)
        rows += zip(items, history.step_numbers.tolist(), strict=True)
        others += window.others
    return rows, others


def slow(path: Path) -> tuple[list[Row], list[tuple[int, Any]]]:
    """What wandb's own classes read, framing taken apart without our code."""
    rows: list[Row] = []
    others: list[tuple[int, Any]] = []
    for place, payload in enumerate(payloads(path.read_bytes())):
        record = pb.Record.FromString(payload)
        if record.WhichOneof("record_type") != "history":
            others.append((place, record))
            continue
        items = [(".".join(i.nested_key) if i.nested_key else i.key, i.value_json) for i in record.history.item]
        rows.append((items, record.history.step.num if record.history.HasField("step") else -1))
    return rows, others


def history(number: int, items: Sequence[tuple[str, str]], step: int | None) -> Any:
    record = pb.Record(num=number)
    record.history.SetInParent()
    for key, value in items:
        record.history.item.add(nested_key=[key], value_json=value)
    if step is not None:
        record.history.step.num = step
    return record


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
plain_rows = st.tuples(
    st.integers(0, 2**50),
    st.lists(st.tuples(texts, texts | st.floats().map(repr)), max_size=12),
    st.none() | st.integers(0, 2**53),
)


@st.composite
def odd_records(draw: st.DrawFn) -> Any:
    """Records that are history rows in some other way, or none at all."""
    record = pb.Record(num=draw(st.integers(-(2**63), 2**63 - 1)))
    kind = draw(st.sampled_from(["nested", "key", "typed", "uuid", "negative", "empty", "summary", "exit", "none"]))
    if kind == "summary":
        record.summary.update.add(nested_key=["a"], value_json=draw(texts))
    elif kind == "exit":
        record.exit.exit_code = 3
    elif kind != "none":
        record.history.SetInParent()
    if kind == "nested":
        record.history.item.add(nested_key=draw(st.lists(texts, max_size=3)), value_json=draw(texts))
    elif kind == "key":
        record.history.item.add(key=draw(texts), value_json=draw(texts))
    elif kind == "typed":
        record.history.item.add(nested_key=["a"], value_json="1", number=draw(st.floats(allow_nan=False)), text="x")
    elif kind == "uuid":
        record.uuid = draw(texts)
        record.history.item.add(nested_key=["a"], value_json="2")
    elif kind == "negative":
        record.history.step.num = draw(st.integers(-(2**63), -1))
    return record


@settings(max_examples=300, deadline=None)
@given(
    plain=st.lists(plain_rows, max_size=30),
    odd=st.lists(odd_records(), max_size=6),
    seed=st.integers(),
    limits=st.data(),
)
def test_it_reads_what_protobuf_reads(tmp_path_factory: Any, plain: Any, odd: Any, seed: int, limits: Any) -> None:
    records = [history(*row).SerializeToString() for row in plain] + [record.SerializeToString() for record in odd]
    random.Random(seed).shuffle(records)
    path = tmp_path_factory.mktemp("log") / "x.wandb"
    write(path, records)
    # However few rows are taken apart side by side, and wherever windows end, the answer is the same.
    few, size = limits.draw(st.sampled_from([1, 2, 48])), limits.draw(st.sampled_from([1, 500, 4 << 20]))
    assert fast(path, few=few, window_bytes=size) == slow(path)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(plain_rows, min_size=1, max_size=8),
    cuts=st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=6)), min_size=1, max_size=4),
)
def test_bytes_that_are_no_record_are_never_read_as_another_one(tmp_path_factory: Any, rows: Any, cuts: Any) -> None:
    path = tmp_path_factory.mktemp("log") / "x.wandb"
    records = []
    for row in rows:
        damaged = bytearray(history(*row).SerializeToString())
        for place, replacement in cuts:
            place %= len(damaged) + 1
            damaged[place : place + len(replacement)] = replacement
        records.append(bytes(damaged))
    write(path, records)
    try:
        expected = slow(path)
    except Exception:  # noqa: BLE001 (whatever protobuf raises, ours must not read it either)
        with pytest.raises(TargetError):
            fast(path)
        return
    assert fast(path, few=1) == expected


def test_plain_rows_go_the_fast_way_and_some_of_them_through_protobuf_as_well(tmp_path: Path) -> None:
    rows = [[(f"m/{n}", repr(n * row / 7)) for n in range(100)] for row in range(200)]
    records = [history(n, items, n + 1) for n, items in enumerate(rows)]
    write(tmp_path / "x.wandb", [record.SerializeToString() for record in records])
    assert fast(tmp_path / "x.wandb") == ([(items, n + 1) for n, items in enumerate(rows)], [])
    (window,) = windows(tmp_path / "x.wandb")
    # Rows that went through protobuf alone are not sampled once more.
    assert [row for row, _ in window.sample] == [0, 66, 132, 199]
    assert [record for _, record in window.sample] == [records[row] for row, _ in window.sample]


def test_few_and_very_wide_rows(tmp_path: Path) -> None:
    rows = [[(f"metric/{n}", json.dumps(n / 3)) for n in range(width)] for width in (20_000, 3, 0, 20_000, 1)]
    write(tmp_path / "x.wandb", [history(n, items, n + 1).SerializeToString() for n, items in enumerate(rows)])
    assert fast(tmp_path / "x.wandb") == ([(items, n + 1) for n, items in enumerate(rows)], [])


@pytest.mark.parametrize("near", [0, BLOCK, 2 * BLOCK])
def test_records_of_every_length_around_a_block(tmp_path: Path, near: int) -> None:
    for number, delta in enumerate(range(-30, 31)):
        size = max(near + delta, 0)
        records = [b"a" * size, b"", b"b" * size, b"c" * 5]
        path = tmp_path / f"{number}.wandb"
        with LogWriter(path) as log:
            for record in records:
                log.append(record)
        assert log.size == path.stat().st_size
        assert list(read_log(path)) == records
        assert payloads(path.read_bytes()) == records


def test_many_records(tmp_path: Path) -> None:
    source = random.Random(5)
    records = [source.randbytes(source.choice([3, 100, 9_000, 100_000])) for _ in range(300)]
    with LogWriter(tmp_path / "x.wandb") as log:
        for record in records:
            log.append(record)
    assert list(read_log(tmp_path / "x.wandb")) == records
    assert payloads((tmp_path / "x.wandb").read_bytes()) == records


def test_any_flipped_or_missing_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.wandb"
    with LogWriter(path) as log:
        for number in range(40):
            log.append(bytes([number]) * 1_500)
    whole = path.read_bytes()
    source = random.Random(1)
    for position in source.sample(range(len(whole)), 200):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << source.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(TargetError):
            list(read_log(path))
    for length in source.sample(range(len(whole)), 50):
        path.write_bytes(whole[:length])
        try:
            found = list(read_log(path))
        except TargetError:
            continue
        assert len(found) < 40


def test_an_existing_file_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "x.wandb").write_bytes(b"")
    with pytest.raises(FileExistsError):
        LogWriter(tmp_path / "x.wandb")

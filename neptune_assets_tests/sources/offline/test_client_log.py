"""What reads a log of neptune-client: its JSON objects, its records, and how times and steps are rounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.sources.offline.client_log import Garbage, Log, json_objects, milliseconds
from neptune_assets.sources.values import micro_step
from neptune_assets_tests.support.client_reading import NAME, op, write_log


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1_700_000_000.0005, 1_700_000_000_000),
        (1_700_000_000.0015, 1_700_000_000_002),
        (1_700_000_000.00151, 1_700_000_000_002),
        (-0.0005, 0),
        (-0.0015, -2),
        (0.0025, 2),
        (12, 12_000),
    ],
)
def test_milliseconds_are_rounded_half_even(seconds: float, expected: int) -> None:
    assert milliseconds(seconds) == expected


@pytest.mark.parametrize(
    "step", ["0.000001", "0.0000005", "0.0000015", "8796093.0000005", "123456789012.123456", "-7.5"]
)
def test_steps_are_rounded_like_decimals(step: str) -> None:
    assert micro_step(float(step)) == round(Decimal(repr(float(step))) * 1_000_000)


def chunks_of(data: bytes, tmp_path: Path) -> list[Any]:
    path = tmp_path / "data-1.log"
    path.write_bytes(data)
    return list(json_objects(path))


def test_objects_need_no_lines_and_may_hold_raw_characters(tmp_path: Path) -> None:
    big = json.dumps({"obj": {"text": "x" * 3_000_000}})
    text = '{"obj": 1}{"obj": "raw \n and \t ☃"}\n\n ' + big + '{"obj": "\\u2603"}'
    found = chunks_of(text.encode(), tmp_path)
    assert [value["obj"] for _, value, _ in found if isinstance(value, dict)][:2] == [1, "raw \n and \t ☃"]
    start = text.encode().index(big.encode())
    assert [offset for offset, *_ in found] == [0, 10, start, start + len(big)]
    assert found[2][1] == json.loads(big)
    assert found[3][1] == {"obj": "☃"}


def test_deep_nesting_and_wrong_bytes_are_garbage(tmp_path: Path) -> None:
    good = b'{"obj": 2}\n'
    deep = b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"\n"
    found = chunks_of(deep + good + b'{"obj": "\xff"}\n' + good, tmp_path)
    assert [item for item in found if isinstance(item, Garbage)] == [
        Garbage(0, len(deep)),
        Garbage(len(deep) + len(good), len(deep) + len(good) + len(b'{"obj": "\xff"}\n')),
    ]
    assert [item[1] for item in found if not isinstance(item, Garbage)] == [{"obj": 2}, {"obj": 2}]


def test_records_are_read_with_bounded_memory(offline: Path) -> None:
    import tracemalloc

    execution = write_log(offline / NAME)
    text = "y" * 10_000
    with (execution / "data-1.log").open("w") as log:
        for version in range(1, 4_001):
            values = [{"value": text, "step": version, "ts": 1}]
            log.write(json.dumps({"obj": op("LogStrings", "s", values=values), "version": version}) + "\n")

    def consume() -> Iterator[int]:
        for entry in Log.of(execution, ("data-1.log",)).entries():
            yield entry.version

    tracemalloc.start()
    assert sum(consume()) == 4_000 * 4_001 // 2
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 1024 * 1024

from __future__ import annotations

from datetime import datetime, timedelta

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from neptune_assets.summary.rows import local_to_utc


@pytest.mark.parametrize(
    "zone", ["Europe/Warsaw", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "UTC", "America/Sao_Paulo"]
)
def test_local_times_become_utc_as_arrow_says(zone: str) -> None:
    start = datetime(2012, 1, 1)
    local = pa.array([start + timedelta(minutes=15 * i) for i in range(4 * 24 * 365 * 9)], pa.timestamp("us"))
    expected = pc.assume_timezone(local, zone, ambiguous="earliest", nonexistent="latest").cast(pa.int64())
    table = pa.table({"t": local.cast(pa.int64()), "expected": expected})
    with duckdb.connect() as con:
        wrong = con.from_arrow(table).filter(f"{local_to_utc('t', zone)} <> expected")
        assert wrong.limit(5).fetchall() == []

"""neptune-exporter's own code at work on directories: run with its Python, its ``src`` and this repository on the path.

``python -m neptune_assets_tests.support.peer write <exports>`` writes an export with its ParquetWriter;
``... read <data> <out>`` reads all projects with its ParquetReader into one Arrow file a run. Imports nothing of
neptune_assets. What is written stands in this module, so that tests compare with it.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from neptune_assets_tests.support.export_factory import (
    EXPORTER_SCHEMA,
    Row,
    as_table,
    exported_name,
    file_row,
    parameter,
    point,
    run_v2,
    run_v3,
    system_rows_v3,
)

PLAIN, HOSTILE, OLD = "ws/plain", "ws/hostile ☃", "ws/old"
BASE = datetime(2025, 3, 1, 12, 0, 0, 123_000, tzinfo=UTC)
VALUES = [0.1, float("inf"), float("-inf"), -0.0, 5e-324, 1.7976931348623157e308]
STEPS = ["0", "0.000001", "0.5", "1.999999", "1234567.25", "9000000000.5"]
ODD_STRING = "nul \x00 newline \n quote ' \" ☃ 🙂"
LONG_RUN = "Rün .:*?\"<>|\\'\n-" + "x" * 120
FILES = {"hostile/f_bytes.bin": b"\x00\xff", "hostile/f_empty": b"", "hostile/pics/step_0_500000.png": b"picture"}
"""Content of files of :data:`HOSTILE`, by path below the project's files directory."""


def hostile_rows() -> list[list[Row]]:
    """Rows, batch by batch, that have to come out exactly as they are."""
    parameters = [
        *system_rows_v3("hostile", created=BASE),
        parameter("p/nan", "float", float("nan")),
        parameter("p/inf", "float", float("-inf")),
        parameter("p/zero", "float", -0.0),
        parameter("p/big", "int", 2**63 - 1),
        parameter("p/small", "int", -(2**63)),
        parameter("p/beyond", "int", 2**53 + 1),
        parameter("p/odd", "string", ODD_STRING),
        parameter("p/empty", "string", ""),
        parameter("p/when", "datetime", datetime(1999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)),
        parameter("p/set", "string_set", ["b", "", "a"]),
        parameter("n" * 1_200, "string", "long"),
        *(parameter(name, "int", number) for number, name in enumerate(("Case", "case", "a.b", "a_b"))),
        file_row("f/bytes", "hostile/f_bytes.bin"),
        file_row("f/empty", "hostile/f_empty"),
        file_row("pics", "hostile/pics/step_0_500000.png", "file_series", "0.5", BASE),
    ]
    series = [
        point(path, step, value, BASE + timedelta(milliseconds=1001 * number))
        for path in ("m/loss", "M/loss", "m/" + "n" * 1_200)
        for number, (step, value) in enumerate(zip(STEPS, VALUES, strict=True))
    ]
    bulk = [
        [point("m/bulk", step, step * 0.1, BASE + timedelta(seconds=step)) for step in range(start, start + 2_000)]
        for start in range(0, 10_000, 2_000)
    ]
    others = [
        *(point("logs", step, text, BASE, "string_series") for step, text in enumerate(("", "two\nlines\x00", "🙂"))),
        point(
            "h",
            1,
            {"type": "COUNTING", "edges": [0.0, 1.0, float("inf")], "values": [5.0, 2.0**60]},
            BASE,
            "histogram_series",
        ),
        point("h", 2, {"type": "DENSITY", "edges": [-1.0, 0.0], "values": [1.0]}, BASE, "histogram_series"),
    ]
    return [parameters, series, *bulk, others]


PHANTOMS = [parameter("p/absent", "string", None), parameter("p/never", "float", None), file_row("f/failed", None)]
"""Rows that say nothing; they are dropped."""
LOST_NAN = [point("m/nan", step, None, BASE + timedelta(seconds=step)) for step in (1, 2)]
"""Points whose value was NaN and was lost; they become NaN."""
DUPLICATES = [point("m/twice", 3, 1.0, BASE), point("m/twice", 3, 2.0, BASE + timedelta(seconds=1))]
"""The later of the two stays."""


def contents() -> dict[str, dict[str, list[list[Row]]]]:
    """Everything that is written: project -> run -> batches of rows."""
    plain: dict[str, list[list[Row]]] = {
        f"run-{number}": run_v3(f"run-{number}", points=20 + number) for number in range(3)
    }
    hostile = {
        "hostile": hostile_rows(),
        LONG_RUN: [system_rows_v3(LONG_RUN), [point("m", 1, 1.0, BASE)]],
        "to repair": [[*system_rows_v3("to repair"), *PHANTOMS], [*LOST_NAN, *DUPLICATES]],
    }
    old = {f"OLD-{number}": run_v2(f"OLD-{number}", points=5) for number in (1, 2)}
    return {PLAIN: plain, HOSTILE: hostile, OLD: old}


def write(exports: Path) -> None:
    """Write :func:`contents` with the exporter's own writer; its parts roll over after 20 kB instead of 50 MiB."""
    from neptune_exporter.storage.parquet_writer import ParquetWriter

    writer: Any = ParquetWriter(base_path=exports / "data", target_part_size_bytes=20_000)
    for project_id, runs in contents().items():
        for run_id, batches in runs.items():
            with writer.run_writer(project_id, run_id) as run:
                for rows in batches:
                    for batch in as_table(rows, project_id, run_id, EXPORTER_SCHEMA).to_batches():
                        run.save(batch)
    for path, content in FILES.items():
        place = exports / "files" / exported_name(HOSTILE) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def read(data: Path, out: Path) -> None:
    """Read a data directory with the exporter's own reader; one Arrow file of rows for each run it finds."""
    from neptune_exporter.storage.parquet_reader import ParquetReader

    reader: Any = ParquetReader(data)
    out.mkdir()
    for directory in reader.list_project_directories():
        for prefix in reader.list_run_files(directory):
            assert reader.read_run_metadata(directory, prefix) is not None, prefix
            table = pa.concat_tables(reader.read_run_data(directory, prefix))
            with (
                pa.OSFile(str(out / f"{directory.name}.{prefix}.arrow"[-200:]), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as file,
            ):
                file.write_table(table)


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*map(Path, sys.argv[2:]))

"""Writes a project as neptune-exporter would have: ``python -m neptune_assets_tests.benchmarks.generate --out DIR``.

Runs are made one by one from a seed, so memory does not grow with their number, and the same options always give the
same rows. Half of the values come from 32-bit floats, a quarter are small whole numbers, an eighth follows a smooth
64-bit schedule and an eighth is 64-bit noise. Layout as the exporter leaves it: snappy, one row group a batch,
metrics step by step, 128 metrics a batch at most, parts of 50 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets_tests.support.export_factory import EXPORTER_SCHEMA, exported_name

_PART_BYTES = 50 << 20
_METRICS_A_BATCH = 128
_ROWS_A_BATCH = 1 << 20
_START_MS = 1_740_000_000_000
_STEP = pa.decimal128(18, 6)
_TIME = pa.timestamp("ms", tz="UTC")


@dataclass(frozen=True)
class Shape:
    """How much to generate: numbers are per run, except ``runs``."""

    runs: int = 200
    parameters: int = 60
    series: int = 40
    points: int = 1_000
    string_series: int = 2
    string_points: int = 200
    histograms: int = 20
    files: int = 3
    seed: int = 7
    project: str = "bench/project"


@dataclass(frozen=True)
class Generated:
    """What was written."""

    runs: int
    rows: int
    points: int
    files: int
    bytes: int
    seconds: float


def generate(out: Path, shape: Shape) -> Generated:
    """Write ``data`` and ``files`` below ``out`` and return what they hold. ``out`` must not hold an export yet."""
    started = time.perf_counter()
    data = out / "data" / exported_name(shape.project)
    if data.exists():
        raise FileExistsError(f"{data} is there already; give another --out")
    data.mkdir(parents=True)
    rows = size = 0
    for number in range(shape.runs):
        run_id = f"run-{number:05d}"
        random = np.random.default_rng([shape.seed, number])
        batches = _batches(shape, run_id, number, random, out / "files" / exported_name(shape.project))
        written, parts = _write(data, run_id, batches)
        rows += written
        size += sum(part.stat().st_size for part in parts)
    return Generated(
        shape.runs,
        rows,
        shape.runs * shape.series * shape.points,
        shape.runs * shape.files,
        size,
        time.perf_counter() - started,
    )


def values(random: np.random.Generator, count: int, kind: int) -> np.ndarray:
    """Return values of one series; ``kind`` modulo 8 chooses their nature in the proportions of the module's head."""
    nature = kind % 8
    if nature < 4:
        return (np.cumsum(random.standard_normal(count)) / 8).astype(np.float32).astype(np.float64)
    if nature < 6:
        return random.integers(0, 1_000, count).astype(np.float64)
    if nature == 6:
        return 1e-3 * 0.5 * (1 + np.cos(np.pi * np.arange(count) / max(1, count - 1)))
    return random.standard_normal(count)


def _batches(
    shape: Shape, run_id: str, number: int, random: np.random.Generator, files: Path
) -> Iterator[pa.RecordBatch]:
    created = _START_MS + number * 3_600_000
    yield _parameters(shape, run_id, number, created, random)
    names = [f"metrics/group_{index % 5}/metric_{index:04d}" for index in range(shape.series)]
    for start in range(0, shape.series, _METRICS_A_BATCH):
        chosen = names[start : start + _METRICS_A_BATCH]
        series = np.stack([values(random, shape.points, start + index) for index in range(len(chosen))])
        steps_a_batch = max(1, _ROWS_A_BATCH // len(chosen))
        for first in range(0, shape.points, steps_a_batch):
            block = series[:, first : first + steps_a_batch]
            yield _metrics(shape, run_id, chosen, block, first, created)
    if shape.string_series or shape.histograms:
        yield _series(shape, run_id, created, random)
    if shape.files:
        yield _files(shape, run_id, random, files)


def _parameters(shape: Shape, run_id: str, number: int, created: int, random: np.random.Generator) -> pa.RecordBatch:
    system = [
        ("sys/id", "string", f"BEN-{number + 1}"),
        ("sys/custom_run_id", "string", run_id),
        ("sys/name", "string", f"experiment {number % 10}"),
        ("sys/creation_time", "datetime", created),
        ("sys/modification_time", "datetime", created + shape.points * 1_000),
        ("sys/archived", "bool", False),
        ("sys/tags", "string_set", [f"group-{number % 4}", "bench"]),
    ]
    floats, ints = random.standard_normal(shape.parameters), random.integers(-(2**40), 2**40, shape.parameters)
    own = []
    for index in range(max(0, shape.parameters - len(system))):
        kind = ("float", "int", "string", "bool")[index % 4]
        value = {
            "float": float(floats[index]),
            "int": int(ints[index]),
            "string": f"v{ints[index]}",
            "bool": ints[index] > 0,
        }
        own.append((f"parameters/p_{index:03d}", kind, value[kind]))
    rows = (system + own)[: shape.parameters]
    columns = {
        "attribute_path": pa.array([path for path, _, _ in rows], pa.string()),
        "attribute_type": pa.array([kind for _, kind, _ in rows], pa.string()),
    }
    for kind in ("float", "int", "string", "bool", "datetime", "string_set"):
        field = EXPORTER_SCHEMA.field(f"{kind}_value")
        picked = [value if has == kind else None for _, has, value in rows]
        columns[field.name] = (
            pa.array(picked, pa.int64()).cast(field.type) if kind == "datetime" else pa.array(picked, field.type)
        )
    return _batch(shape, run_id, len(rows), columns)


def _metrics(
    shape: Shape, run_id: str, names: Sequence[str], block: np.ndarray, first: int, created: int
) -> pa.RecordBatch:
    series, points = block.shape
    steps = np.repeat(np.arange(first, first + points, dtype=np.int64), series)
    return _batch(
        shape,
        run_id,
        series * points,
        {
            "attribute_path": pa.DictionaryArray.from_arrays(
                np.tile(np.arange(series, dtype=np.int32), points), pa.array(names, pa.string())
            ).dictionary_decode(),
            "attribute_type": _same("float_series", series * points),
            "step": pa.array(steps).cast(pa.decimal128(19, 0)).cast(_STEP, safe=False),
            "timestamp": pa.array(created + 1_000 + steps * 1_000).cast(_TIME),
            "float_value": pa.array(np.ascontiguousarray(block.T).reshape(-1)),
        },
    )


def _series(shape: Shape, run_id: str, created: int, random: np.random.Generator) -> pa.RecordBatch:
    strings = shape.string_series * shape.string_points
    count = strings + shape.histograms
    steps = np.concatenate([np.tile(np.arange(shape.string_points), shape.string_series), np.arange(shape.histograms)])
    edges = np.linspace(-3, 3, 11)
    histograms = [
        {
            "type": "COUNTING",
            "edges": edges,
            "values": np.histogram(random.standard_normal(256), edges)[0].astype(float),
        }
        for _ in range(shape.histograms)
    ]
    text = [
        f"epoch {step}: loss={value:.4f}"
        for _ in range(shape.string_series)
        for step, value in enumerate(random.random(shape.string_points))
    ]
    paths = [f"logs/stream_{index}" for index in range(shape.string_series) for _ in range(shape.string_points)]
    kinds = ["string_series"] * strings + ["histogram_series"] * shape.histograms
    return _batch(
        shape,
        run_id,
        count,
        {
            "attribute_path": pa.array(paths + ["weights/histogram"] * shape.histograms, pa.string()),
            "attribute_type": pa.array(kinds, pa.string()),
            "step": pa.array(steps.astype(np.int64)).cast(pa.decimal128(19, 0)).cast(_STEP, safe=False),
            "timestamp": pa.array(created + 1_000 + steps.astype(np.int64) * 1_000).cast(_TIME),
            "string_value": pa.array([*text, *[None] * shape.histograms], pa.string()),
            "histogram_value": pa.array(
                [*[None] * strings, *histograms], EXPORTER_SCHEMA.field("histogram_value").type
            ),
        },
    )


def _files(shape: Shape, run_id: str, random: np.random.Generator, files: Path) -> pa.RecordBatch:
    names = [f"artifacts/file_{index}" for index in range(shape.files)]
    references = []
    for index, name in enumerate(names):
        # As the exporter for 3.x names them: cleaned names, with the extension of the upload.
        reference = f"{run_id}/{name.replace('/', '_')}.bin"
        path = files / reference
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.bytes(1_024 * (index + 1)))
        references.append({"path": reference})
    return _batch(
        shape,
        run_id,
        shape.files,
        {
            "attribute_path": pa.array(names, pa.string()),
            "attribute_type": _same("file", shape.files),
            "file_value": pa.array(references, EXPORTER_SCHEMA.field("file_value").type),
        },
    )


def _batch(shape: Shape, run_id: str, rows: int, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    known = {"project_id": _same(shape.project, rows), "run_id": _same(run_id, rows), **columns}
    return pa.RecordBatch.from_arrays(
        [known[field.name] if field.name in known else pa.nulls(rows, field.type) for field in EXPORTER_SCHEMA],
        schema=EXPORTER_SCHEMA,
    )


def _same(text: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), rows)


def _write(directory: Path, run_id: str, batches: Iterator[pa.RecordBatch]) -> tuple[int, list[Path]]:
    rows, parts = 0, []
    writer: pq.ParquetWriter | None = None
    for batch in batches:
        # Like the exporter, which looks at the size on disk before each batch.
        if writer is not None and parts[-1].stat().st_size > _PART_BYTES:
            writer.close()
            writer = None
        if writer is None:
            parts.append(directory / f"{exported_name(run_id)}_part_{len(parts)}.parquet")
            writer = pq.ParquetWriter(parts[-1], EXPORTER_SCHEMA, compression="snappy")
        writer.write_batch(batch)
        rows += batch.num_rows
    if writer is not None:
        writer.close()
    return rows, parts


def fingerprint(out: Path) -> str:
    """Hash over all files below ``out``, to compare two generated projects."""
    digest = hashlib.sha256()
    for path in sorted(item for item in out.rglob("*") if item.is_file()):
        digest.update(str(path.relative_to(out)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; prints what was written as one line of JSON."""
    parser = argparse.ArgumentParser(description="Write a project in neptune-exporter's format.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write data and files below")
    for name, default in asdict(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    print(json.dumps(asdict(generate(out, Shape(**given)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

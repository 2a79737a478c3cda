"""What a run's attributes become as artifacts: long parameters, series as lines of JSON, files, and lists of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.errors import LakeError
from neptune_assets.lake.layout import extension_of, format_step
from neptune_assets.lake.reader import LakeRun
from neptune_assets.lake.rows import microsteps
from neptune_assets.schema import FILE_TYPES, AttributeType
from neptune_assets.targets.mlflow import mapping, texts
from neptune_assets.targets.mlflow.artifact_store import Artifacts
from neptune_assets.targets.mlflow.names import distinct_paths
from neptune_assets.targets.mlflow.points import SIDECAR
from neptune_assets.targets.protocol import Dropped
from neptune_assets.targets.times import iso, whole_milliseconds

NAMES_FILE: Final = "neptune/names.json"
MANIFEST_FILE: Final = "neptune/artifacts.json"
SIDECAR_FILE: Final = "neptune/points_apart.parquet"

_BLOCK: Final = 1 << 20
_STAMPED: Final = ("attribute_path", "step", "timestamp")


def write_artifacts(run: LakeRun, plan: mapping.MlflowPlan, store: Artifacts, counts: Counts) -> None:
    """Write everything of a run that becomes an artifact, except what the points still have to tell."""
    for attribute, value in texts.parameters(run) if plan.long_params else ():
        path = plan.long_params.get(attribute)
        if path is not None:
            store.write(path, [texts.param_text(attribute[1], value).encode("utf-8", errors="surrogatepass")])
    for kinds, column, line in (
        ([AttributeType.STRING_SERIES], "string_value", _text_lines),
        ([AttributeType.HISTOGRAM_SERIES], "histogram_value", _histogram_lines),
    ):
        rows = (item for batch in run.batches(kinds, (*_STAMPED, column)) for item in line(batch))
        for attribute_path, lines in groupby(rows, key=lambda item: item[0]):
            counted = _Counted(text for _, text in lines)
            store.write(plan.artifacts[(attribute_path, kinds[0])], counted)
            counts.take(kinds[0], mapped=counted.items)
    _write_files(run, plan, store, counts)
    store.write(NAMES_FILE, [mapping.names_json(plan)])


def write_sidecar(store: Artifacts, batches: list[pa.RecordBatch]) -> None:
    """Write the points that MLflow cannot hold as they are."""
    if batches:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_batches(batches, SIDECAR), sink, store_decimal_as_integer=True)
        store.write(SIDECAR_FILE, [sink.getvalue().to_pybytes()])


def write_manifest(store: Artifacts) -> str:
    """Write the list of artifacts as the last of them; return its sha256. All of them are durable then."""
    listing = {path: {"size": size, "sha256": sha} for path, (size, sha) in sorted(store.written.items())}
    store.write(MANIFEST_FILE, [json.dumps(listing, ensure_ascii=False).encode()])
    store.sync()
    return store.written[MANIFEST_FILE][1]


class Counts:
    """Rows of one run by attribute type: read, and what became of them."""

    def __init__(self) -> None:
        self.rows_in: dict[str, int] = {}
        self.written: dict[str, int] = {}
        self.mapped: dict[str, int] = {}
        self.dropped: dict[tuple[str, str], int] = {}

    def take(self, kind: str, *, written: int = 0, mapped: int = 0, dropped: int = 0, reason: str = "") -> None:
        """Count rows that were read and what became of them."""
        self.rows_in[kind] = self.rows_in.get(kind, 0) + written + mapped + dropped
        if written:
            self.written[kind] = self.written.get(kind, 0) + written
        if mapped:
            self.mapped[kind] = self.mapped.get(kind, 0) + mapped
        if dropped:
            self.dropped[(kind, reason)] = self.dropped.get((kind, reason), 0) + dropped

    def drops(self) -> list[Dropped]:
        """Return what was dropped, sorted."""
        return [Dropped(kind, reason, rows) for (kind, reason), rows in sorted(self.dropped.items())]


class _Counted:
    """Passes blocks on and counts them."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self.items = 0

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            self.items += 1
            yield block


def _stamps(batch: pa.RecordBatch) -> Iterator[tuple[str, str, str]]:
    """Yield (attribute path, step, time) of each row, the last two as JSON."""
    for path, step, moment in zip(
        batch["attribute_path"].to_pylist(),
        microsteps(batch["step"]).tolist(),
        whole_milliseconds(batch["timestamp"]).to_pylist(),
        strict=True,
    ):
        text = format_step(step).rstrip("0").rstrip(".")
        yield path, text, "null" if moment is None else f'"{iso(moment)}"'


def _text_lines(batch: pa.RecordBatch) -> Iterator[tuple[str, bytes]]:
    for (path, step, moment), value in zip(_stamps(batch), batch["string_value"].to_pylist(), strict=True):
        text = json.dumps(value, ensure_ascii=False)
        yield path, f'{{"step": {step}, "timestamp": {moment}, "value": {text}}}\n'.encode()


def _histogram_lines(batch: pa.RecordBatch) -> Iterator[tuple[str, bytes]]:
    for (path, step, moment), value in zip(_stamps(batch), batch["histogram_value"].to_pylist(), strict=True):
        body = json.dumps({name: _strict(part) for name, part in (value or {}).items()}, allow_nan=False)
        yield path, f'{{"step": {step}, "timestamp": {moment}, "histogram": {body}}}\n'.encode()


def _strict(value: Any) -> Any:
    """JSON knows no infinities: they become the words that JavaScript and protocol buffers use."""
    if isinstance(value, list):
        return [_strict(item) for item in value]
    if isinstance(value, float) and (value != value or value in {float("inf"), float("-inf")}):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value


def _write_files(run: LakeRun, plan: mapping.MlflowPlan, store: Artifacts, counts: Counts) -> None:
    for batch in run.batches(FILE_TYPES, ("attribute_path", "attribute_type", "step", "file_value")):
        for path, kind, step, value in zip(
            batch["attribute_path"].to_pylist(),
            batch["attribute_type"].to_pylist(),
            microsteps(batch["step"]).tolist(),
            batch["file_value"].to_pylist(),
            strict=True,
        ):
            reference = value and value["path"]
            if not reference:
                counts.take(kind, dropped=1, reason="the source had no file")
                continue
            base = plan.artifacts[(path, kind)]
            members = _members(run, path, kind, step, reference, base)
            missing, recorded = 0, {record.path for record in run.file_records(path)}
            for artifact, reference_path in members.items():
                try:
                    stream = run.open_file(reference_path)
                except LakeError:
                    # A source that had no file is one thing, a file that the lake lost is another.
                    if run.record.complete or reference_path in recorded:
                        raise
                    missing += 1
                    continue
                with stream:
                    store.write(artifact, _blocks(stream))
            if missing:
                counts.take(kind, dropped=1, reason="files are missing in the lake (the run is partial)")
            elif kind == AttributeType.ARTIFACT:
                counts.take(kind, mapped=1)
            else:
                counts.take(kind, written=1)


def _members(run: LakeRun, path: str, kind: str, step: int, reference: str, base: str) -> dict[str, str]:
    """Return artifact path -> path in the lake, for one row of a file type."""
    if kind == AttributeType.FILE_SET:
        records = [record for record in run.file_records(path) if record.attribute_type == kind]
        names = distinct_paths({record.member or record.path: record.member or record.path for record in records})
        return {f"{base}/{names[record.member or record.path]}": record.path for record in records}
    if kind == AttributeType.FILE_SERIES:
        extension = extension_of(reference)
        return {f"{base}/{format_step(step)}{'.' if extension else ''}{extension}": reference}
    return {base: reference}


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block

"""Each run a folder: ``rows.parquet``, its files, and beside it ``<run>.json`` with the digest, which goes in last."""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b, sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neptune_assets import durable
from neptune_assets.errors import TargetError
from neptune_assets.lake.reader import LakeRun
from neptune_assets.schema import FILE_TYPES, SCHEMA
from neptune_assets.targets.profile import ValueCounts
from neptune_assets.targets.protocol import Dropped, Plan, Receipt, TargetRun, UnsupportedValues, Verdict
from neptune_assets.targets.rules import wanted_name

GONE = "the bytes are gone"


class ParquetFolder:
    name = "parquet_folder"

    def __init__(self, directory: str) -> None:
        self._root = Path(directory)

    def check(self) -> None:
        if self._root.exists() and not self._root.is_dir():
            raise TargetError(f"{self._root} is not a directory.", hint="Set targets.parquet_folder.directory.")

    def is_new(self) -> bool:
        return not self._root.exists()

    def plan(self, run: LakeRun) -> Plan:
        wanted: dict[str, list[str]] = {}
        name = wanted_name(run)
        for path in sorted({path for batch in run.batches(columns=["attribute_path"]) for path in _distinct(batch)}):
            wanted.setdefault(name(path), []).append(path)
        names = {path: new for new, paths in wanted.items() for path in paths if path != new}
        return Plan(run.run_id, names, collisions={new: paths for new, paths in wanted.items() if len(paths) > 1})

    def unsupported_values(self, values: ValueCounts, plan: Plan) -> Sequence[UnsupportedValues]:
        return ()

    def find(self, project_id: str, run_id: str) -> TargetRun | None:
        entry = self._entry(self._pointer(project_id, run_id))
        return None if entry is None else TargetRun(project_id, run_id, entry["folder"], entry["digest"])

    def replace(self, run: LakeRun, plan: Plan) -> Receipt:
        pointer = self._pointer(run.project_id, run.run_id)
        folder = pointer.parent / f"{pointer.stem}-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        rows_in: Counter[str] = Counter()
        gone: Counter[str] = Counter()
        with pq.ParquetWriter(folder / "rows.parquet", SCHEMA) as writer:
            for batch in run.batches():
                writer.write_batch(batch, row_group_size=batch.num_rows)
                rows_in.update(batch["attribute_type"].to_pylist())
                lost = batch.filter(_without_file(batch))
                gone.update(lost["attribute_type"].to_pylist())
        files = []
        for number, item in enumerate(run.record.files):
            with run.open_file(item.path) as source, (folder / str(number)).open("wb") as copy:
                shutil.copyfileobj(source, copy)
            files.append({"attribute": item.attribute_path, "path": item.path, "file": number, "sha256": item.sha256})
        for file in folder.iterdir():
            durable.sync(file)
        entry = {"project": run.project_id, "run": run.run_id, "digest": run.record.digest, "folder": folder.name}
        durable.write(pointer, json.dumps({**entry, "names": dict(plan.names), "files": files}).encode())
        for other in pointer.parent.glob(f"{pointer.stem}-*"):
            if other != folder:
                shutil.rmtree(other)
        written = {kind: count - gone[kind] for kind, count in rows_in.items()}
        dropped = [Dropped(kind, GONE, count) for kind, count in gone.items()]
        notes = ["points without a time have none"] if _timeless(run) else []
        return Receipt(
            run.project_id, run.run_id, folder.name, run.record.digest, dict(rows_in), written, {}, dropped, notes
        )

    def verify(self, run: LakeRun, receipt: Receipt) -> Verdict:
        pointer = self._pointer(run.project_id, run.run_id)
        entry = self._entry(pointer)
        if entry is None or entry["digest"] != run.record.digest:
            return Verdict(run.run_id, ["the run is not there"])
        folder = pointer.parent / entry["folder"]
        wrong = []
        with pq.ParquetFile(folder / "rows.parquet") as stored:
            groups = (stored.read_row_group(number) for number in range(stored.num_row_groups))
            for mine, theirs in zip_longest(run.batches(), groups):
                if mine is None or theirs is None or not _same(pa.table(mine), theirs):
                    wrong.append(f"rows of {', '.join(_distinct(theirs if mine is None else mine)[:5])} differ")
        for item in entry["files"]:
            if sha256((folder / str(item["file"])).read_bytes()).hexdigest() != item["sha256"]:
                wrong.append(f"file of {item['attribute']} differs")
        return Verdict(run.run_id, wrong)

    def remove(self, project_id: str, run_id: str) -> None:
        pointer = self._pointer(project_id, run_id)
        pointer.unlink(missing_ok=True)
        for folder in pointer.parent.glob(f"{pointer.stem}-*"):
            shutil.rmtree(folder)

    def runs(self, project_id: str) -> Iterator[TargetRun]:
        for pointer in sorted(self._pointer(project_id, "").parent.glob("*.json")):
            entry = self._entry(pointer)
            if entry is not None:
                yield TargetRun(project_id, entry["run"], entry["folder"], entry["digest"])

    def close(self) -> None:
        """Nothing is held open."""

    def _pointer(self, project_id: str, run_id: str) -> Path:
        project, run = (blake2b(name.encode(), digest_size=16).hexdigest() for name in (project_id, run_id))
        return self._root / project / f"{run}.json"

    def _entry(self, pointer: Path) -> dict[str, Any] | None:
        return json.loads(pointer.read_bytes()) if pointer.exists() else None


def _distinct(batch: Any) -> list[str]:
    return pc.unique(batch["attribute_path"]).to_pylist()


def _without_file(batch: pa.RecordBatch) -> pa.Array:
    kinds = pc.is_in(batch["attribute_type"], pa.array(sorted(FILE_TYPES)))
    return pc.and_(kinds, pc.is_null(pc.struct_field(batch["file_value"], "path")))


def _timeless(run: LakeRun) -> bool:
    batches = run.batches(columns=["step", "timestamp"])
    return any(pc.any(pc.and_(pc.is_valid(b["step"]), pc.is_null(b["timestamp"]))).as_py() for b in batches)


def _same(mine: pa.Table, theirs: pa.Table) -> bool:
    bits = [table["float_value"].combine_chunks().view(pa.int64()) for table in (mine, theirs)]
    return bits[0].equals(bits[1]) and mine.drop_columns("float_value").equals(theirs.drop_columns("float_value"))
